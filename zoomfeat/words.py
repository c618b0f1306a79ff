"""Counts and lists of names as messages say them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def counted(number: int, noun: str) -> str:
    """``1 slide``, ``2 slides``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def shown(names: Sequence[str] | NDArray[np.str_], most: int = 5) -> str:
    """The first few names, and how many more there are."""
    rest = len(names) - most
    return ", ".join(map(str, names[:most])) + (f" and {rest} more" if rest > 0 else "")

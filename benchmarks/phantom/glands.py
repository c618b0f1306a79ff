"""Normal glands around the lesion: the outline of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ANGLES = np.linspace(0, 2 * np.pi, 64, endpoint=False)
"""Directions in which the outline of a unit is known."""

_HEIGHT_UM = (19.0, 24.0)  # of the epithelium, from wall to lumen


@dataclass(frozen=True, eq=False)
class Glands:
    """Units of epithelium; lengths in um.

    Attributes:
        centres: ``(n, 2)`` x and y.
        outline: ``(n, angles)`` radius of the outer wall in each of ``ANGLES``.
        lumen: ``(n, angles)`` radius of the lumen.
        secretion: ``(n,)`` how much the lumen holds, 0 to 1.
    """

    centres: NDArray[np.float64]
    outline: NDArray[np.float64]
    lumen: NDArray[np.float64]
    secretion: NDArray[np.float64]

    def wall(self) -> NDArray[np.float64]:
        """``(n, angles, 2)`` points of the outer wall."""
        return _points(self.centres, self.outline)

    def lumen_edge(self) -> NDArray[np.float64]:
        """``(n, angles, 2)`` points of the lumen's edge."""
        return _points(self.centres, self.lumen)


def ducts(rng: np.random.Generator, centres: NDArray[np.float64]) -> Glands:
    """Glands with wide lumens around the given centres, in um."""
    count = len(centres)
    radius = rng.uniform(42, 62, (count, 1))
    outline = radius * (1 + _wobble(rng, count, 0.09))
    lumen = outline - rng.uniform(*_HEIGHT_UM, (count, 1))
    lumen = np.maximum(lumen, 3.0) * (1 + _wobble(rng, count, 0.08))
    secretion = np.where(rng.random(count) < 0.35, rng.uniform(0.3, 1, count), 0)
    return Glands(centres, outline, lumen, secretion)


def _wobble(rng: np.random.Generator, count: int, size: float) -> NDArray[np.float64]:
    """``(count, angles)`` smooth periodic deviations of about ``size``."""
    orders = np.arange(2, 6)
    amplitude = rng.normal(0, size, (count, len(orders), 1)) / np.sqrt(orders - 1)[None, :, None]
    phase = rng.uniform(0, 2 * np.pi, (count, len(orders), 1))
    return (amplitude * np.cos(orders[None, :, None] * ANGLES[None, None] + phase)).sum(1) / np.sqrt(2)


def _points(centres: NDArray[np.float64], radius: NDArray[np.float64]) -> NDArray[np.float64]:
    return centres[:, None] + radius[..., None] * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=-1)[None]

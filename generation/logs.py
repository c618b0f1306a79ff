"""What a training run says: which items it trains on, and tables that grow."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from generation.batches import Levels
from zoomfeat.files import replacing
from zoomfeat.magnification import Ladder


def announce(training: Levels, held_out: Levels, ladder: Ladder, console: Console) -> None:
    """Says what is trained on, and what a user may not expect of it."""
    counts = ", ".join(f"{ladder.steps[level]} {len(items)}" for level, items in training.items())
    console.print(f"training items: {counts}", highlight=False, soft_wrap=True)
    if len(training) == 1:
        console.print("NOTE one magnification only: the model will not know others", style="bold yellow")
    if not held_out:
        console.print("NOTE nothing is held out (held_out=0, or one slide): no validation", style="bold yellow")


class Table:
    """A CSV that grows by rows; a resumed run drops those after its checkpoint, and writes them again.

    Args:
        path: the file.
        columns: its columns, ``step`` among them.
        step: the step that the run starts from.
        active: false: nothing is written, as in all processes but the first.
    """

    def __init__(self, path: Path, columns: Sequence[str], step: int, *, active: bool = True) -> None:
        self._path, self._columns, self._active = path, list(columns), active
        if not active:
            return
        rows = pd.DataFrame(columns=self._columns)
        if step and path.is_file():
            rows = pd.read_csv(path, dtype=str)
            rows = rows[rows["step"].astype(int) <= step]
        with replacing(path) as temporary:
            rows.to_csv(temporary, index=False)

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Appends rows; columns that one lacks stay empty."""
        if self._active:
            with self._path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns, lineterminator="\n").writerows(rows)


class LossWindow:
    """Losses since the last row of the log, by magnification.

    Args:
        training: the items trained on, by magnification.
        magnifications: index in the ladder of every item of the data.
        ladder: names of the magnifications.
    """

    def __init__(self, training: Levels, magnifications: NDArray[np.integer], ladder: Ladder) -> None:
        self._names = {level: f"loss_{ladder.steps[level]}" for level in training}
        self._magnifications = np.asarray(magnifications)
        self._levels: list[NDArray[np.integer]] = []
        self._losses: list[NDArray[np.float32]] = []

    @property
    def columns(self) -> list[str]:
        """What :meth:`means` can give."""
        return ["loss", *self._names.values()]

    def add(self, items: NDArray[np.int64], losses: Tensor) -> None:
        """The items of a step and their losses."""
        self._levels.append(self._magnifications[items])
        self._losses.append(losses.float().numpy())

    def means(self) -> dict[str, float]:
        """The mean loss over all, and of each magnification that was seen; the window is empty afterwards."""
        levels, losses = np.concatenate(self._levels), np.concatenate(self._losses)
        self._levels, self._losses = [], []
        seen = {name: losses[levels == level] for level, name in self._names.items()}
        return {"loss": float(losses.mean())} | {name: float(part.mean()) for name, part in seen.items() if len(part)}

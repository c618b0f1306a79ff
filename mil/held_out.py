"""The table of out-of-fold predictions, a row a patient, seed and fold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mil.metrics import Metric, classification_metrics, regression_metrics, survival_metrics
from zoomfeat.errors import ConfigurationError
from zoomfeat.files import replacing

PROBABILITY = "prob_"
"""What the names of the columns of probabilities begin with; the class follows."""


@dataclass(frozen=True, eq=False)
class HeldOutPredictions:
    """Predictions of patients who were not trained on.

    Attributes:
        table: columns ``patient_id``, ``slide_ids`` (separated by ``;``), ``seed``, ``fold``, ``y_true``, then
            ``prob_<class>`` for each class (classification), or ``prediction``; survival also has ``event``, its
            ``y_true`` is the time and its prediction the log hazard.
    """

    table: pd.DataFrame

    @property
    def classes(self) -> tuple[str, ...]:
        """Of classification, in order; of two, the second is the positive one."""
        names = map(str, self.table.columns)
        return tuple(name.removeprefix(PROBABILITY) for name in names if name.startswith(PROBABILITY))

    @property
    def task(self) -> str:
        """``classification``, ``regression`` or ``survival``."""
        return "classification" if self.classes else "survival" if "event" in self.table else "regression"

    @property
    def scores(self) -> list[str]:
        """Columns of what was predicted."""
        return [PROBABILITY + name for name in self.classes] or ["prediction"]

    def save(self, path: Path) -> None:
        """Writes the table as Parquet, whole or not at all."""
        with replacing(path) as temporary:
            self.table.to_parquet(temporary, index=False)

    @classmethod
    def load(cls, path: Path) -> HeldOutPredictions:
        """The inverse of `save`.

        Raises:
            ConfigurationError: not such a file.
        """
        try:
            table = pd.read_parquet(path)
        except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
            raise ConfigurationError(
                f"not readable ({' '.join(str(error).split())})",
                cure="Give the out= folder of a crossval run",
                path=path,
            ) from error
        return cls(table)

    def by_patient(self) -> HeldOutPredictions:
        """One row a patient, sorted: the mean over seeds and folds."""
        same = [name for name in ("y_true", "event") if name in self.table]
        how = dict.fromkeys(same, "first") | dict.fromkeys(self.scores, "mean")
        return HeldOutPredictions(self.table.groupby("patient_id", sort=True).agg(how).reset_index())

    def metrics(self) -> dict[str, Metric]:
        """The metrics of the rows as functions of (B, rows) weights."""
        values = self.table[self.scores].to_numpy(dtype=np.float64)
        if self.task == "classification":
            return classification_metrics(self.class_indices(), values)
        y = self.table.y_true.to_numpy(dtype=np.float64)
        if self.task == "regression":
            return regression_metrics(y, values[:, 0])
        return survival_metrics(y, self.table.event.to_numpy(dtype=bool), values[:, 0])

    def class_indices(self) -> NDArray[np.intp]:
        """(rows,) the true class as its place in `classes`."""
        return np.array([self.classes.index(name) for name in self.table.y_true], dtype=np.intp)

    def smallest_class(self) -> int | None:
        """Rows of the smallest class; None without classes."""
        return int(np.bincount(self.class_indices(), minlength=len(self.classes)).min()) if self.classes else None

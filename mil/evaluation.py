"""The metrics of a cross-validation: of each fold, pooled, averaged over folds, and of seed-averaged predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mil.held_out import HeldOutPredictions
from mil.metrics import RESAMPLES, Estimate, Metric, Values, Weights, estimates

MEANINGS = {
    "pooled": "One value a seed from the test predictions of all its folds together; their mean over the seeds.",
    "averaged": "Mean over the folds (of all seeds) of the value in each fold; those without a value are left out.",
    "seed_averaged": "The value of each patient's test prediction averaged over the seeds: that of an ensemble.",
}
INTERVAL = (
    "95 %, bootstrap over patients: the same resampled patients count in every seed and fold. The spread between seeds "
    "and folds is not part of it; between_seeds holds the pooled value of each seed."
)


@dataclass(frozen=True)
class FoldMetrics:
    """One test fold.

    Attributes:
        seed: of the run.
        fold: its name.
        patients: how many were tested.
        metrics: name to value with interval.
    """

    seed: int
    fold: str
    patients: int
    metrics: dict[str, Estimate]


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a cross-validation; `MEANINGS` says what each kind is.

    Attributes:
        patients: different patients that were tested.
        pooled: name to value with interval.
        averaged: likewise.
        seed_averaged: likewise; None for one seed, where it is the pooled value.
        between_seeds: name to the pooled value of each seed.
        folds: each test fold.
    """

    patients: int
    pooled: dict[str, Estimate]
    averaged: dict[str, Estimate]
    seed_averaged: dict[str, Estimate] | None
    between_seeds: dict[str, list[float]]
    folds: tuple[FoldMetrics, ...]

    def to_json(self) -> dict[str, Any]:
        """As values of JSON; undefined numbers are null."""
        views = {"pooled": self.pooled, "averaged": self.averaged, "seed_averaged": self.seed_averaged}
        return {
            "patients": self.patients,
            "interval": INTERVAL,
            **{
                name: {"meaning": MEANINGS[name], "metrics": _plain(found)}
                for name, found in views.items()
                if found is not None
            },
            "between_seeds": self.between_seeds,
            "folds": [
                {"seed": f.seed, "fold": f.fold, "patients": f.patients, "metrics": _plain(f.metrics)}
                for f in self.folds
            ],
        }


def evaluate(predictions: HeldOutPredictions, resamples: int = RESAMPLES) -> Evaluation:
    """All metrics with 95 % intervals from a bootstrap over patients.

    Args:
        predictions: of one or several seeds.
        resamples: of the bootstrap.
    """
    table = predictions.table
    names, place = np.unique(table.patient_id.to_numpy(dtype=str), return_inverse=True)
    cells = [HeldOutPredictions(rows) for _, rows in table.groupby(["seed", "fold"], sort=False)]
    seeds = [HeldOutPredictions(rows) for _, rows in table.groupby("seed", sort=False)]
    of_row = pd.Series(place, index=table.index)

    def on_patients(part: HeldOutPredictions) -> dict[str, Metric]:
        rows = of_row[part.table.index].to_numpy()
        return {name: _of_rows(metric, rows) for name, metric in part.metrics().items()}

    by_seed, by_cell = [on_patients(part) for part in seeds], [on_patients(part) for part in cells]
    count, ensemble = len(names), predictions.by_patient()
    smallest = ensemble.smallest_class()
    ones = np.ones((1, count))
    return Evaluation(
        patients=count,
        pooled=estimates(_mean_of(by_seed, ones), count, resamples=resamples, smallest=smallest),
        averaged=estimates(_mean_of(by_cell, ones), count, resamples=resamples, smallest=_smallest(cells, len(seeds))),
        seed_averaged=None
        if len(seeds) == 1
        else estimates(ensemble.metrics(), count, resamples=resamples, smallest=smallest),
        between_seeds={name: [float(metrics[name](ones)[0]) for metrics in by_seed] for name in by_seed[0]},
        folds=tuple(_fold_metrics(cell, resamples) for cell in cells),
    )


def _fold_metrics(cell: HeldOutPredictions, resamples: int) -> FoldMetrics:
    count = len(cell.table)
    found = estimates(cell.metrics(), count, resamples=resamples, smallest=cell.smallest_class())
    return FoldMetrics(int(cell.table.seed.iloc[0]), str(cell.table.fold.iloc[0]), count, found)


def _of_rows(metric: Metric, rows: NDArray[np.intp]) -> Metric:
    """A metric of some rows as a function of the weights of all patients."""
    return lambda weights: metric(weights[:, rows])


def _mean_of(parts: Sequence[dict[str, Metric]], ones: Weights) -> dict[str, Metric]:
    """The mean of each metric over the parts of the sample in which it is defined."""
    return {
        name: _mean_defined([part[name] for part in parts if np.isfinite(part[name](ones)[0])]) for name in parts[0]
    }


def _mean_defined(metrics: list[Metric]) -> Callable[[Weights], Values]:
    def mean(weights: Weights) -> Values:
        values = np.full((max(1, len(metrics)), len(weights)), np.nan)
        for row, metric in enumerate(metrics):
            values[row] = metric(weights)
        defined = np.isfinite(values)
        total = np.where(defined, values, 0).sum(axis=0)
        return np.divide(total, defined.sum(axis=0), out=np.full(len(weights), np.nan), where=defined.any(axis=0))

    return mean


def _smallest(cells: Sequence[HeldOutPredictions], seeds: int) -> int | None:
    """Disjoint pairs of a positive and a negative of the same fold in one seed; None without classes."""
    sizes = [cell.smallest_class() for cell in cells]
    return None if None in sizes else max(1, sum(size or 0 for size in sizes) // seeds)


def _plain(found: dict[str, Estimate]) -> dict[str, dict[str, float | None]]:
    return {
        name: {key: None if np.isnan(value) else value for key, value in vars(estimate).items()}
        for name, estimate in found.items()
    }

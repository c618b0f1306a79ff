"""The metrics of a result record, computed again from the predictions in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from benchmarks.record import BY_FOLD, Interval, Measurement, Record, RecordInvalidError, held_out
from mil.evaluation import evaluate
from mil.metrics import Metric, Weights, estimates


def recomputed(record: Record) -> dict[str, Interval]:
    """Every metric from the predictions alone, with intervals.

    Classification: the metrics of `mil.metrics` from all held-out predictions of a run together, their mean over the
    runs (``auroc``), and the mean over the test folds (``auroc_by_fold``), with bootstrap intervals over patients.
    Other kinds: the mean over images with a bootstrap interval over images; of a set value and interval as measured.

    Raises:
        RecordInvalidError: predictions that are not those of the task.
    """
    if record.task.kind == "classification":
        evaluation = evaluate(held_out(record))
        found = {name: Interval.of(estimate) for name, estimate in evaluation.pooled.items()}
        return found | {name + BY_FOLD: Interval.of(estimate) for name, estimate in evaluation.averaged.items()}
    measured = [each for each in record.predictions if isinstance(each, Measurement)]
    if not measured or len(measured) < len(record.predictions):
        raise RecordInvalidError(
            f"a task of kind {record.task.kind} without measurements", cure="Make the record again with this version"
        )
    return _of_images([m for m in measured if m.of == "image"]) | _of_sets(measured)


def differing_metrics(
    stated: Mapping[str, Interval], computed: Mapping[str, Interval], tolerance: float = 1e-6
) -> list[str]:
    """Names of metrics that one side lacks, or whose value or interval differs by more than rounding."""
    return [
        name
        for name in sorted(stated.keys() | computed.keys())
        if name not in stated
        or name not in computed
        or not _same(_numbers(stated[name]), _numbers(computed[name]), tolerance)
    ]


def _numbers(interval: Interval) -> Iterable[float | None]:
    return (interval.value, interval.low, interval.high, interval.level)


def _same(first: Iterable[float | None], second: Iterable[float | None], tolerance: float) -> bool:
    return all(
        a is b is None or (a is not None and b is not None and abs(a - b) <= tolerance * max(1, abs(a)))
        for a, b in zip(first, second, strict=True)
    )


def _of_images(images: list[Measurement]) -> dict[str, Interval]:
    found = {}
    for name in sorted({name for image in images for name in image.values}):
        values = np.array([image.values[name] for image in images if name in image.values])
        if len(values) == 1:
            found[name] = Interval(float(values[0]))
            continue
        found[name] = Interval.of(estimates({name: _mean_of(values)}, len(values))[name])
    return found


def _mean_of(values: NDArray[np.float64]) -> Metric:
    def mean(weights: Weights) -> NDArray[np.float64]:
        return (weights @ values) / weights.sum(axis=1)

    return mean


def _of_sets(measured: list[Measurement]) -> dict[str, Interval]:
    sets = (each for each in measured if each.of == "set")
    return {
        name: Interval(value, *each.intervals.get(name, (None, None)))
        for each in sets
        for name, value in each.values.items()
    }

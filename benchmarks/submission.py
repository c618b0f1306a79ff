"""Is a result record what it says: its layout, seal, task and predictions, and metrics that follow from them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import ValidationError

from benchmarks.recomputation import differing_metrics, recomputed
from benchmarks.record import Interval, Record, RecordInvalidError, held_out
from benchmarks.tasks import Task, load_task, patients_sha256, task_names
from mil.held_out import HeldOutPredictions
from zoomfeat.words import counted, shown

_SUM_TOLERANCE = 1e-4  # of float32
_ROUNDING = 1e-9  # of sums in another order, with room; a prediction that moved by 0.0001 shows
_RESAMPLING = 0.1  # of the width of an interval
_MOST_LAYOUT_PROBLEMS = 10


@dataclass(frozen=True)
class Checked:
    """What a check found.

    Attributes:
        path: the file.
        record: what it holds; None where it is no record.
        problems: one line each; none where the record may be trusted as far as it can be checked.
        metrics: computed anew from its predictions; empty where these make no sense.
    """

    path: Path
    record: Record | None
    problems: tuple[str, ...]
    metrics: dict[str, Interval]


def known_tasks(further: Sequence[str | Task] = ()) -> dict[str, Task]:
    """The tasks of the package and further ones, by the hash of their definition.

    Args:
        further: tasks, or YAML files of tasks.

    Raises:
        ConfigurationError: a file that defines no task.
    """
    tasks = [*map(load_task, task_names()), *(load_task(each) if isinstance(each, str) else each for each in further)]
    return {task.version: task for task in tasks}


def check_file(path: Path, tasks: Mapping[str, Task]) -> Checked:
    """Reads and checks a record; a file that is none is a problem and no error.

    Args:
        path: the file.
        tasks: from `known_tasks`.
    """
    try:
        record = Record.load(path)
    except RecordInvalidError as error:
        return Checked(path, None, tuple(map(printable, _layout_problems(error))), {})
    return check_record(record, path, tasks)


def check_record(record: Record, path: Path, tasks: Mapping[str, Task]) -> Checked:
    """What is wrong with a record.

    The hash tells that a record was changed after it was sealed. Metrics are computed again from the predictions, so a
    change of either shows even in a record that was sealed anew. Patients and true classes are held against the hash of
    those of the task, where it states one. What no one can compute again (``extra``, ``cost``, ``hardware``) is
    checked for its range alone, and whether the predictions come from the model at all cannot be seen from a file.
    """
    task = tasks.get(record.task.version)
    problems = [*_seal(record), *(_task(record, task) if task else _unknown(record, tasks)), *_ranges(record)]
    of_predictions = list(_classification(record, task)) if record.task.kind == "classification" else []
    computed: dict[str, Interval] = {}
    if not of_predictions:  # metrics of predictions that make no sense say nothing more
        try:
            computed = recomputed(record)
            of_predictions = list(_metrics(record, computed))
        except RecordInvalidError as error:
            of_predictions = [error.problem]
    return Checked(path, record, tuple(map(printable, problems + of_predictions)), computed)


def printable(text: str) -> str:
    """Text for a terminal or a page: control characters, which could rewrite either, become a replacement mark."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def _layout_problems(error: RecordInvalidError) -> list[str]:
    if not isinstance(error.__cause__, ValidationError):
        return [error.problem]
    found = error.__cause__.errors()
    lines = [f"{'.'.join(map(str, each['loc'])) or 'file'}: {each['msg']}" for each in found[:_MOST_LAYOUT_PROBLEMS]]
    more = len(found) - len(lines)
    return lines + ([f"and {counted(more, 'problem')} more of the layout"] if more else [])


def _seal(record: Record) -> Iterator[str]:
    if record.hash != record.content_hash:
        stated = f"hash is {record.hash[:12]}..." if record.hash else "no hash"
        yield f"{stated}, the content has {record.content_hash[:12]}...: changed after it was written"


def _unknown(record: Record, tasks: Mapping[str, Task]) -> Iterator[str]:
    name, version = record.task.name, record.task.version
    same = [task.version for task in tasks.values() if task.name == name]
    if same:
        yield (
            f"task version is {version[:12]}..., that of {name} is {same[0][:12]}...: other folds, seeds, "
            "training or data, so the results do not compare"
        )
    else:
        names = sorted({task.name for task in tasks.values()})
        yield f"task {name!r} is not known, expected one of {', '.join(names)}, or its YAML file in tasks="


def _task(record: Record, task: Task) -> Iterator[str]:
    for name in ("name", "kind", "metric", "higher_is_better", "classes"):
        if getattr(record.task, name) != getattr(task, name):
            yield f"task.{name} is {getattr(record.task, name)!r}, expected {getattr(task, name)!r}"


def _ranges(record: Record) -> Iterator[str]:
    try:
        created = datetime.fromisoformat(record.created)
        if created.utcoffset() != timedelta(0):
            yield f"created is {record.created!r}, expected a time in UTC (+00:00)"
    except ValueError:
        yield f"created is {record.created!r}, expected a time in ISO 8601"
    for name, interval in record.extra.items():
        if not _in_order(interval):
            yield f"extra.{name} is {_text(interval)}, expected a value within its interval"
    amounts = {f"cost.{name}": value for name, value in vars(record.cost).items()}
    amounts |= {f"encoder.{name}": getattr(record.encoder, name) for name in ("parameters", "flops_per_patch", "dim")}
    for name, amount in amounts.items():
        if amount is not None and amount < 0:
            yield f"{name} is {amount}, expected 0 or more"


def _in_order(interval: Interval) -> bool:
    if interval.value is None or interval.low is None or interval.high is None:
        return True
    return interval.low <= interval.value <= interval.high


def _classification(record: Record, task: Task | None) -> Iterator[str]:
    try:
        table = held_out(record)
    except RecordInvalidError as error:
        yield error.problem
        return
    yield from _probabilities(table)
    yield from _rows(table.table)
    if task is not None:
        yield from _against_protocol(table.table, task)
        yield from _against_cohort(table.table, task)


def _probabilities(predictions: HeldOutPredictions) -> Iterator[str]:
    patients = predictions.table.patient_id.to_numpy(dtype=str)
    values = predictions.table[predictions.scores].to_numpy(dtype=np.float64)
    outside = ((values < 0) | (values > 1)).any(axis=1)
    if outside.any():
        yield f"probabilities outside 0 to 1 of {_patients(patients[outside])}"
    apart = ~outside & (np.abs(values.sum(axis=1) - 1) > _SUM_TOLERANCE)
    if apart.any():
        yield f"probabilities that do not sum to 1 of {_patients(patients[apart])}"


def _rows(table: pd.DataFrame) -> Iterator[str]:
    twice = table.duplicated(["patient_id", "seed", "fold"])
    if twice.any():
        yield f"two predictions in one run and fold of {_patients(table.patient_id[twice])}"
    labels = table.groupby("patient_id").y_true.nunique()
    if (labels > 1).any():
        yield f"different true classes of {_patients(labels.index[labels > 1])}"
    everyone = set(table.patient_id)
    for run, rows in table.groupby("seed"):
        lacking = sorted(everyone - set(rows.patient_id))
        if lacking:
            yield f"run {run} lacks {_patients(lacking)}"


def _against_protocol(table: pd.DataFrame, task: Task) -> Iterator[str]:
    """Whether all runs of the task are there and no others, so that nobody shows the best of several."""
    runs, wanted = sorted(set(table.seed)), sorted(task.protocol.seeds)
    if runs != wanted:
        yield f"runs {', '.join(map(str, runs))}, expected {', '.join(map(str, wanted))}"
    if task.protocol.split != "stratified":
        return
    for run, rows in table.groupby("seed"):
        if rows.fold.nunique() != task.protocol.folds:
            yield f"run {run} has {rows.fold.nunique()} folds, expected {task.protocol.folds}"
    again = table.duplicated(["patient_id", "seed"])
    if again.any():
        yield f"several folds of one run have {_patients(table.patient_id[again])}"


def _against_cohort(table: pd.DataFrame, task: Task) -> Iterator[str]:
    if task.patients_sha256 is None:
        return
    found = patients_sha256(zip(table.patient_id, table.y_true, strict=True))
    if found != task.patients_sha256:
        yield (
            f"{counted(table.patient_id.nunique(), 'patient')} with their true classes hash to {found[:12]}..., those "
            f"of {task.name} to {task.patients_sha256[:12]}...: patients are missing, added or of another class"
        )


def _metrics(record: Record, computed: Mapping[str, Interval]) -> Iterator[str]:
    for name in differing_metrics(record.metrics, computed, _ROUNDING):
        if name not in record.metrics:
            yield f"metric {name} is missing, the predictions give {_text(computed[name])}"
        elif name not in computed:
            yield f"metric {name} is {_text(record.metrics[name])}, and does not follow from the predictions"
        elif not _other_resamples(record.metrics[name], computed[name]):
            yield f"metric {name} is {_text(record.metrics[name])}, the predictions give {_text(computed[name])}"
    ranking = record.metrics.get(record.task.metric)
    if record.task.kind == "classification" and (ranking is None or ranking.value is None):
        yield f"no value of {record.task.metric}, which ranks the task"


def _other_resamples(stated: Interval, computed: Interval) -> bool:
    """Whether the value is the same and the ends differ by no more than the draws of the bootstrap.

    NumPy may draw other resamples in another version. An end of 2,000 resamples then moves by about 1.5 % of the
    interval's width (the standard error of a 2.5 % quantile of a normal sample).
    """
    if differing_metrics({"": Interval(stated.value)}, {"": Interval(computed.value)}, _ROUNDING):
        return False
    if stated.level != computed.level or computed.low is None or computed.high is None:
        return False
    reach = _RESAMPLING * (computed.high - computed.low)
    ends = ((stated.low, computed.low), (stated.high, computed.high))
    return all(end is not None and abs(end - own) <= reach for end, own in ends)


def _text(interval: Interval) -> str:
    """With as many digits as tell two apart that are refused for their difference."""
    numbers = ["undefined" if x is None else f"{x:.7g}" for x in (interval.value, interval.low, interval.high)]
    return f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"


def _patients(names: Iterable[str]) -> str:
    different = sorted(set(map(str, names)))
    return f"{counted(len(different), 'patient')} ({shown(different)})"

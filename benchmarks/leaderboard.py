"""Result records of many hands as standings: checked, merged, ranked, and every pair of a task tested."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from scipy.stats import rankdata

from benchmarks.record import Interval, Measurement, Record, held_out
from benchmarks.significance import Pair, all_pairs, groups, image_test, prediction_test
from benchmarks.submission import check_file
from benchmarks.tasks import Task
from zoomfeat.errors import ConfigurationError
from zoomfeat.progress import progress_bar

MOST_COMPARED = 30
"""Results of a task that are tested against each other: the best ones. More pairs leave no power after correction."""

_MARKS = ("schema", "predictions")  # keys that a record has and other JSON files of a run folder do not


@dataclass(frozen=True)
class Entry:
    """A record that passed the check.

    Attributes:
        record: as it was read.
        file: its path within the folder of results.
        metrics: computed anew from its predictions.
    """

    record: Record
    file: str
    metrics: dict[str, Interval]

    @property
    def ranking(self) -> float | None:
        """The value that ranks; None for images that were measured otherwise, as by a distance over another network."""
        found = self.metrics.get(self.record.task.metric)
        return None if found is None else found.value


@dataclass(frozen=True)
class Refused:
    """A file that did not pass.

    Attributes:
        file: its path within the folder of results.
        problems: what is wrong, one line each.
    """

    file: str
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Collection:
    """What a folder of results holds.

    Attributes:
        entries: each record once.
        refused: files that did not pass.
        duplicates: files that hold the record of another one, and that other.
        others: JSON files that are no records.
    """

    entries: tuple[Entry, ...]
    refused: tuple[Refused, ...]
    duplicates: tuple[tuple[str, str], ...]
    others: tuple[str, ...]


@dataclass(frozen=True)
class Standing:
    """One row of a task.

    Attributes:
        entry: the record.
        name: encoder, magnification and head; where another row has the same, who made it and when.
        rank: 1 for the best value; equal values share a rank. None where there is no value.
        against_best: its pair with the first row; None for the first, and where they are not compared.
    """

    entry: Entry
    name: str
    rank: int | None
    against_best: Pair | None


@dataclass(frozen=True)
class Board:
    """The standings of a task.

    Attributes:
        task: its definition.
        magnification: of all its results, for images that are made: those of another magnification do not compare.
            Empty for a classification, which may use any.
        standings: best first, those without a rank last.
        pairs: of the first `MOST_COMPARED` standings, by their places; empty where the kind of task has no paired test.
        groups: places of standings of which no pair differs.
    """

    task: Task
    magnification: str
    standings: tuple[Standing, ...]
    pairs: tuple[Pair, ...]
    groups: tuple[tuple[int, ...], ...]


def collect(results: Path, tasks: Mapping[str, Task], console: Console, without: Path | None = None) -> Collection:
    """Reads and checks all records under a folder.

    Args:
        results: the folder; records may lie at any depth, one folder a submitter for example.
        tasks: that are known, see `known_tasks`.
        console: where progress is shown.
        without: a folder within it that is passed over: the site of an earlier call.

    Raises:
        ConfigurationError: no such folder, or no JSON file in it.
    """
    paths = sorted(results.rglob("*.json")) if results.is_dir() else []
    paths = [path for path in paths if without is None or without.resolve() not in path.resolve().parents]
    if not paths:
        raise ConfigurationError(
            "no records (.json) in this folder", cure="Make some with `zoomfeat benchmark`", path=results
        )
    entries: dict[str, Entry] = {}
    refused, duplicates, others = [], [], []
    with progress_bar(console) as progress:
        task = progress.add_task("checking", total=len(paths), unit="files")
        for path in paths:
            progress.advance(task)
            file = path.relative_to(results).as_posix()
            if not _looks_like_record(path):
                others.append(file)
                continue
            checked = check_file(path, tasks)
            if checked.record is None or checked.problems:
                refused.append(Refused(file, checked.problems))
            elif checked.record.hash in entries:
                duplicates.append((file, entries[checked.record.hash].file))
            else:
                entries[checked.record.hash] = Entry(checked.record, file, checked.metrics)
    return Collection(tuple(entries.values()), tuple(refused), tuple(duplicates), tuple(others))


def boards(entries: Sequence[Entry], tasks: Mapping[str, Task], console: Console) -> list[Board]:
    """The standings of every task that has records, tasks by name; other versions of one are other tasks."""
    same: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        task, magnification = entry.record.task, entry.record.magnification
        same.setdefault((task.version, "" if task.kind == "classification" else magnification), []).append(entry)
    with progress_bar(console) as progress:
        sizes = [min(len(each), MOST_COMPARED) for each in same.values()]
        total = sum(n * (n - 1) // 2 for n in sizes)
        bar = progress.add_task("testing pairs", total=total, unit="pairs", visible=total > 0)
        found = [
            _board(tasks[version], magnification, each, lambda: progress.advance(bar))
            for (version, magnification), each in same.items()
        ]
    return sorted(found, key=lambda board: (board.task.name, board.task.version, _coarseness(board.magnification)))


def _coarseness(magnification: str) -> tuple[float, str]:
    """Sorts 20x before 5x; what is no magnification comes last."""
    try:
        return -float(magnification.split("+")[0].removesuffix("x")), magnification
    except ValueError:
        return 0.0, magnification


def _board(task: Task, magnification: str, entries: list[Entry], on_tested: Callable[[], None]) -> Board:
    sign = -1 if task.higher_is_better else 1

    def place_of(entry: Entry) -> tuple[bool, float, str, str]:
        value = entry.ranking
        return value is None, 0.0 if value is None else sign * value, entry.record.label, entry.record.created

    ordered = sorted(entries, key=place_of)
    ranks = rankdata([sign * each.ranking for each in ordered if each.ranking is not None], method="min").tolist()
    compared = ordered[: min(len(ranks), MOST_COMPARED)]
    names = _names(ordered)
    pairs = _pairs(task, compared, on_tested)
    of_best = {pair.second: pair for pair in pairs if pair.first == 0}
    return Board(
        task,
        magnification,
        tuple(
            Standing(entry, name, int(ranks[place]) if place < len(ranks) else None, of_best.get(place))
            for place, (entry, name) in enumerate(zip(ordered, names, strict=True))
        ),
        tuple(pairs),
        tuple(map(tuple, groups(len(compared), pairs))),
    )


def _names(entries: Sequence[Entry]) -> list[str]:
    """What tells each from the others, in as few words as do."""
    records = [entry.record for entry in entries]
    labels = [" · ".join([r.encoder.name, r.magnification, *([r.head.name] if r.head else [])]) for r in records]
    for more in (
        [r.submitter or "unnamed" for r in records],
        [r.created[:10] for r in records],
        [r.hash[:8] for r in records],
    ):
        count = Counter(labels)
        labels = [f"{label} ({word})" if count[label] > 1 else label for label, word in zip(labels, more, strict=True)]
    return labels


def _pairs(task: Task, entries: Sequence[Entry], on_tested: Callable[[], None]) -> list[Pair]:
    if task.kind == "classification":
        predictions = [held_out(entry.record).by_patient() for entry in entries]
        return all_pairs(predictions, prediction_test(task.compared), on_tested)
    series = [_of_images(entry.record, task.metric) for entry in entries]
    return all_pairs(series, image_test, on_tested) if all(len(each) for each in series) else []


def _of_images(record: Record, metric: str) -> pd.Series:
    """A metric of each image by its name; empty where it is one of whole sets, which resample apart from each other."""
    found = {
        each.name: each.values[metric]
        for each in record.predictions
        if isinstance(each, Measurement) and each.of == "image" and metric in each.values
    }
    return pd.Series(found, dtype=np.float64)


def _looks_like_record(path: Path) -> bool:
    """Whether a file claims to be a record, or is too damaged to tell: nothing that may be one is passed over."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return True
    return isinstance(content, dict) and any(mark in content for mark in _MARKS)

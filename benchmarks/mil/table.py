"""Held-out predictions of repeated cross-validation, kept in a file so that a killed run goes on, and their table."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from sklearn.model_selection import LeaveOneGroupOut, StratifiedKFold

from mil import MILClassifier
from mil.metrics import Estimate, auroc, estimates
from zoomfeat.files import make_folder, replacing
from zoomfeat.progress import progress_bar


@dataclass(frozen=True, eq=False)
class BagSet:
    """Labelled bags.

    Attributes:
        name: of the set.
        bags: (N, D) float32 each.
        labels: (bags,) 0 or 1.
        groups: (bags,) whole groups that are held out one by one, in place of folds; None for folds.
    """

    name: str
    bags: list[NDArray[np.float32]]
    labels: NDArray[np.int64]
    groups: NDArray[np.str_] | None = None


@dataclass(frozen=True)
class Protocol:
    """Repeated stratified cross-validation.

    Attributes:
        folds: of each run.
        runs: repeats; the number of a run seeds its folds and its training.
        parameters: of the classifier; the same for every set.
    """

    folds: int
    runs: int
    parameters: dict[str, Any]


@dataclass
class Cell:
    """The held-out predictions of one head on one set in one run.

    Attributes:
        set: name of the set.
        head: name of the head.
        run: number of the run.
        folds: (bags,) the fold that each bag was held out in.
        labels: (bags,).
        chances: (bags,) probability of label 1.
    """

    set: str
    head: str
    run: int
    folds: list[int]
    labels: list[int]
    chances: list[float]


def run_cells(sets: Sequence[BagSet], heads: Sequence[str], protocol: Protocol, path: Path) -> list[Cell]:
    """Trains and predicts what the file does not hold yet; every finished cell is written at once.

    Args:
        sets: the bags.
        heads: names of heads.
        protocol: of the cross-validation; a file made with another one is begun anew.
        path: the file of results.
    """
    make_folder(path.parent)
    cells = _kept(path, protocol)
    done = {(cell.set, cell.head, cell.run) for cell in cells}
    wanted = [(bags, head, run) for run in range(protocol.runs) for bags in sets for head in heads]
    missing = [(bags, head, run) for bags, head, run in wanted if (bags.name, head, run) not in done]
    with progress_bar(Console(stderr=True)) as progress:
        task = progress.add_task("training", total=len(missing) * protocol.folds, unit="fits")
        for bags, head, run in missing:
            cells.append(_run_cell(bags, head, run, protocol, progress, task))
            record = {"protocol": asdict(protocol), "cells": [asdict(cell) for cell in cells]}
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(record) + "\n", encoding="utf-8")
    chosen = {(bags.name, head) for bags in sets for head in heads}
    return [cell for cell in cells if (cell.set, cell.head) in chosen]


def fold_accuracy(cells: Sequence[Cell]) -> tuple[float, float]:
    """Mean accuracy over the runs, and its standard error over all their test folds."""
    each = [
        np.mean((np.array(cell.chances)[rows] > 0.5) == np.array(cell.labels)[rows])
        for cell in cells
        for rows in _folds(cell)
    ]
    runs = [np.mean((np.array(cell.chances) > 0.5) == np.array(cell.labels)) for cell in cells]
    return float(np.mean(runs)), float(np.std(each, ddof=1) / np.sqrt(len(each)))


def mean_auroc(cells: Sequence[Cell]) -> Estimate:
    """Mean over the runs of the area under the ROC curve of held-out predictions; bootstrap interval over bags."""
    labels = np.array(cells[0].labels)
    smallest = int(min(labels.sum(), (1 - labels).sum()))
    found = estimates(
        {"auroc": lambda weights: np.mean([auroc(weights, labels, np.array(cell.chances)) for cell in cells], axis=0)},
        len(labels),
        smallest=smallest,
    )
    return found["auroc"]


def rows_by_head(cells: Sequence[Cell]) -> Iterator[tuple[str, str, list[Cell]]]:
    """Set, head and cells of all runs, in the order in which they first come."""
    for name, head in dict.fromkeys((cell.set, cell.head) for cell in cells):
        yield name, head, [cell for cell in cells if (cell.set, cell.head) == (name, head)]


def print_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table."""
    table = Table(title=title)
    for heading in headings:
        table.add_column(heading)
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def _run_cell(bags: BagSet, head: str, run: int, protocol: Protocol, progress: Progress, task: Any) -> Cell:
    chances = np.zeros(len(bags.labels))
    held_out = np.zeros(len(bags.labels), dtype=int)
    splitter: Any = LeaveOneGroupOut()
    if bags.groups is None:
        splitter = StratifiedKFold(protocol.folds, shuffle=True, random_state=run)
    for fold, (training, test) in enumerate(splitter.split(bags.labels, bags.labels, bags.groups)):
        model = MILClassifier(head=head, seed=run, **protocol.parameters)
        model.fit([bags.bags[place] for place in training], bags.labels[training])
        chances[test] = model.predict_proba([bags.bags[place] for place in test])[:, 1]
        held_out[test] = fold
        progress.advance(task)
    return Cell(bags.name, head, run, held_out.tolist(), bags.labels.tolist(), chances.tolist())


def _folds(cell: Cell) -> Iterator[NDArray[np.intp]]:
    folds = np.array(cell.folds)
    for fold in np.unique(folds):
        yield np.flatnonzero(folds == fold)


def _kept(path: Path, protocol: Protocol) -> list[Cell]:
    if not path.is_file():
        return []
    record = json.loads(path.read_text(encoding="utf-8"))
    return [Cell(**cell) for cell in record["cells"]] if record["protocol"] == asdict(protocol) else []

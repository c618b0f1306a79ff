"""Cross-validated runs against a baseline: the same patients, every metric, tests and their correction."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mil.compare import Difference, delong, holm, paired_bootstrap
from mil.held_out import HeldOutPredictions
from mil.metrics import RESAMPLES
from mil.runs import RunFolder
from zoomfeat.errors import ConfigurationError
from zoomfeat.words import counted, shown


@dataclass(frozen=True)
class Row:
    """One metric of one run against the baseline.

    Attributes:
        run: the folder of the run.
        metric: its name.
        test: ``DeLong`` or ``bootstrap``.
        difference: values, difference, interval and p.
        p_holm: p corrected for the number of runs that this metric and test compare with the baseline.
    """

    run: str
    metric: str
    test: str
    difference: Difference
    p_holm: float


@dataclass(frozen=True)
class Comparison:
    """Runs against a baseline.

    Attributes:
        baseline: folder of the first run.
        patients: how many all runs have predicted.
        rows: run by run.
        notes: what a reader must know.
    """

    baseline: str
    patients: int
    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    def table(self) -> pd.DataFrame:
        """The rows as columns run, metric, test, baseline, value, difference, low, high, p, p_holm."""
        return pd.DataFrame(
            [
                {
                    "run": row.run,
                    "metric": row.metric,
                    "test": row.test,
                    "baseline": row.difference.first,
                    "value": row.difference.second,
                    **{name: getattr(row.difference, name) for name in ("difference", "low", "high", "p")},
                    "p_holm": row.p_holm,
                }
                for row in self.rows
            ]
        )


def compare_runs(folders: list[str], resamples: int = RESAMPLES) -> Comparison:
    """Compares runs with the first one on the patients that all have predicted.

    A patient's prediction is the mean over the seeds of a run, so the values are the seed-averaged ones of
    ``metrics.json`` where the runs have the same patients.

    Args:
        folders: the ``out=`` of two or more finished runs.
        resamples: of the bootstrap.

    Raises:
        ConfigurationError: fewer than two runs, an unfinished one, other tasks, classes or true values, or no common
            patient.
    """
    if len(folders) < 2:
        raise ConfigurationError(f"{len(folders)} run, expected two or more", cure="Give the out= folders of the runs")
    if len({str(Path(folder).resolve()) for folder in folders}) < len(folders):
        raise ConfigurationError("a run is named twice", cure="Give different folders")
    runs = {folder: RunFolder(Path(folder)).finished().by_patient() for folder in folders}
    baseline, *others = folders
    for folder in others:
        _check_same_question(baseline, runs[baseline], folder, runs[folder])
    common = _common(runs)
    aligned = {folder: _only(run, common) for folder, run in runs.items()}
    for folder in others:
        _check_same_truth(baseline, aligned[baseline], folder, aligned[folder])
    rows = [row for folder in others for row in _rows(folder, aligned[baseline], aligned[folder], resamples)]
    return Comparison(baseline, len(common), tuple(_corrected(rows)), tuple(_notes(folders, runs, common)))


def _rows(folder: str, first: HeldOutPredictions, second: HeldOutPredictions, resamples: int) -> list[Row]:
    count = len(first.table)
    rows = []
    metrics = zip(first.metrics().items(), second.metrics().values(), strict=True)
    for (name, one), other in metrics:
        if name == "auroc" and len(first.classes) == 2 and (first.smallest_class() or 0) > 1:
            score = first.scores[1]
            found = delong(first.class_indices(), first.table[score].to_numpy(), second.table[score].to_numpy())
            rows.append(Row(folder, name, "DeLong", found, np.nan))
        rows.append(Row(folder, name, "bootstrap", paired_bootstrap(one, other, count, resamples=resamples), np.nan))
    return rows


def _corrected(rows: list[Row]) -> list[Row]:
    """Holm's correction over the runs, for each metric and test by itself."""
    adjusted: dict[int, float] = {}
    for family in {(row.metric, row.test) for row in rows}:
        members = [place for place, row in enumerate(rows) if (row.metric, row.test) == family]
        adjusted |= dict(zip(members, holm([rows[place].difference.p for place in members]), strict=True))
    return [Row(row.run, row.metric, row.test, row.difference, adjusted[place]) for place, row in enumerate(rows)]


def _check_same_question(baseline: str, first: HeldOutPredictions, folder: str, second: HeldOutPredictions) -> None:
    for what, one, other in (("task", first.task, second.task), ("classes", first.classes, second.classes)):
        if one != other:
            raise ConfigurationError(
                f"{what} {_text(other)}, and {_text(one)} in {baseline}",
                cure="Compare runs of one question",
                path=folder,
            )


def _check_same_truth(baseline: str, first: HeldOutPredictions, folder: str, second: HeldOutPredictions) -> None:
    same = [name for name in ("y_true", "event") if name in first.table]
    wrong = (first.table[same].to_numpy() != second.table[same].to_numpy()).any(axis=1)
    if wrong.any():
        names = first.table.patient_id[wrong].tolist()
        raise ConfigurationError(
            f"{counted(len(names), 'patient')} with another true value than in {baseline}: {shown(names)}",
            cure="Compare runs of the same labels",
            path=folder,
        )


def _common(runs: dict[str, HeldOutPredictions]) -> list[str]:
    sets = [set(run.table.patient_id) for run in runs.values()]
    common = sorted(set.intersection(*sets))
    if not common:
        raise ConfigurationError(f"no patient is in all of {', '.join(runs)}", cure="Compare runs on the same patients")
    return common


def _only(run: HeldOutPredictions, patients: list[str]) -> HeldOutPredictions:
    return HeldOutPredictions(run.table.set_index("patient_id").loc[patients].reset_index())


def _notes(folders: list[str], runs: dict[str, HeldOutPredictions], common: list[str]) -> list[str]:
    notes = [
        f"{folder}: {counted(len(run.table) - len(common), 'patient')} left out, not predicted by all runs"
        for folder, run in runs.items()
        if len(run.table) > len(common)
    ]
    hashes = {folder: RunFolder(Path(folder)).facts().get("splits_sha256") for folder in folders}
    other = [folder for folder in folders[1:] if hashes[folder] != hashes[folders[0]]]
    if other:
        notes.append(f"{', '.join(other)}: other folds than {folders[0]}, so part of the difference may be theirs")
    return notes


def _text(value: str | tuple[str, ...]) -> str:
    return value if isinstance(value, str) else ", ".join(value) or "none"

"""Which patients train and which test: made, read, checked for leaks, written and hashed."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedKFold

from mil.labels import Labels, slide_name
from mil.tables import read_table
from zoomfeat.errors import ConfigurationError
from zoomfeat.files import replacing
from zoomfeat.words import counted, shown

PARTS = ("train", "validation", "test")

_PART_NAMES = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}
_CLAM_FILE = re.compile(r"splits_(\w+)\.csv")
_STRATA = 5  # of a number to predict, by its quantiles


@dataclass(frozen=True)
class Fold:
    """One division of slides.

    Attributes:
        name: of the fold: a number, or the centre that is held out.
        train: slide ids.
        test: slide ids.
        validation: slide ids of a fixed split's own validation part.
        seed: the run that it belongs to; None for every run.
    """

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    validation: tuple[str, ...] = ()
    seed: int | None = None

    def parts(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Name and slides of each part."""
        yield from (("train", self.train), ("validation", self.validation), ("test", self.test))


@dataclass(frozen=True)
class Splits:
    """All folds of all runs.

    Attributes:
        folds: in their order.
        source: the file or folder that they were read from.
    """

    folds: tuple[Fold, ...]
    source: Path | None = None

    def of_seed(self, seed: int) -> tuple[Fold, ...]:
        """The folds of one run."""
        return tuple(fold for fold in self.folds if fold.seed in (None, seed))

    def table(self) -> pd.DataFrame:
        """Columns seed, fold, part, slide_id; the seed is empty where the folds hold for every run."""
        rows = [
            (fold.seed, fold.name, part, slide)
            for fold in self.folds
            for part, slides in fold.parts()
            for slide in sorted(slides)
        ]
        table = pd.DataFrame(rows, columns=["seed", "fold", "part", "slide_id"])
        return table.astype({"seed": "Int64"})

    @property
    def sha256(self) -> str:
        """Hash of the table: equal for equal splits, whatever the order of the slides."""
        return hashlib.sha256(self._csv().encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Writes the table as CSV; `load_splits` reads it."""
        with replacing(path) as temporary:
            temporary.write_text(self._csv(), encoding="utf-8")

    def _csv(self) -> str:
        text = io.StringIO()
        self.table().to_csv(text, index=False, lineterminator="\n")
        return text.getvalue()


def stratified_folds(labels: Labels, folds: int = 10, seeds: Sequence[int] = (0,)) -> Splits:
    """K folds by patient, each with about the same share of every class; each seed draws its own.

    Numbers are stratified by their quantiles, survival by whether the event happened.

    Args:
        labels: n slides.
        folds: how many.
        seeds: of the random draws, one a run.

    Raises:
        ConfigurationError: fewer patients than folds, in all or in the largest class.
    """
    patients = labels.patients
    if folds < 2:
        raise ConfigurationError(f"folds={folds}, expected at least 2", cure="The default is 10")
    strata = _strata(labels, folds)
    largest = int(np.bincount(strata).max())
    if largest < folds:
        which = "in all" if len(patients.names) < folds else f"of which no class has more than {largest}"
        raise ConfigurationError(
            f"{len(patients.names)} patients {which}, fewer than folds={folds}",
            cure=f"Use folds={max(2, largest)} or less",
            path=labels.path,
        )
    made = []
    for seed in seeds:
        splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a class smaller than the folds: metrics of folds say so
            rows = list(splitter.split(patients.names, strata))
        for number, (train, test) in enumerate(rows):
            made.append(
                _fold(labels, str(number), np.isin(patients.of_slide, train), np.isin(patients.of_slide, test), seed)
            )
    return Splits(tuple(made))


def center_folds(labels: Labels) -> Splits:
    """One fold a centre, which is the test set while all others train.

    Raises:
        ConfigurationError: no centres, one centre only, or a patient of two centres.
    """
    if labels.centers is None:
        raise ConfigurationError(
            "split=leave-one-center-out, but there is no column of centres",
            cure="Name it with center=, or center=tcga-site for TCGA barcodes",
            path=labels.path,
        )
    _check_filled(labels, labels.centers, "centre")
    names = np.unique(labels.centers)
    if len(names) < 2:
        raise ConfigurationError(
            f"one centre only ({names[0]}), expected several", cure="Use split=stratified", path=labels.path
        )
    pairs = pd.DataFrame({"patient": labels.patient_ids, "center": labels.centers}).drop_duplicates()
    several = pairs.patient[pairs.patient.duplicated()].unique()
    if len(several):
        raise ConfigurationError(
            f"{counted(len(several), 'patient')} with slides of several centres: {shown(several)}",
            cure="Give each patient one centre",
            path=labels.path,
        )
    return Splits(tuple(_fold(labels, name, labels.centers != name, labels.centers == name) for name in names.tolist()))


def column_folds(labels: Labels) -> Splits:
    """The folds of a column: the number of the test fold, or one split into train, val and test.

    Raises:
        ConfigurationError: no such column, or one value only.
    """
    if labels.folds is None:
        raise ConfigurationError(
            "split=column, but there is no column of folds", cure="Name it with fold_column=", path=labels.path
        )
    _check_filled(labels, labels.folds, "fold")
    names = np.unique(labels.folds).tolist()
    if {name.lower() for name in names} <= _PART_NAMES.keys():
        part = np.array([_PART_NAMES[name.lower()] for name in labels.folds.tolist()])
        return Splits((_fold(labels, "0", part == "train", part == "test", validation=part == "validation"),))
    if len(names) < 2:
        raise ConfigurationError(
            f"one fold only ({names[0]}), expected several", cure="Use another fold_column=", path=labels.path
        )
    return Splits(tuple(_fold(labels, name, labels.folds != name, labels.folds == name) for name in names))


def load_splits(path: str | Path, labels: Labels) -> Splits:
    """Fixed splits: a ``splits.csv`` of an earlier run, a CLAM ``splits_0.csv``, or a folder of those.

    Slides without a label or bag are left out.

    Raises:
        ConfigurationError: it is neither, or a part of a fold has no slide that has a label.
    """
    path = Path(path)
    known = set(labels.slide_ids.tolist())
    if path.is_dir():
        found = {match[1]: file for file in path.iterdir() if (match := _CLAM_FILE.fullmatch(file.name))}
        files = {
            name: found[name] for name in sorted(found, key=_natural) if not name.endswith(("_bool", "_descriptor"))
        }
        if not files:
            raise ConfigurationError(
                "no splits_0.csv in this folder", cure="Give the folder of CLAM's splits", path=path
            )
        folds = [_read_clam(file, read_table(file), name, known) for name, file in files.items()]
    else:
        table = read_table(path)
        match = _CLAM_FILE.fullmatch(path.name)
        folds = (
            list(_read_own(path, table, known))
            if {"fold", "part", "slide_id"} <= set(table)
            else [_read_clam(path, table, match[1] if match else "0", known)]
        )
    for fold in folds:
        for part, slides in fold.parts():
            if not slides and part != "validation":
                raise ConfigurationError(
                    f"fold {fold.name}: no slide of its {part} part is among the {len(known)} slides of the run",
                    cure="Check that the splits belong to these labels and bags",
                    path=path,
                )
    return Splits(tuple(folds), path)


def check_leaks(splits: Splits, labels: Labels) -> None:
    """Refuses splits in which a patient is in two parts of one fold.

    Raises:
        ConfigurationError: so it is; the first fold's shared patients are named.
    """
    patient_of = dict(zip(labels.slide_ids.tolist(), labels.patient_ids.tolist(), strict=True))
    leaks: list[tuple[Fold, str, list[str]]] = []
    for fold in splits.folds:
        patients = {part: {patient_of[slide] for slide in slides} for part, slides in fold.parts()}
        for first, second in (("train", "test"), ("validation", "test"), ("train", "validation")):
            shared = sorted(patients[first] & patients[second])
            if shared:
                leaks.append((fold, f"{first} and {second}", shared))
    if leaks:
        fold, where, shared = leaks[0]
        count = len({(fold.seed, fold.name) for fold, _, _ in leaks})
        raise ConfigurationError(
            f"{count} of {counted(len(splits.folds), 'fold')} with patients in two parts; in fold {fold.name}, "
            f"{counted(len(shared), 'patient')} in both {where}: {shown(shared, 20)}",
            cure="Split by patient, for example with split=stratified",
            path=splits.source or labels.path,
        )


def check_trainable(splits: Splits, labels: Labels) -> None:
    """Refuses folds whose training part lacks a class (or, for survival, has no event).

    Raises:
        ConfigurationError: so it is.
    """
    row_of = {name: row for row, name in enumerate(labels.slide_ids.tolist())}
    for fold in splits.folds:
        rows = np.array([row_of[slide] for slide in fold.train], dtype=np.intp)
        missing = set(labels.classes) - set(labels.y[rows].tolist()) if labels.classes else set()
        if missing or (labels.event is not None and not labels.event[rows].any()):
            lack = f"no slide of class {shown(sorted(missing))}" if missing else "no patient with the event"
            raise ConfigurationError(
                f"fold {fold.name} trains on {len(rows)} slides and {lack}",
                cure="Use fewer folds, other splits, or leave that class out with classes=",
                path=splits.source or labels.path,
            )


def _check_filled(labels: Labels, names: NDArray[np.str_], what: str) -> None:
    empty = labels.slide_ids[names == ""]
    if len(empty):
        raise ConfigurationError(
            f"{counted(len(empty), 'slide')} without a {what}: {shown(empty)}",
            cure=f"Give every slide its {what}",
            path=labels.path,
        )


def _strata(labels: Labels, folds: int) -> NDArray[np.intp]:
    patients = labels.patients
    if patients.event is not None:
        return patients.event.astype(np.intp)
    if labels.task == "classification":
        return np.unique(patients.y, return_inverse=True)[1]
    bins = max(1, min(_STRATA, len(patients.y) // folds))
    edges = np.quantile(patients.y, np.linspace(0, 1, bins + 1)[1:-1])
    return np.searchsorted(edges, patients.y, side="right")


def _fold(
    labels: Labels,
    name: str,
    train: NDArray[np.bool_],
    test: NDArray[np.bool_],
    seed: int | None = None,
    validation: NDArray[np.bool_] | None = None,
) -> Fold:
    def slides(rows: NDArray[np.bool_]) -> tuple[str, ...]:
        return tuple(labels.slide_ids[rows].tolist())

    return Fold(name, slides(train), slides(test), () if validation is None else slides(validation), seed)


def _read_clam(path: Path, table: pd.DataFrame, name: str, known: set[str]) -> Fold:
    if not {"train", "test"} <= set(table):
        raise ConfigurationError(
            f"columns {', '.join(table.columns[:8])}, expected train, val and test, or fold, part and slide_id",
            cure="Give CLAM's splits_0.csv or a splits.csv of an earlier run",
            path=path,
        )
    parts = {_PART_NAMES[column]: _known(table[column].dropna(), known) for column in table if column in _PART_NAMES}
    return Fold(name, parts["train"], parts["test"], parts.get("validation", ()))


def _read_own(path: Path, table: pd.DataFrame, known: set[str]) -> Iterator[Fold]:
    unknown = sorted(set(table.part) - set(PARTS))
    if unknown:
        raise ConfigurationError(f"split part {shown(unknown)}", cure=f"Parts are {', '.join(PARTS)}", path=path)
    seeds = table.seed.fillna("") if "seed" in table else pd.Series("", index=table.index)
    for (seed, name), rows in table.groupby([seeds, table.fold], sort=False):
        train, validation, test = (_known(rows.slide_id[rows.part == part], known) for part in PARTS)
        yield Fold(str(name), train, test, validation, int(str(seed)) if seed else None)


def _known(cells: Iterable[str], known: set[str]) -> tuple[str, ...]:
    names = [slide_name(cell) for cell in cells]
    return tuple(name for name in names if name in known)


def _natural(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdecimal() else (10**9, name)

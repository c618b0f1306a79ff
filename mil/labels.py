"""The table of labels: which slide shows which patient, and what is to be predicted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mil.tables import class_names, column, events, numbers, read_table, require
from zoomfeat.errors import ConfigurationError
from zoomfeat.slides.cohort import SLIDE_SUFFIXES
from zoomfeat.words import counted, shown

BAG_SUFFIXES = (".h5", ".hdf5", ".pt")
"""What the file of a bag ends in; where a slide has several, the first one is taken."""

TASKS = ("classification", "regression", "survival")

TCGA_SITE = "tcga-site"
"""As the name of the centre's column: the tissue source site, second field of a TCGA barcode."""

_SLIDE_NAMES = ("slide_id", "slide", "ID")  # as CLAM, slideflow and the Democratizing-WSI tables call them
_PATIENT_NAMES = ("patient_id", "case_id", "patient")
_SUFFIXES = (".ome.tif", ".ome.tiff", *SLIDE_SUFFIXES, *BAG_SUFFIXES)


@dataclass(frozen=True)
class Columns:
    """Which column means what.

    Attributes:
        label: what is to be predicted; without meaning for survival.
        slide: the slide; the usual other names (slide, ID) are found too.
        patient: the patient; the usual other names (case_id, patient) are found too.
        time: survival: time until the event or the end of observation.
        event: survival: 1 where the event happened, 0 where the patient was censored.
        center: where a slide comes from, or ``tcga-site``; read where it exists.
        fold: test fold, or train, val, test; read where it exists.
    """

    label: str = "label"
    slide: str = "slide_id"
    patient: str = "patient_id"
    time: str = "time"
    event: str = "event"
    center: str = "center"
    fold: str = "fold"


@dataclass(frozen=True, eq=False)
class Labels:
    """Slides with a label, n of them, in the order of their table.

    Attributes:
        path: the table, for messages.
        task: ``classification``, ``regression`` or ``survival``.
        slide_ids: (n,) names without the suffix of a file.
        patient_ids: (n,) names.
        y: (n,) class names, or float64 values: the number to predict, or the time of the event or of censoring.
        event: (n,) bool, survival only: whether the event happened.
        centers: (n,) names, where the table has them; empty where a cell is.
        folds: (n,) names, likewise.
        classes: classification: their order; of two, the second is the positive one.
        unlabelled: rows of the table without a label, which are left out.
    """

    path: Path
    task: str
    slide_ids: NDArray[np.str_]
    patient_ids: NDArray[np.str_]
    y: NDArray[Any]
    event: NDArray[np.bool_] | None = None
    centers: NDArray[np.str_] | None = None
    folds: NDArray[np.str_] | None = None
    classes: tuple[str, ...] = ()
    unlabelled: int = 0

    def __len__(self) -> int:
        """Number of slides."""
        return len(self.slide_ids)

    def take(self, rows: NDArray[np.intp]) -> Self:
        """The labels of some slides."""
        arrays = {
            entry.name: getattr(self, entry.name)[rows]
            for entry in fields(self)
            if isinstance(getattr(self, entry.name), np.ndarray)
        }
        return replace(self, **arrays)

    @property
    def patients(self) -> Patients:
        """The same by patient."""
        names, first, of_slide = np.unique(self.patient_ids, return_index=True, return_inverse=True)
        return Patients(names, of_slide, self.y[first], None if self.event is None else self.event[first])


@dataclass(frozen=True, eq=False)
class Patients:
    """The m patients of some labels, sorted by name.

    Attributes:
        names: (m,).
        of_slide: (n,) int, the patient of each slide.
        y: (m,) their labels.
        event: (m,) bool, survival only.
    """

    names: NDArray[np.str_]
    of_slide: NDArray[np.intp]
    y: NDArray[Any]
    event: NDArray[np.bool_] | None


def slide_name(name: str) -> str:
    """The name of a slide or bag without the suffix of a file; other dots stay (``TCGA-A7-A6VV.07AE0E16.svs``)."""
    for suffix in _SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def read_labels(
    path: str | Path,
    columns: Columns | None = None,
    *,
    task: str = "classification",
    classes: Sequence[str] = (),
    slide_table: str | Path | None = None,
    center_names: str | Path | None = None,
) -> Labels:
    """Reads a table of labels.

    Args:
        path: CSV (comma, semicolon or tab) or Parquet; a row a slide, or a row a patient where `slide_table` is given.
        columns: which column means what.
        task: ``classification``, ``regression`` or ``survival``.
        classes: take only these, in this order; all, sorted, where none is named.
        slide_table: the slides of each patient (slide and patient columns, perhaps fold and centre), for a table of
            labels that has one row a patient.
        center_names: a table whose first two columns translate codes of centres to names; codes of one name are then
            one centre.

    Raises:
        ConfigurationError: a column is missing, a slide is listed twice, a patient has two labels, there is one class
            only, a value is no number.
    """
    path, columns = Path(path), columns or Columns()
    if task not in TASKS:
        raise ConfigurationError(f"no task {task!r}", cure=f"Use one of {', '.join(TASKS)}")
    table = read_table(path)
    wanted = [columns.time, columns.event] if task == "survival" else [columns.label]
    for name in wanted:
        require(table, name, path, "the label" if name == columns.label else "survival")
    if slide_table is not None:
        table = _spread(table, wanted, path, Path(slide_table), columns)
    slide = column(table, columns.slide, _SLIDE_NAMES, path, "slide_column")
    patient = column(table, columns.patient, _PATIENT_NAMES, path, "patient_column")
    labels = _labels(table, path, columns, task, slide, patient, tuple(classes))
    if center_names is not None and labels.centers is not None:
        labels = replace(labels, centers=_translated(labels.centers, Path(center_names)))
    _check_unique(labels)
    _check_consistent(labels)
    check_classes(labels)
    return labels


def check_classes(labels: Labels, which: str = "") -> None:
    """Refuses labels of which nothing can be learned: one class or value only, a class without slides, no events.

    Args:
        labels: to be checked.
        which: ends the description of the problem, for example `` among the slides that have bags``.

    Raises:
        ConfigurationError: so it is.
    """
    found = np.unique(labels.y)
    missing = sorted(set(labels.classes) - set(found.tolist()))
    if labels.event is not None and not labels.event.any():
        problem = "no patient has the event"
    elif len(found) == 1:
        problem = f"one {'class' if labels.task == 'classification' else 'value'} only ({found[0]})"
    elif missing:
        problem = f"no slide of class {shown(missing)}"
    else:
        return
    raise ConfigurationError(f"{problem}{which}", cure="Check label=, classes= and the bags", path=labels.path)


def _spread(table: pd.DataFrame, wanted: list[str], path: Path, slide_path: Path, columns: Columns) -> pd.DataFrame:
    """A table by patient as one by slide."""
    patient = column(table, columns.patient, _PATIENT_NAMES, path, "patient_column")
    slides = read_table(slide_path)
    usual = columns.patient if columns.patient in slides else _PATIENT_NAMES[0]
    slide_patient = column(slides, usual, _PATIENT_NAMES, slide_path, "patient_column")
    repeated = table[patient][table[patient].duplicated()]
    if len(repeated):
        raise ConfigurationError(
            f"{counted(len(repeated), 'patient')} listed twice: {shown(repeated.tolist())}",
            cure="With slide_table= the labels have one row a patient",
            path=path,
        )
    own = [column for column in slides if column not in wanted]
    merged = slides[own].merge(
        table[[patient, *wanted]].rename(columns={patient: slide_patient}), on=slide_patient, how="left"
    )
    if slide_patient != columns.patient and columns.patient not in merged:
        merged = merged.rename(columns={slide_patient: columns.patient})
    return merged


def _labels(
    table: pd.DataFrame, path: Path, columns: Columns, task: str, slide: str, patient: str, classes: tuple[str, ...]
) -> Labels:
    for name in (slide, patient):
        if table[name].isna().any():
            row = int(table[name].isna().to_numpy().argmax()) + 2  # line 1 is the header
            raise ConfigurationError(f"row {row} has no {name}", cure="Fill it in or remove the row", path=path)
    wanted = [columns.time, columns.event] if task == "survival" else [columns.label]
    keep = table[wanted].notna().all(axis=1)
    if task == "classification":
        names = class_names(table[columns.label])
        if classes:
            keep &= names.isin(classes)
        y: NDArray[Any] = names[keep].to_numpy(dtype=str)
    else:
        y = numbers(table.loc[keep, wanted[0]], path)
    used = table[keep]
    if used.empty:
        raise ConfigurationError(
            f"no row has a value of {', '.join(wanted)}" + (f" among {', '.join(classes)}" if classes else ""),
            cure="Check label= and classes=",
            path=path,
        )
    patients = used[patient].to_numpy(dtype=str)
    return Labels(
        path=path,
        task=task,
        slide_ids=np.array([slide_name(name) for name in used[slide]]),
        patient_ids=patients,
        y=y,
        event=events(used[columns.event], path) if task == "survival" else None,
        centers=_centers(used, columns.center, patients, path),
        folds=class_names(used[columns.fold]).fillna("").to_numpy(dtype=str) if columns.fold in used else None,
        classes=(classes or _sorted_classes(y)) if task == "classification" else (),
        unlabelled=int((~keep).sum()),
    )


def _sorted_classes(y: NDArray[Any]) -> tuple[str, ...]:
    names = np.unique(y).tolist()
    try:
        return tuple(sorted(names, key=float))
    except ValueError:
        return tuple(names)


def _centers(table: pd.DataFrame, name: str, patients: NDArray[np.str_], path: Path) -> NDArray[np.str_] | None:
    if name != TCGA_SITE:
        return table[name].fillna("").to_numpy(dtype=str) if name in table else None
    parts = [patient.split("-") for patient in patients.tolist()]
    wrong = {p for p, part in zip(patients.tolist(), parts, strict=True) if len(part) < 3 or part[0] != "TCGA"}
    if wrong:
        raise ConfigurationError(
            f"center={TCGA_SITE}, but {counted(len(wrong), 'patient')} without a TCGA barcode: {shown(sorted(wrong))}",
            cure="Give a column of centres",
            path=path,
        )
    return np.array([part[1] for part in parts])


def _translated(centers: NDArray[np.str_], path: Path) -> NDArray[np.str_]:
    table = read_table(path)
    if table.shape[1] < 2:
        raise ConfigurationError("one column, expected codes and names", cure="Give a table of both", path=path)
    names = dict(zip(table.iloc[:, 0], table.iloc[:, 1], strict=True))
    unknown = sorted(set(centers.tolist()) - {"", *names.keys()})
    if unknown:
        raise ConfigurationError(f"no name for the centres {shown(unknown)}", cure="Add them", path=path)
    return np.array([names.get(code, "") for code in centers.tolist()])


def _check_unique(labels: Labels) -> None:
    twice = [name for name, count in Counter(labels.slide_ids.tolist()).items() if count > 1]
    if twice:
        raise ConfigurationError(
            f"{counted(len(twice), 'slide')} listed twice: {shown(twice)}",
            cure="Keep one row a slide",
            path=labels.path,
        )


def _check_consistent(labels: Labels) -> None:
    """A patient is one unit of evaluation, so all slides of a patient must say the same."""
    patients = labels.patients
    wrong = labels.y != patients.y[patients.of_slide]
    if labels.event is not None and patients.event is not None:
        wrong = wrong | (labels.event != patients.event[patients.of_slide])
    if wrong.any():
        names = np.unique(labels.patient_ids[wrong])
        first = np.unique(labels.y[labels.patient_ids == names[0]])
        raise ConfigurationError(
            f"{counted(len(names), 'patient')} with different labels: {shown(names)} ({names[0]}: {shown(first)})",
            cure="Give each patient one label, or patient_column= the column of slides where slides are the units",
            path=labels.path,
        )

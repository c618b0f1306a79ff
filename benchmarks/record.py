"""The result record: one JSON file for a task, an encoder, a magnification and a head, with every prediction in it.

Whoever reads a record can compute its metrics again: `benchmarks.recomputation`, which the benchmark fills them by.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from mil.held_out import PROBABILITY, HeldOutPredictions
from mil.metrics import LEVEL, Estimate
from zoomfeat.errors import ZoomfeatError
from zoomfeat.files import replacing

SCHEMA: Literal[1] = 1

BY_FOLD = "_by_fold"
"""What the name of a metric ends in where it is the mean over the test folds; else it is of all predictions."""

Kind = Literal["classification", "generation", "superres"]

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


class RecordInvalidError(ZoomfeatError):
    """A file that is no result record, or whose metrics do not follow from its predictions."""


@dataclass(frozen=True, config=_STRICT)
class TaskFacts:
    """What was asked.

    Attributes:
        name: of the task.
        version: SHA-256 of its definition, so that results of a changed task are not compared with older ones.
        kind: ``classification``, ``generation`` or ``superres``.
        metric: that ranks, a key of `Record.metrics`.
        higher_is_better: of that metric.
        classes: in order; of two, the second is the positive one. Empty for other kinds.
    """

    name: str
    version: str
    kind: Kind
    metric: str
    higher_is_better: bool
    classes: tuple[str, ...] = ()


@dataclass(frozen=True, config=_STRICT)
class EncoderFacts:
    """What made the features, or for generation the images; None where it is not known.

    Attributes:
        name: in the registry, or as its bags state it.
        weights_hash: SHA-256 of its weights, ``none`` where it has none.
        settings: what else decides its features.
        note: what a reader must know, for example that its weights are random.
        licence: of its weights.
        parameters: how many.
        flops_per_patch: floating-point operations for one patch.
        dim: length of a feature vector, of one magnification.
    """

    name: str
    weights_hash: str | None = None
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    note: str = ""
    licence: str | None = None
    parameters: int | None = None
    flops_per_patch: float | None = None
    dim: int | None = None


@dataclass(frozen=True, config=_STRICT)
class HeadFacts:
    """What made predictions of the features.

    Attributes:
        name: of the head.
        settings: of its training.
    """

    name: str
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, config=_STRICT)
class Interval:
    """A value with its interval; None where it is undefined.

    Attributes:
        value: of the sample.
        low: lower end.
        high: upper end.
        level: of the interval.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    level: float = LEVEL

    @classmethod
    def of(cls, estimate: Estimate) -> Self:
        """From numbers of which some may be NaN."""
        value, low, high = (float(x) if np.isfinite(x) else None for x in (estimate.value, estimate.low, estimate.high))
        return cls(value, low, high)

    def __str__(self) -> str:
        if self.value is None:
            return "undefined"
        ends = "" if self.low is None or self.high is None else f" [{self.low:.3f}, {self.high:.3f}]"
        return f"{self.value:.3f}{ends}"


@dataclass(frozen=True, config=_STRICT)
class Prediction:
    """Of a patient who was not trained on.

    Attributes:
        patient: name.
        slide: names of the patient's slides, separated by ``;``.
        fold: that the patient was tested in.
        run: number of the repeat, which is the seed of its training.
        label: true class.
        probabilities: (classes,) in their order.
    """

    patient: str
    slide: str
    fold: str
    run: int
    label: str
    probabilities: tuple[float, ...]


@dataclass(frozen=True, config=_STRICT)
class Measurement:
    """Of one image, or of a set of images (tasks that are no classification).

    Attributes:
        name: of the image or set.
        of: ``image`` or ``set``.
        values: metric to value.
        intervals: of a set, metric to both ends; what a distance of two sets follows from is not in the record.
    """

    name: str
    of: Literal["image", "set"]
    values: dict[str, float]
    intervals: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, config=_STRICT)
class Cost:
    """What it took, by the hardware of the record; None where it was not measured, as with bags that were given.

    Attributes:
        patches_per_second: of extraction, reading included; images a second for generation.
        extraction_seconds: of all slides.
        bytes_per_slide: mean size of a bag.
        training_seconds: of all folds and runs, predictions included.
        peak_memory_bytes: most memory that the process held.
    """

    patches_per_second: float | None = None
    extraction_seconds: float | None = None
    bytes_per_slide: float | None = None
    training_seconds: float | None = None
    peak_memory_bytes: int | None = None


@dataclass(frozen=True, config=_STRICT)
class Record:
    """One result.

    Attributes:
        task: what was asked.
        encoder: what made the features, or the images.
        magnification: ``20x``, or ``20x+5x`` for the features of both beside each other.
        head: None for tasks without training.
        configuration: what else decides the result: seeds, folds, hashes of labels, splits and bags.
        predictions: of a classification `Prediction`, else `Measurement`.
        metrics: name to value with interval; see `recomputed`.
        extra: what does not follow from the predictions, for example how well attention finds lesions.
        cost: of the run.
        hardware: processor, GPU, memory.
        software: versions.
        created: UTC, ISO 8601.
        submitter: free text.
        hash: SHA-256 of all the rest, see `content_hash`; empty until `sealed`.
        schema: of this layout.
    """

    task: TaskFacts
    encoder: EncoderFacts
    magnification: str
    head: HeadFacts | None
    configuration: dict[str, Any]
    predictions: tuple[Prediction, ...] | tuple[Measurement, ...]
    metrics: dict[str, Interval]
    extra: dict[str, Interval] = dataclasses.field(default_factory=dict)
    cost: Cost = dataclasses.field(default_factory=Cost)
    hardware: dict[str, Any] = dataclasses.field(default_factory=dict)
    software: dict[str, Any] = dataclasses.field(default_factory=dict)
    created: str = ""
    submitter: str = ""
    hash: str = ""
    schema: Literal[1] = SCHEMA

    @property
    def label(self) -> str:
        """One line that tells it from other results of its task: encoder, magnification, head."""
        return " ".join([self.encoder.name, self.magnification, *([self.head.name] if self.head else [])])

    @property
    def file_name(self) -> str:
        """Of its JSON."""
        return record_file(self.task.name, self.encoder.name, self.magnification, self.head.name if self.head else None)

    @property
    def content_hash(self) -> str:
        """SHA-256 of the canonical JSON (sorted keys, no spaces) of everything but ``hash``."""
        content = {name: value for name, value in dataclasses.asdict(self).items() if name != "hash"}
        return hashlib.sha256(canonical(content).encode()).hexdigest()

    def sealed(self) -> Self:
        """The same with its hash filled in."""
        return dataclasses.replace(self, hash=self.content_hash)

    def save(self, folder: Path) -> Path:
        """Seals it and writes it into a folder under its `file_name`, whole or not at all; gives the path."""
        path = folder / self.file_name
        with replacing(path) as temporary:
            temporary.write_text(canonical(dataclasses.asdict(self.sealed())) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: Path) -> Record:
        """Reads a record and checks its layout; neither its hash nor its metrics.

        Raises:
            RecordInvalidError: not readable, of another schema, with fields missing, unknown or of another type.
        """
        try:
            return _ADAPTER.validate_json(path.read_bytes())
        except OSError as error:
            raise RecordInvalidError(f"not readable ({error.strerror})", cure="Check the path", path=path) from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise RecordInvalidError(
                f"no result record of schema {SCHEMA}: {where}: {first['msg']}",
                cure="Give a JSON file that `zoomfeat benchmark` wrote",
                path=path,
            ) from error


_ADAPTER = TypeAdapter(Record)


def canonical(value: Any) -> str:
    """JSON that is the same for equal values: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def record_file(task: str, encoder: str, magnification: str, head: str | None) -> str:
    """The name of a record's file."""
    return "__".join([task, encoder, magnification, *([head] if head else [])]) + ".json"


def held_out(record: Record) -> HeldOutPredictions:
    """The predictions as `mil` takes them: for its metrics and its paired tests.

    Raises:
        RecordInvalidError: no predictions of patients, a class that the task does not have, or another number of
            probabilities than it has classes.
    """
    classes = record.task.classes
    rows = [each for each in record.predictions if isinstance(each, Prediction)]
    if not rows or len(rows) < len(record.predictions):
        raise RecordInvalidError("a classification without predictions", cure="Make the record again")
    for row in rows:
        if len(row.probabilities) != len(classes) or row.label not in classes:
            raise RecordInvalidError(
                f"patient {row.patient}: label {row.label!r} and {len(row.probabilities)} probabilities, expected "
                f"one of {', '.join(classes)} and {len(classes)}",
                cure="Make the record again",
            )
    columns = {
        "patient_id": [row.patient for row in rows],
        "slide_ids": [row.slide for row in rows],
        "seed": [row.run for row in rows],
        "fold": [row.fold for row in rows],
        "y_true": [row.label for row in rows],
        **{PROBABILITY + name: [row.probabilities[i] for row in rows] for i, name in enumerate(classes)},
    }
    return HeldOutPredictions(pd.DataFrame(columns))


def predictions_of(table: HeldOutPredictions) -> tuple[Prediction, ...]:
    """The inverse of `held_out`."""
    return tuple(
        Prediction(
            str(row["patient_id"]),
            str(row["slide_ids"]),
            str(row["fold"]),
            int(row["seed"]),
            str(row["y_true"]),
            tuple(float(row[name]) for name in table.scores),
        )
        for row in table.table.to_dict("records")
    )


def load_records(folder: Path) -> list[Record]:
    """All records of a folder, sorted by the names of their files.

    Raises:
        RecordInvalidError: no such folder, none in it, or a file that is none.
    """
    paths = sorted(folder.glob("*.json")) if folder.is_dir() else []
    if not paths:
        raise RecordInvalidError("no records (.json) here", cure="Make some with `zoomfeat benchmark`", path=folder)
    return [Record.load(path) for path in paths]

"""Runs a classification task: bags, folds, heads; every result a record, and what is done is not done again."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import platform
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from benchmarks.bags import EncoderBags, content_sha256, extract_bags, given_bags, open_given
from benchmarks.localisation import attention_auroc
from benchmarks.recomputation import recomputed
from benchmarks.record import (
    HeadFacts,
    Interval,
    Record,
    RecordInvalidError,
    TaskFacts,
    canonical,
    predictions_of,
    record_file,
)
from benchmarks.tasks import Task
from benchmarks.tasks.cohorts import CohortFiles, provide_cohort
from mil.crossval import Study, cross_validate, open_study
from mil.heads import head_names
from mil.labels import read_labels
from mil.runs import RunFolder, environment
from zoomfeat.conf.schema import BenchmarkConfig, CrossvalConfig, EngineConfig
from zoomfeat.encoders import encoder_names
from zoomfeat.engines import Engine, open_engine
from zoomfeat.errors import ConfigurationError, ZoomfeatError
from zoomfeat.files import file_sha256, make_folder
from zoomfeat.magnification import parse
from zoomfeat.run_folder import now

PLUS = "+"
"""Between the magnifications of fused features: ``20x+5x``."""


@dataclass(frozen=True)
class Outcome:
    """What a run left.

    Attributes:
        records: of all results that were asked for and could be made.
        failures: what could not, a line each.
    """

    records: tuple[Record, ...]
    failures: tuple[str, ...]


@dataclass(frozen=True)
class Cell:
    """One result to be made.

    Attributes:
        encoder: name.
        magnification: ``20x`` or ``20x+5x``.
        head: name.
    """

    encoder: str
    magnification: str
    head: str

    @property
    def scales(self) -> tuple[str, ...]:
        """The magnifications, finest first."""
        return scales_of(self.magnification)

    def __str__(self) -> str:
        return f"{self.encoder} {self.magnification} {self.head}"


def run_classification(task: Task, config: BenchmarkConfig, folder: Path, console: Console) -> Outcome:
    """Makes every record of encoders x magnifications x heads that is not there yet.

    Args:
        task: of kind classification, with its protocol as it will run.
        config: of the command; encoders, heads and magnifications are filled in.
        folder: of the task.
        console: where progress is shown.

    Raises:
        ConfigurationError: what cannot run, before anything is extracted or trained.
    """
    for magnification in config.magnifications:
        scales_of(magnification)
    if unknown := [head for head in config.heads if head not in head_names()]:
        raise ConfigurationError(f"no head {unknown[0]!r}", cure=f"Use some of {', '.join(head_names())}")
    given = None if config.bags is None else given_bags(config.bags, config.encoders)
    if given is None and (unknown := [name for name in config.encoders if name not in encoder_names()]):
        raise ConfigurationError(
            f"no encoder {unknown[0]!r}", cure=f"Use some of {', '.join(encoder_names())}, or give its bags="
        )
    cohort = provide_cohort(task, folder, config.data, config.slides, console)
    if given is None and cohort.slides is None:
        raise ConfigurationError(f"{task.name} needs slides= or bags=", cure=f"To be had: {task.access}")
    bags, failures = _open_bags(given, cohort, config, folder, console)
    records: list[Record] = []
    trained = EngineConfig("local") if config.code else config.engine  # only this process knows the heads of code=
    with open_engine(trained, folder) as engine:
        for name, of_encoder in bags.items():
            for cell in (Cell(name, *rest) for rest in itertools.product(config.magnifications, config.heads)):
                try:
                    records.append(_make(cell, task, of_encoder, cohort, config, folder, engine, console))
                except ZoomfeatError as error:
                    failures.append(f"{cell}: {error}")
    return Outcome(tuple(records), tuple(failures))


def scales_of(magnification: str) -> tuple[str, ...]:
    """``20x+5x`` as its parts, finest first.

    Raises:
        MagnificationError: a part is unknown or named twice.
    """
    return tuple(str(m) for m in parse(magnification.split(PLUS)))


def extracted_magnifications(magnifications: Sequence[str]) -> list[str]:
    """All parts that occur, finest first."""
    return [str(m) for m in parse(sorted({part for name in magnifications for part in scales_of(name)}))]


def facts_of(task: Task) -> TaskFacts:
    """The task as records state it."""
    return TaskFacts(task.name, task.version, task.kind, task.metric, task.higher_is_better, task.classes)


def hardware() -> dict[str, Any]:
    """Processor, memory and GPU."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"processor": _processor(), "cores": os.cpu_count(), "memory_bytes": memory, "gpu": gpu}


def peak_memory_bytes() -> int:
    """The most memory that this process has held so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def kept(path: Path, key: str) -> Record | None:
    """The record in a file, if it is of the same inputs."""
    try:
        record = Record.load(path)
    except RecordInvalidError:
        return None
    same = record.configuration.get("key") == key and record.content_hash == record.hash
    return record if same else None


def _open_bags(
    given: dict[str, Path] | None, cohort: CohortFiles, config: BenchmarkConfig, folder: Path, console: Console
) -> tuple[dict[str, EncoderBags], list[str]]:
    """The bags of each encoder, and what failed."""
    if given is None:
        return extract_bags(cohort, config, extracted_magnifications(config.magnifications), folder / "bags", console)
    found, failures = {}, []
    for name, place in given.items():
        try:
            found[name] = open_given(name, place)
        except ZoomfeatError as error:
            failures.append(f"{name}: {error}")
    return found, failures


def _make(
    cell: Cell,
    task: Task,
    bags: EncoderBags,
    cohort: CohortFiles,
    config: BenchmarkConfig,
    folder: Path,
    engine: Engine,
    console: Console,
) -> Record:
    """One record: the one that is there, or trained."""
    labels = read_labels(cohort.labels, classes=task.classes)
    inputs = {
        "task": task.version,
        "labels_sha256": file_sha256(cohort.labels),
        "bags_sha256": content_sha256(bags.folder, labels.slide_ids.tolist(), cell.scales, folder / "hashes.json"),
        "encoder": [bags.encoder.name, bags.encoder.weights_hash, bags.encoder.settings],
        "scales": list(cell.scales),
        "head": cell.head,
    }
    crossval = _crossval(cell, task, bags, cohort, config)
    if Path(crossval.split).exists():
        inputs["split_sha256"] = _tree_sha256(Path(crossval.split))
    key = hashlib.sha256(canonical(inputs).encode()).hexdigest()
    path = make_folder(folder / "records") / record_file(task.name, cell.encoder, cell.magnification, cell.head)
    if (record := kept(path, key)) is not None:
        console.print(f"[bold]{escape(str(cell))}[/]: done before", highlight=False)
        return record
    console.print(f"[bold]{escape(str(cell))}[/]", highlight=False)
    crossval.out = str(folder / "runs" / f"{cell.encoder}__{cell.magnification}__{cell.head}__{key[:12]}")
    study = open_study(crossval)
    fresh, start = RunFolder(Path(crossval.out)).done() is None, time.perf_counter()
    predictions = cross_validate(crossval, study, console, engine)
    seconds = time.perf_counter() - start if fresh else None  # of a run that went on the first part is not known
    memory = peak_memory_bytes() if config.engine.name == "local" else None  # that of workers is not known
    record = Record(
        task=facts_of(task),
        encoder=bags.encoder,
        magnification=cell.magnification,
        head=HeadFacts(cell.head, task.protocol.training | {"fusion": "early"}),
        configuration={**inputs, **_facts(study, task), "key": key},
        predictions=predictions_of(predictions),
        metrics={},
        extra=_extra(crossval, cohort),
        cost=dataclasses.replace(bags.cost, training_seconds=seconds, peak_memory_bytes=memory),
        hardware=hardware(),
        software=environment(),
        created=now(),
        submitter=config.submitter,
    )
    record = dataclasses.replace(record, metrics=recomputed(record)).sealed()
    record.save(path.parent)
    return record


def _crossval(
    cell: Cell, task: Task, bags: EncoderBags, cohort: CohortFiles, config: BenchmarkConfig
) -> CrossvalConfig:
    named = [name for name in cell.scales if name]
    return CrossvalConfig(
        bags=str(bags.folder),
        labels=str(cohort.labels),
        out="",
        classes=list(task.classes),
        split=cohort.split,
        folds=task.protocol.folds,
        seeds=list(task.protocol.seeds),
        patient_column="slide_id" if task.protocol.unit == "slide" else "patient_id",
        head=cell.head,
        scales=named,
        device=config.device,
        **task.protocol.training,
    )


def _facts(study: Study, task: Task) -> dict[str, Any]:
    """What the predictions rest on besides the features."""
    patients = study.cohort.patients
    return {
        "seeds": list(task.protocol.seeds),
        "splits_sha256": study.splits.sha256,
        "unit": task.protocol.unit,
        "patients": len(patients.names),
        "slides": len(study.cohort),
        "slides_without_bag": len(study.report.without_bag),
    }


def _extra(crossval: CrossvalConfig, cohort: CohortFiles) -> dict[str, Interval]:
    if cohort.truth is None:
        return {}
    return attention_auroc(Path(crossval.out), Path(crossval.bags), cohort.labels, cohort.truth)


def _tree_sha256(path: Path) -> str:
    files = sorted(path.glob("*.csv")) if path.is_dir() else [path]
    return hashlib.sha256("".join(f"{file.name} {file_sha256(file)}\n" for file in files).encode()).hexdigest()


def _processor() -> str:
    """The name of the processor, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")

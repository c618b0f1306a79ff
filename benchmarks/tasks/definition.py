"""What a task is: its question, its data, its protocol and the published numbers, read from a YAML file and checked."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
from collections.abc import Iterable
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from benchmarks.record import BY_FOLD, Kind, canonical
from zoomfeat.conf.schema import CrossvalConfig, explanations
from zoomfeat.errors import ConfigurationError

FOLDER = Path(__file__).parent

Cohort = Literal["table", "phantom", "luad_lusc_regions", "patch_folders", "large_regions", "restored_regions"]

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=_STRICT)
class Published:
    """A number from a publication.

    Attributes:
        row: the method as the publication calls it.
        value: in the unit of our metrics (an AUROC of 94.09 % is 0.9409).
        source: where it stands.
        magnification: as in a record; of an image larger than a patch, that of the patch which covers it.
        metric: of our metrics; where a file names none, the one that ranks the task.
        encoder: our name of the method; None where we have none.
    """

    row: str
    value: float
    source: str
    magnification: str
    metric: str = ""
    encoder: str | None = None


@dataclass(frozen=True, config=_STRICT)
class Protocol:
    """How a classification is cross-validated.

    Attributes:
        split: ``stratified`` (drawn by patient), ``column`` (the table's ``fold``), or the name of a folder of CLAM
            splits beside the table.
        folds: of ``stratified``.
        seeds: one whole cross-validation each.
        unit: ``patient``; ``slide`` takes every slide for a patient of its own, so that patients may be shared.
        training: other keys of `zoomfeat crossval`, the same for every head.
    """

    split: str = "stratified"
    folds: int = 10
    seeds: tuple[int, ...] = (0,)
    unit: Literal["patient", "slide"] = "patient"
    training: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, config=_STRICT)
class Task:
    """A benchmark task.

    Attributes:
        name: as the command line knows it.
        title: one line.
        kind: ``classification``, ``generation`` or ``superres``.
        metric: that ranks; of a classification ``auroc`` is of all predictions together, ``auroc_by_fold`` the mean
            over the test folds.
        higher_is_better: of that metric.
        source: of the data.
        licence: of the data.
        access: how to get them.
        cohort: what provides them: ``table`` (labels in a file, bags or slides of the user), ``phantom`` (drawn on
            demand), ``luad_lusc_regions`` (one archive); of generation tasks what is drawn and held against what:
            ``patch_folders``, ``large_regions``, ``restored_regions``.
        labels: of a table: its file, looked for in ``data=`` and beside the definition.
        size: of the phantom: how many slides.
        seed: of the phantom: what its slides are drawn from.
        classes: in order; of two, the second is the positive one.
        encoders: by default; of a generation task the models.
        magnifications: by default.
        heads: by default.
        protocol: of a classification.
        primary: pairs of magnifications that the task is about; their tests are a family of their own.
        warning: what stands above every table of it.
        patients_sha256: of the whole cohort's patients and labels, see `patients_sha256`; None where not fixed.
        published: numbers to hold ours against.
        path: the file that it was read from.
    """

    name: str
    title: str
    kind: Kind
    metric: str
    higher_is_better: bool
    source: str
    licence: str
    access: str
    cohort: Cohort
    encoders: tuple[str, ...]
    magnifications: tuple[str, ...]
    labels: str = ""
    size: int | None = None
    seed: int | None = None
    classes: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    protocol: Protocol = Protocol()
    primary: tuple[tuple[str, str], ...] = ()
    warning: str = ""
    patients_sha256: str | None = None
    published: tuple[Published, ...] = ()
    path: Path | None = None

    @property
    def version(self) -> str:
        """SHA-256 of what decides a result; titles, defaults, planned tests and published numbers do not."""
        decisive = ["name", "kind", "metric", "higher_is_better", "cohort", "labels", "size", "classes", "protocol"]
        if self.seed is not None:  # the versions of tasks without one stay what they were
            decisive.append("seed")
        definition = {name: value for name, value in dataclasses.asdict(self).items() if name in decisive}
        return hashlib.sha256(canonical(definition).encode()).hexdigest()

    @property
    def compared(self) -> str:
        """The metric of paired tests, which are of each patient's prediction and know no folds."""
        return self.metric.removesuffix(BY_FOLD)


_ADAPTER = TypeAdapter(Task)


def task_names() -> list[str]:
    """The tasks that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_task(name: str) -> Task:
    """Reads a task by name, or from the path of a YAML file.

    Raises:
        ConfigurationError: no such task, or a file that defines none.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if not path.is_file():
        near = difflib.get_close_matches(name, task_names(), n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise ConfigurationError(
            f"no task {name!r}", cure=f"{hint}Use one of {', '.join(task_names())}, or the path of a YAML file"
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        task = _ADAPTER.validate_python(content)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(
            f"not readable as YAML ({' '.join(str(error).split())})", cure="See docs/benchmarks.md", path=path
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ConfigurationError(
            f"no task: {where}: {first['msg']}", cure="See docs/benchmarks.md, or a task of the package", path=path
        ) from error
    _check(task, path)
    published = tuple(dataclasses.replace(each, metric=each.metric or task.metric) for each in task.published)
    return dataclasses.replace(task, path=path, published=published)


def patients_sha256(patients: Iterable[tuple[str, str]]) -> str:
    """SHA-256 of who was asked for and what is true: distinct ``patient,label`` lines, sorted."""
    lines = sorted({f"{patient},{label}\n" for patient, label in patients})
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _check(task: Task, path: Path) -> None:
    problem = ""
    settable = explanations(CrossvalConfig).keys() - {"bags", "labels", "out", "head", "scales", "seeds", "split"}
    if unknown := sorted(task.protocol.training.keys() - settable):
        problem = f"protocol.training: {unknown[0]} is no key of crossval that a task may set"
    elif task.kind == "classification" and (len(task.classes) < 2 or not task.heads):
        problem = "a classification without classes or heads"
    elif task.cohort == "table" and not task.labels:
        problem = "cohort: table without labels"
    elif task.cohort == "phantom" and (not task.size or task.seed is None):
        problem = "cohort: phantom without size or seed"
    elif unknown := sorted({name for pair in task.primary for name in pair} - set(task.magnifications)):
        problem = f"primary: {unknown[0]} is none of the magnifications"
    if problem:
        raise ConfigurationError(problem, cure="See docs/benchmarks.md", path=path)

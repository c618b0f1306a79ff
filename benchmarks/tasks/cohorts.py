"""What a classification task runs on: slides or bags of the user's, or a cohort that is made here."""

from __future__ import annotations

import io
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from rich.console import Console

from benchmarks.phantom import write_cohort
from benchmarks.tasks.definition import Task
from mil.labels import read_labels
from mil.splits import stratified_folds
from zoomfeat.errors import ConfigurationError
from zoomfeat.files import make_folder, replacing
from zoomfeat.magnification import PATCH_SIZE

_PATCH = re.compile(r".*/(?P<split>train|test)/(?P<label>LUAD|LUSC)/(?P<region>\d+)_(?P<tile>\d+)_(?P<size>\d+)\.jpg")


@dataclass(frozen=True)
class CohortFiles:
    """A cohort on disk.

    Attributes:
        labels: table of slide_id, patient_id, label, perhaps fold.
        split: of `zoomfeat crossval`: ``column``, or the path of fixed splits.
        slides: folder, manifest or slide to extract from; None where there are only bags.
        truth: folder of what was planted in synthetic slides; None for others.
        min_tissue: share of a patch that must be tissue.
    """

    labels: Path
    split: str
    slides: str | None = None
    truth: Path | None = None
    min_tissue: float = 0.5


def provide_cohort(task: Task, folder: Path, data: str | None, slides: str | None, console: Console) -> CohortFiles:
    """Finds or makes the cohort of a task.

    Args:
        task: a classification.
        folder: where what is made goes.
        data: of the user: folder of the table, or the archive.
        slides: of the user.
        console: where progress is shown.

    Raises:
        ConfigurationError: data are missing or not those of the task.
    """
    if task.cohort == "phantom":
        assert task.size is not None  # both checked when the task was read
        assert task.seed is not None
        cohort = write_cohort(folder / "cohort", task.size, task.seed, console=console)
        return CohortFiles(
            cohort / "labels.csv",
            _split(task, cohort / "labels.csv", folder),
            str(cohort / "slides"),
            cohort / "truth",
        )
    if task.cohort == "luad_lusc_regions":
        if data is None:
            raise ConfigurationError(f"{task.name} needs data=", cure=f"To be had: {task.access}")
        labels, manifest = write_regions(Path(data), make_folder(folder / "cohort"))
        return CohortFiles(labels, _split(task, labels, folder), str(manifest), min_tissue=0.0)
    labels = _find_table(task, data)
    if task.protocol.split not in ("stratified", "column"):
        return CohortFiles(labels, str(labels.parent / task.protocol.split), slides)
    return CohortFiles(labels, _split(task, labels, folder), slides)


def write_regions(archive: Path, out: Path) -> tuple[Path, Path]:
    """The regions of the LUAD/LUSC archive as small pictures: the patches of a region in one row, at 20x.

    Their places in the tissue are not known, so nothing but 20x means anything. PNG keeps every pixel.

    Args:
        archive: ``tcga_luad_lusc_190.zip``.
        out: folder to write to; pictures that are there are kept.

    Returns:
        The table of labels, whose ``fold`` is the part of the set's own split, and the manifest of the pictures.

    Raises:
        ConfigurationError: no such archive, or no patch of the expected names in it.
    """
    if not archive.is_file():
        raise ConfigurationError("no such file", cure="Give tcga_luad_lusc_190.zip as data=", path=archive)
    regions: dict[tuple[str, str, str], list[tuple[int, str]]] = {}
    with zipfile.ZipFile(archive) as files:
        for name in files.namelist():
            if found := _PATCH.fullmatch(name):
                key = (found["label"], found["split"], found["region"])
                regions.setdefault(key, []).append((int(found["tile"]), name))
        if not regions:
            raise ConfigurationError(
                "no patch named split/class/region_tile_size.jpg", cure="Give the archive itself", path=archive
            )
        rows = []
        for (label, split, region), patches in sorted(regions.items()):
            slide = f"{label}-{split}-{int(region):02d}"
            path = out / f"{slide}.png"
            if not path.exists():
                row = np.concatenate([_patch(files.read(name)) for _, name in sorted(patches)], axis=1)
                with replacing(path) as temporary:
                    Image.fromarray(row).save(temporary, format="PNG")
            rows.append({"path": path.name, "slide_id": slide, "mpp": 0.5, "label": label, "fold": f"{split} part"})
    table = pd.DataFrame(rows).assign(patient_id=lambda t: t.slide_id)
    for name, columns in (
        ("labels.csv", ["slide_id", "patient_id", "label", "fold"]),
        ("manifest.csv", ["path", "slide_id", "mpp"]),
    ):
        with replacing(out / name) as temporary:
            table[columns].to_csv(temporary, index=False)
    return out / "labels.csv", out / "manifest.csv"


def _patch(content: bytes) -> np.ndarray:
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    return np.asarray(picture.resize((PATCH_SIZE, PATCH_SIZE), Image.Resampling.BICUBIC))


def _find_table(task: Task, data: str | None) -> Path:
    assert task.path is not None
    places = [Path(data)] if data is not None else [task.path.parent]
    for place in places:
        path = place if place.is_file() else place / task.labels
        if path.is_file():
            return path
    where = f"no {task.labels} in {places[0]}"
    raise ConfigurationError(where, cure=f"Give its folder as data=. To be had: {task.access}")


def _split(task: Task, labels: Path, folder: Path) -> str:
    """Folds of the whole table, drawn once, so that they do not depend on whose bags are there."""
    if task.protocol.split == "column":
        return "column"
    splits = stratified_folds(read_labels(labels, classes=task.classes), task.protocol.folds, task.protocol.seeds)
    splits.save(folder / "splits.csv")
    return str(folder / "splits.csv")

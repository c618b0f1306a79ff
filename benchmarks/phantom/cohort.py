"""A folder of synthetic slides with labels and truth."""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from rich.console import Console

from benchmarks.phantom.plan import GROUPS, SlidePlan, plan_cohort
from benchmarks.phantom.slide import draw_slide
from benchmarks.phantom.truth import PlantedLesion, Truth
from zoomfeat.errors import ConfigurationError
from zoomfeat.files import make_folder, replacing
from zoomfeat.progress import progress_bar
from zoomfeat.slides.synthetic import MARK, write_pyramid

_README = f"""{MARK}.

slides/      pyramidal TIFF with um/px; the words also stand in every picture
truth/       what was planted in each slide, in level-0 pixels
labels.csv   patients, labels, what was planted, and how each slide was cut, stained and scanned

label is 1 where the lesion has vesicular nuclei (seen at 20x) and broad cords (seen at 5x), and 0 where it has one of
them. Made by `python -m benchmarks.phantom`; no patient, no tissue, no use for any claim about medicine.
"""


def _drawn_by(slides: int, seed: int) -> str:
    """What decides the pictures: the numbers, and the code that draws."""
    digest = hashlib.sha256()
    for module in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(module.read_bytes())
    return f"{slides} slides, seed {seed}, generator {digest.hexdigest()[:12]}\n"


def write_cohort(
    out: Path, slides: int = 40, seed: int = 0, *, workers: int = 2, console: Console | None = None
) -> Path:
    """Draws a cohort: slides, labels and truth. Slides that are there already are kept, so a killed run goes on.

    Args:
        out: the folder; made where it is missing.
        slides: how many, at least 4; a tenth of the patients have two.
        seed: decides everything; the number of workers decides nothing.
        workers: processes.
        console: where the progress goes; a new one where not given.

    Returns:
        ``out``, with ``slides/*.tiff``, ``truth/*.json``, ``labels.csv`` and ``README.txt``.

    Raises:
        ConfigurationError: fewer than 4 slides, or a folder with another cohort.
        ZoomfeatError: the folder cannot be written.
    """
    plans = plan_cohort(slides, seed)
    readme, text = out / "README.txt", f"{_README}\n{_drawn_by(slides, seed)}"
    if readme.exists() and readme.read_text(encoding="utf-8") != text:
        found = readme.read_text(encoding="utf-8").rstrip().splitlines()[-1]
        raise ConfigurationError(
            f"holds another cohort ({found})", path=out, cure="Delete the folder, or choose another one"
        )
    for folder in ("slides", "truth"):
        make_folder(out / folder)
    with replacing(readme) as temporary:
        temporary.write_text(text, encoding="utf-8")
    with progress_bar(console or Console()) as progress:
        task = progress.add_task("drawing synthetic slides", total=len(plans), unit="slides")
        for _ in _each(partial(write_slide, out), plans, workers):
            progress.advance(task)
    with replacing(out / "labels.csv") as temporary:
        labels_table(plans).to_csv(temporary, index=False)
    return out


def write_slide(out: Path, plan: SlidePlan) -> None:
    """Draws ``out/slides/<slide_id>.tiff`` and ``out/truth/<slide_id>.json`` where they are not there yet."""
    path, truth_path = out / "slides" / f"{plan.slide_id}.tiff", out / "truth" / f"{plan.slide_id}.json"
    if path.exists() and truth_path.exists():
        return
    image, layout = draw_slide(plan)
    lesion = layout.lesion
    polygon = np.round(lesion.polygon / plan.mpp, 1)
    box = (*polygon.min(0).tolist(), *polygon.max(0).tolist())
    points = [(x, y) for x, y in polygon.tolist()]
    planted = PlantedLesion(lesion.vesicular_nuclei, lesion.broad_cords, bool(plan.label), box, points)
    height, width = image.shape[:2]
    write_pyramid(path, image, plan.mpp)
    Truth(plan.slide_id, width, height, plan.mpp, plan.label, plan.group, [planted]).save(truth_path)


def labels_table(plans: Iterable[SlidePlan]) -> pd.DataFrame:
    """One row a slide: ids, label, what was planted, confounders."""
    return pd.DataFrame(
        {
            "slide_id": plan.slide_id,
            "patient_id": plan.patient_id,
            "label": plan.label,
            "group": plan.group,
            "vesicular_nuclei": int(GROUPS[plan.group][0]),
            "broad_cords": int(GROUPS[plan.group][1]),
            "stain": plan.stain,
            "mpp": plan.mpp,
            "thickness": plan.thickness,
            "unevenness": plan.unevenness,
            "pen": plan.pen or "none",
            "blur_um": plan.blur_um,
            "nuclear_scale": plan.nuclear_scale,
            "chromasia": plan.chromasia,
            "cord_contrast": plan.cord_contrast,
            "granularity": plan.granularity,
        }
        for plan in plans
    )


def _each(write: partial[None], plans: list[SlidePlan], workers: int) -> Iterator[None]:
    if workers <= 1:
        yield from map(write, plans)
        return
    # Fresh interpreters: a fork of a process in which PyTorch has threads can hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        yield from pool.map(write, plans)

"""The pictures of the guides on generation: ``python -m benchmarks.generation.pictures DATA docs/``.

Three JPEGs: patches that the conditioning model and the denoiser draw without a reference, variations of regions of a
slide, and super-resolution; the large image is what :mod:`benchmarks.generation.large` keeps. The slide is
CMU-1-Small-Region (CC0), whose tissue `zoomldm-tiny` was trained on: the pictures show what the commands do, and the
tables beside them how well.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from PIL import Image
from rich.console import Console

from benchmarks.generation.regions import DATA, load
from generation.pictures import preview_grid
from generation.pipelines.baselines import BicubicUpscaler
from generation.pipelines.patch import ZoomLDMPipeline
from generation.pipelines.schedulers import make_scheduler
from generation.pipelines.superres import Condition, SuperResolutionPipeline
from generation.region import region_embeddings, region_image
from zoomfeat.files import make_folder, replacing
from zoomfeat.magnification import BRCA, PATCH_SIZE, Magnification
from zoomfeat.progress import progress_bar
from zoomfeat.slides import Slide

X, Y = 780, 1500  # px: a corner of CMU-1-Small-Region from where 1024 px are mostly tissue
SCALE = 4  # of super-resolution
_ACROSS = 6  # patches
_GENTLE: dict[str, Any] = {"guidance_scale": 1.5, "clip": True, "seam_start": 900}  # what small models want


def main() -> None:
    """Writes the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", default=DATA, help="folder of the test data")
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--model", default="zoomldm-tiny")
    parser.add_argument("--steps", type=int, default=25, help="of a patch")
    parser.add_argument("--joint-steps", type=int, default=20, help="of super-resolution")
    parser.add_argument("--only", nargs="+", choices=_SHEETS, default=list(_SHEETS))
    options = parser.parse_args()
    pipe = load(options.model)
    pipe.scheduler = make_scheduler("dpm-solver++", pipe.scheduler.config)
    out = make_folder(options.out)
    with progress_bar(Console(stderr=True)) as progress:
        task = progress.add_task("pictures", total=len(options.only), unit="pictures")
        for name in options.only:
            with Slide.open(options.data / "slides" / "CMU-1-Small-Region.svs") as slide:
                sheet = _SHEETS[name](pipe, slide, options.joint_steps if name == "superres" else options.steps)
            with replacing(out / f"generation-{name}.jpg") as temporary:
                sheet.save(temporary, format="JPEG", quality=85)
            progress.advance(task)


def patches(pipe: ZoomLDMPipeline, slide: Slide, steps: int) -> Image.Image:
    """A row a magnification, drawn without a reference."""
    rows = []
    for step in pipe.ladder.steps:
        drawn = pipe(
            magnification=step, num_images=_ACROSS, num_inference_steps=steps, generator=_seeded(), return_dict=False
        )[0]
        rows.append((_label(step), drawn))
    return preview_grid(rows, columns=_ACROSS)


def variations(pipe: ZoomLDMPipeline, slide: Slide, steps: int) -> Image.Image:
    """Regions of the slide at three magnifications, each before its variations."""
    rows = []
    for name in ("20x", "10x", "5x"):
        step = pipe.ladder[name]
        x, y = (corner + 4 * PATCH_SIZE // 2 - step.grid * PATCH_SIZE // 2 for corner in (X, Y))  # one middle for all
        grid = region_embeddings(slide, x, y, step, pipe.embedding_encoder())
        drawn = pipe(
            grid, step, num_images=_ACROSS - 1, num_inference_steps=steps, generator=_seeded(), return_dict=False
        )[0]
        reference = Image.fromarray(region_image(slide, x, y, step))
        rows.append((f"{_label(step)}: the region, then variations", [reference, *drawn]))
    return preview_grid(rows, columns=_ACROSS)


def superres(pipe: ZoomLDMPipeline, slide: Slide, steps: int) -> Image.Image:
    """A region of 512 px at 20x, brought back from 128 px."""
    step = BRCA["10x"]  # four 20x patches
    side = step.grid * PATCH_SIZE
    width, height = (round(side * 0.5 / mpp) for mpp in slide.mpp)
    truth = Image.fromarray(slide.read(X, Y, width, height, [(side, side)])[0])
    coarse = truth.resize((side // SCALE, side // SCALE), Image.Resampling.BOX)
    embeddings = region_embeddings(slide, X, Y, step, pipe.embedding_encoder())
    pipeline = SuperResolutionPipeline.over(pipe)
    pipeline.set_progress_bar_config(disable=True)
    made = {"bicubic": BicubicUpscaler()(coarse, SCALE, return_dict=False)[0][0]}
    conditions: tuple[Condition, ...] = ("uncond", "given", "inferred")
    for condition in conditions:
        given = embeddings if condition == "given" else None
        options: dict[str, Any] = {"num_inference_steps": steps, "generator": _seeded(), **_GENTLE}
        made[condition] = pipeline(coarse, SCALE, condition, given, return_dict=False, **options)[0][0]
    enlarged = coarse.resize((side, side), Image.Resampling.NEAREST)
    return preview_grid(
        [
            ("the picture at 5x, bicubic, the truth at 20x", [enlarged, made["bicubic"], truth]),
            (
                "no condition, embeddings given, embeddings inferred",
                [made[name] for name in conditions],
            ),
        ]
    )


_SHEETS: dict[str, Callable[[ZoomLDMPipeline, Slide, int], Image.Image]] = {
    "patches": patches,
    "variations": variations,
    "superres": superres,
}


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _label(step: Magnification) -> str:
    return f"{step}, {step.mpp:g} um/px"


if __name__ == "__main__":
    main()

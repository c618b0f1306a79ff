"""``zoomfeat superres``: the 20x image of a coarser picture."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console

from generation import tiff
from generation.commands.generate_large import PREVIEW, read_embeddings
from generation.pictures import preview_grid, read_arguments, save_png
from generation.pipelines.baselines import BicubicUpscaler
from generation.pipelines.models import MODELS, load_pipeline
from generation.pipelines.superres import SuperResolutionPipeline, inference_state
from generation.sampling_progress import sampling_progress
from zoomfeat.conf.schema import SuperresConfig
from zoomfeat.errors import ConfigurationError, SlideUnreadableError
from zoomfeat.files import make_folder
from zoomfeat.magnification import resolution
from zoomfeat.slides import Slide

_SHOWN = 256  # px of the input, in the middle, that the sheet shows enlarged


def run(config: SuperresConfig) -> int:
    """Draws the finer image, or goes on drawing it."""
    console = Console()
    _check(config)
    image = _open(Path(config.image))
    with console.status(f"loading {config.model}"):
        pipe = SuperResolutionPipeline.over(load_pipeline(config.model, device=config.device))
    pipe.set_progress_bar_config(disable=True)
    pipe.magnification_of(config.scale)
    mpp = pipe.finest_mpp()
    out = make_folder(Path(config.out))
    path = out / f"{Path(config.image).stem}-{config.scale}x-{config.condition}.{config.format}"
    arguments = _arguments(pipe, config)
    state, preview = path.with_suffix(".state"), out / PREVIEW
    if path.exists():
        if _found(path) != arguments:
            raise ConfigurationError(
                f"{path}: made by other arguments", cure="Use another out=, or remove the image there"
            )
        console.print(f"{path} exists", soft_wrap=True, highlight=False)
        if preview.exists() and not state.exists():
            return 0

    size = (config.scale * image.width, config.scale * image.height)
    if not path.exists():
        _draw(pipe, config, image, size, path, arguments, state, console)
    _preview(image, path, config.scale, mpp, f"{config.scale}x, {config.condition}", preview)
    for kept in (inference_state(state), state):  # in this order: the latter says that the preview may be missing
        with suppress(FileNotFoundError):
            kept.unlink()
    console.print(
        f"{path}: {size[0]} x {size[1]} px at {resolution(mpp)}/px. Look at {preview}", soft_wrap=True, highlight=False
    )
    if config.model in MODELS and MODELS[config.model].note:
        console.print(f"NOTE {MODELS[config.model].note}", style="bold yellow", highlight=False)
    return 0


def _draw(
    pipe: SuperResolutionPipeline,
    config: SuperresConfig,
    image: Image.Image,
    size: tuple[int, int],
    path: Path,
    arguments: dict[str, Any],
    state: Path,
    console: Console,
) -> None:
    """Samples, or goes on sampling, and writes the image."""
    with sampling_progress(
        console, {"inferring embeddings": "steps", "sampling": "passes", "decoding": "rows"}
    ) as report:
        sampled = pipe.sample(
            image,
            config.scale,
            config.condition,  # type: ignore[arg-type]
            None if config.embeddings is None else read_embeddings(Path(config.embeddings)),
            num_inference_steps=config.steps,
            guidance_scale=config.guidance,
            pulls=config.pulls,
            rate=config.rate,
            clip=config.clip,
            seam_start=config.seams,
            inversion_steps=config.inversion_steps,
            generator=torch.Generator().manual_seed(config.seed),
            batch_size=config.batch_size,
            state=state,
            save_every=config.save_every,
            progress=report,
        )
        if config.format == "tiff":
            pipe.write(
                sampled.latent,
                path,
                arguments,
                size=size,
                batch_size=config.batch_size,
                on_rows=lambda done, total: report("decoding", done, total),
            )
        else:
            picture = pipe.picture(sampled.latent, batch_size=config.batch_size, size=size)[0]
            save_png(picture, path, arguments, pipe.finest_mpp())


def _check(config: SuperresConfig) -> None:
    """Refuses, before anything is loaded, what cannot be run."""
    if config.format not in ("png", "tiff"):
        raise ConfigurationError(f"format={config.format}", cure="Use png or tiff")
    if config.seed < 0:
        raise ConfigurationError(f"seed={config.seed}", cure="Use 0 or more")


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise SlideUnreadableError(
            f"not readable as a picture ({type(error).__name__})", path=path, cure="Give a PNG, JPEG or TIFF"
        ) from error


def _arguments(pipe: SuperResolutionPipeline, config: SuperresConfig) -> dict[str, Any]:
    """What is written into the file."""
    arguments: dict[str, Any] = {
        "command": "superres",
        "image": config.image,
        "scale": config.scale,
        "condition": config.condition,
        "model": config.model,
        "weights": pipe.weights_hash(),
        "steps": config.steps,
        "guidance": config.guidance,
        "pulls": config.pulls,
        "rate": config.rate,
        "clip": config.clip,
        "seams": config.seams,
        "seed": config.seed,
    }
    if config.condition == "inferred":
        arguments["inversion_steps"] = config.inversion_steps
    elif config.embeddings is not None:
        arguments["embeddings"] = config.embeddings
    return arguments


def _found(path: Path) -> dict[str, Any] | None:
    """The arguments in a file that is there; None where it is not one of ours."""
    if path.suffix == ".png":
        return read_arguments(path)
    try:
        return tiff.read_arguments(path)
    except (OSError, ValueError):
        return None


def _preview(image: Image.Image, path: Path, scale: int, mpp: float, label: str, sheet: Path) -> None:
    """The middle of the picture, enlarged by interpolation and drawn."""
    left, top = (max((side - _SHOWN) // 2, 0) for side in image.size)
    right, bottom = min(left + _SHOWN, image.width), min(top + _SHOWN, image.height)
    part = np.asarray(image)[top:bottom, left:right]
    interpolated = BicubicUpscaler()(part, scale, return_dict=False)[0][0]
    width, height = (right - left) * scale, (bottom - top) * scale
    with Slide.open(path, mpp=mpp) as slide:
        drawn = Image.fromarray(slide.read(left * scale, top * scale, width, height, [(width, height)])[0])
    rows = [("bicubic", [interpolated]), (label, [drawn])]
    save_png(preview_grid(rows), sheet)

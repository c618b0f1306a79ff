"""``zoomfeat generate-large``: a large image under one patch of a coarser magnification, streamed to a TIFF."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor

from generation.pictures import preview_grid, save_png
from generation.pipelines.inputs import spawn
from generation.pipelines.joint import JointMultiScalePipeline
from generation.pipelines.models import MODELS, load_pipeline
from generation.region import region_embeddings, region_image
from generation.sampling_progress import Report, sampling_progress
from generation.tiff import read_arguments
from zoomfeat.conf.schema import GenerateLargeConfig
from zoomfeat.encoders import load_encoder
from zoomfeat.errors import ConfigurationError
from zoomfeat.files import make_folder
from zoomfeat.magnification import Magnification, resolution
from zoomfeat.models.weights import hash_weights
from zoomfeat.slides import Slide

PREVIEW = "preview.png"
"""Name of the sheet that shows the image beside its guide."""

_SHOWN = 1024  # px: longest side of the image in the sheet
_CDM_STEPS = 200


def run(config: GenerateLargeConfig) -> int:
    """Draws the image, or goes on drawing it."""
    console = Console()
    _check(config)
    with console.status(f"loading {config.model}"):
        pipe = JointMultiScalePipeline.over(load_pipeline(config.model, config.cdm, config.device))
    pipe.set_progress_bar_config(disable=True)
    mpp = pipe.finest_mpp()
    scales = pipe.scales(config.guide, config.through)
    out = make_folder(Path(config.out))
    path = out / f"{scales[0]}-{config.seed:04d}.tiff"
    arguments = _arguments(pipe, config)
    state, preview = path.with_suffix(".state"), out / PREVIEW
    there = path.exists()
    if there:
        if _found(path) != arguments:
            raise ConfigurationError(
                f"{path}: made by other arguments", cure="Use another out=, or remove the image there"
            )
        console.print(f"{path} exists", soft_wrap=True, highlight=False)
    if there and not state.exists():
        if not preview.exists():
            save_png(preview_grid([_shown(path, pipe.ladder.finest)]), preview)  # what guided it is not known any more
        return 0

    units = {"embedding": "patches", "drawing the guide": "steps", "sampling": "passes", "decoding": "rows"}
    with sampling_progress(console, units) as report:
        reference, embeddings, tokens = _condition(pipe, config, report)
        sampled = pipe.sample(
            embeddings,
            config.guide,
            through=config.through,
            tokens=tokens,
            num_inference_steps=config.steps,
            guidance_scale=config.guidance,
            pulls=config.pulls,
            rate=config.rate,
            clip=config.clip,
            seam_start=config.seams,
            generator=torch.Generator().manual_seed(config.seed),
            batch_size=config.batch_size,
            state=state,
            save_every=config.save_every,
            progress=lambda done, total: report("sampling", done, total),
        )
        if not there:
            pipe.write(
                sampled.latent,
                path,
                arguments,
                batch_size=config.batch_size,
                on_rows=lambda done, total: report("decoding", done, total),
            )
    guides = [
        (f"guide, {name}", pipe.picture(latent, batch_size=config.batch_size))
        for name, latent in sampled.coarser.items()
        if max(pipe.image_size(latent)) <= _SHOWN  # what lies between may be large, and is decoded as a whole
    ]
    region = [] if reference is None else [("the region", [reference])]
    save_png(preview_grid([*region, *guides, _shown(path, pipe.ladder.finest)]), preview)
    with suppress(FileNotFoundError):
        state.unlink()
    width, height = pipe.image_size(sampled.latent)
    console.print(
        f"{path}: {width} x {height} px at {resolution(mpp)}/px. Look at {preview}", soft_wrap=True, highlight=False
    )
    if config.model in MODELS and MODELS[config.model].note:
        console.print(f"NOTE {MODELS[config.model].note}", style="bold yellow", highlight=False)
    return 0


def _shown(path: Path, finest: Magnification) -> tuple[str, list[Image.Image]]:
    """The row of the image in the sheet."""
    with Slide.open(path) as slide:
        side = max(1.0, max(slide.width, slide.height) / _SHOWN)
        return f"{finest} image, {path.name}", [Image.fromarray(slide.thumbnail(slide.mpp[0] * side))]


def _check(config: GenerateLargeConfig) -> None:
    """Refuses, before anything is loaded, what cannot be run."""
    if config.slide is not None and config.embeddings is not None:
        raise ConfigurationError("both slide= and embeddings=", cure="Give one of them")
    if config.slide is None and (config.x is not None or config.y is not None):
        raise ConfigurationError("x= and y= without slide=", cure="Give the slide whose region they are")
    if config.slide is not None and (config.x is None or config.y is None):
        raise ConfigurationError(
            "slide= without x= and y=", cure="Give the region's top-left corner in level-0 pixels, for example x=0 y=0"
        )
    if config.seed < 0:
        raise ConfigurationError(f"seed={config.seed}", cure="Use 0 or more")


def _condition(
    pipe: JointMultiScalePipeline, config: GenerateLargeConfig, report: Report
) -> tuple[Image.Image | None, Tensor | None, Tensor | None]:
    """A picture of the region, embeddings, and tokens of the guide, as far as there are any."""
    if config.embeddings is not None:
        return None, read_embeddings(Path(config.embeddings)), None
    if config.slide is not None:
        return *_region(pipe, config, lambda done, total: report("embedding", done, total)), None
    return None, None, _drawn(pipe, config, lambda done, total: report("drawing the guide", done, total))


def _region(
    pipe: JointMultiScalePipeline, config: GenerateLargeConfig, on_patches: Callable[[int, int], object]
) -> tuple[Image.Image, Tensor]:
    """The region of the slide as a patch, and the embeddings of its 20x patches."""
    assert config.slide is not None and config.x is not None and config.y is not None  # noqa: PT018, checked
    name = config.ssl_encoder or pipe.config.ssl_encoder
    options = {} if config.ssl_weights is None else {"weights": config.ssl_weights}
    encoder = None if name is None else load_encoder(name, pipe.ladder.finest, config.device, **options)
    encoder = pipe.embedding_encoder(encoder)
    step = pipe.ladder[config.guide]
    with Slide.open(config.slide, default_mpp=config.mpp, reader=pipe.domain.reader) as slide:
        reference = Image.fromarray(region_image(slide, config.x, config.y, step, pipe.ladder))
        grid = region_embeddings(slide, config.x, config.y, step, encoder, pipe.ladder, on_patches=on_patches)
    return reference, torch.from_numpy(grid)


def _drawn(pipe: JointMultiScalePipeline, config: GenerateLargeConfig, on_step: Callable[[int, int], object]) -> Tensor:
    """Tokens of the guide that the conditioning model draws."""
    if pipe.cdm is None:
        raise ConfigurationError(
            "neither slide= nor embeddings=, and the model has no conditioning model to draw a guide without them",
            cure="Give slide= with x= and y=, or cdm=",
        )
    sources = spawn(torch.Generator().manual_seed(config.seed), 1)
    done = itertools.count(1)
    return pipe.draw_tokens([pipe.ladder[config.guide]], sources, _CDM_STEPS, lambda _: on_step(next(done), _CDM_STEPS))


def read_embeddings(path: Path) -> Tensor:
    """Embeddings from a ``.npy`` file, ``(channels, rows, columns)``.

    Raises:
        ConfigurationError: no such file, or one that does not hold an array of numbers.
    """
    try:
        return torch.from_numpy(np.load(path, allow_pickle=False))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigurationError(
            f"not readable as an array ({error})", path=path, cure="Save it with numpy.save(path, embeddings)"
        ) from error


def _arguments(pipe: JointMultiScalePipeline, config: GenerateLargeConfig) -> dict[str, Any]:
    """What is written into the file."""
    arguments: dict[str, Any] = {
        "command": "generate-large",
        "model": config.model,
        "weights": pipe.weights_hash(),
        "guide": str(pipe.ladder[config.guide]),
        "through": [str(pipe.ladder[name]) for name in config.through],
        "steps": config.steps,
        "guidance": config.guidance,
        "pulls": config.pulls,
        "rate": config.rate,
        "clip": config.clip,
        "seams": config.seams,
        "seed": config.seed,
    }
    if config.slide is not None:
        encoder = config.ssl_encoder or pipe.config.ssl_encoder
        arguments |= {"slide": config.slide, "x": config.x, "y": config.y, "ssl_encoder": encoder}
    elif config.embeddings is not None:
        arguments["embeddings"] = config.embeddings
    elif pipe.cdm is not None:
        arguments["cdm"] = hash_weights({"cdm": pipe.cdm})
    return arguments


def _found(path: Path) -> dict[str, Any] | None:
    """The arguments in a file that is there; None where it is not one of ours."""
    try:
        return read_arguments(path)
    except (OSError, ValueError):
        return None

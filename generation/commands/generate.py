"""``zoomfeat generate``: patches from a magnification alone, or variations of a region of a slide."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.markup import escape
from torch import Tensor

from generation.pictures import preview_grid, read_arguments, save_png
from generation.pipelines.inputs import spawn
from generation.pipelines.models import MODELS, load_pipeline
from generation.pipelines.patch import ZoomLDMPipeline
from generation.pipelines.schedulers import make_scheduler
from generation.region import region_embeddings, region_image
from zoomfeat.conf.schema import GenerateConfig
from zoomfeat.encoders import PatchEncoder, load_encoder
from zoomfeat.errors import ConfigurationError, SlideUnreadableError
from zoomfeat.files import make_folder
from zoomfeat.magnification import Magnification, resolution
from zoomfeat.models.weights import hash_weights
from zoomfeat.progress import progress_bar
from zoomfeat.slides import Slide

PREVIEW = "preview.png"
"""Name of the sheet that shows all images."""

_PREVIEWED = 32  # images of each magnification in the sheet


@dataclass(frozen=True)
class _Job:
    """The images of one magnification.

    Attributes:
        magnification: of the images.
        paths: where they go, in order.
        arguments: what is written into each.
        missing: the indices of those that are not there yet.
    """

    magnification: Magnification
    paths: list[Path]
    arguments: list[dict[str, Any]]
    missing: list[int]

    @property
    def mpp(self) -> float:
        """Microns per pixel."""
        return self.magnification.mpp


def run(config: GenerateConfig) -> int:
    """Draws what is missing in ``out``, and the preview."""
    console = Console()
    _check(config)
    with ExitStack() as stack:
        with console.status(f"loading {config.model}"):
            pipe = load_pipeline(config.model, config.cdm, config.device)
        slide = None
        if config.slide is not None:
            opened = Slide.open(config.slide, default_mpp=config.mpp, reader=pipe.domain.reader)
            slide = stack.enter_context(opened)
        encoder = None if slide is None else _encoder(pipe, config)
        if slide is None and pipe.cdm is None:
            raise ConfigurationError(
                f"{config.model} has no conditioning model, without which there is nothing to draw from",
                cure="Give cdm=path, or slide=, x= and y= for variations of a region",
            )
        pipe.scheduler = make_scheduler(config.scheduler, pipe.scheduler.config)
        pipe.set_progress_bar_config(disable=True)  # the bar below counts images
        out = make_folder(Path(config.out))
        jobs = _plan(pipe, config, encoder, out)
        rows = []
        for job in jobs:
            reference = []
            if slide is not None and encoder is not None:
                x, y = _corner(config)
                reference.append(Image.fromarray(region_image(slide, x, y, job.magnification, pipe.ladder)))
            if job.missing:
                grid = None if slide is None or encoder is None else _embed(slide, pipe, encoder, config, job, console)
                _draw(pipe, config, job, grid, console)
            rows.append((_label(job, bool(reference)), reference + [_opened(path) for path in job.paths[:_PREVIEWED]]))
    save_png(preview_grid(rows), out / PREVIEW)
    drawn, total = sum(len(job.missing) for job in jobs), sum(len(job.paths) for job in jobs)
    console.print(
        f"{drawn} images drawn, {total - drawn} existed. Look at {out / PREVIEW}", soft_wrap=True, highlight=False
    )
    if config.model in MODELS and MODELS[config.model].note:
        console.print(f"NOTE {MODELS[config.model].note}", style="bold yellow", highlight=False)
    return 0


def _check(config: GenerateConfig) -> None:
    """Refuses, before anything is loaded, what cannot be run."""
    make_scheduler(config.scheduler, {})
    for name, value in (("num_images", config.num_images), ("steps", config.steps), ("batch_size", config.batch_size)):
        if value < 1:
            raise ConfigurationError(f"{name}={value}", cure="Use 1 or more")
    if config.seed < 0:
        raise ConfigurationError(f"seed={config.seed}", cure="Use 0 or more")
    if config.slide is None and (config.x is not None or config.y is not None):
        raise ConfigurationError("x= and y= without slide=", cure="Give the slide whose region they are")
    if config.slide is not None:
        _corner(config)
        if not Path(config.slide).is_file():  # before the model is loaded, which knows how to open it
            raise SlideUnreadableError("no such file", cure="Check the path", path=config.slide)


def _corner(config: GenerateConfig) -> tuple[int, int]:
    if config.x is None or config.y is None:
        raise ConfigurationError(
            "slide= without x= and y=", cure="Give the region's top-left corner in level-0 pixels, for example x=0 y=0"
        )
    return config.x, config.y


def _encoder(pipe: ZoomLDMPipeline, config: GenerateConfig) -> PatchEncoder:
    name = config.ssl_encoder or pipe.config.ssl_encoder
    options = {} if config.ssl_weights is None else {"weights": config.ssl_weights}
    encoder = None if name is None else load_encoder(name, pipe.ladder.finest, config.device, **options)
    return pipe.embedding_encoder(encoder)


def _plan(pipe: ZoomLDMPipeline, config: GenerateConfig, encoder: PatchEncoder | None, out: Path) -> list[_Job]:
    """The images to make.

    Raises:
        MagnificationError: a magnification that the model lacks.
        ConfigurationError: the folder holds images that other arguments made.
    """
    wanted = config.magnification
    names = [step.name for step in pipe.ladder.steps] if wanted == "all" else wanted
    steps = [pipe.ladder[name] for name in (names if isinstance(names, list) else [names])]
    made_by = {
        "command": "generate",
        "model": config.model,
        "weights": pipe.weights_hash(),
        "scheduler": config.scheduler,
        "steps": config.steps,
        "guidance": config.guidance,
        "seed": config.seed,
    }
    if encoder is not None:
        made_by |= {"slide": config.slide, "x": config.x, "y": config.y, "ssl_encoder": encoder.name}
    elif pipe.cdm is not None:
        made_by["cdm"] = hash_weights({"cdm": pipe.cdm})
    jobs = []
    for step in dict.fromkeys(steps):
        job = _Job(step, [out / f"{step}-{i:04d}.png" for i in range(config.num_images)], [], [])
        for index, path in enumerate(job.paths):
            job.arguments.append(made_by | {"magnification": step.name, "mpp": job.mpp, "image": index})
            if not path.exists():
                job.missing.append(index)
            elif (found := read_arguments(path)) != job.arguments[-1]:
                raise ConfigurationError(
                    f"{path}: made by other arguments ({_difference(found or {}, job.arguments[-1])})",
                    cure="Use another out=, or remove the images there",
                )
        jobs.append(job)
    return jobs


def _difference(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    key = next(key for key in [*wanted, *found] if found.get(key) != wanted.get(key))
    return f"{key} was {found.get(key)}, is {wanted.get(key)}"


def _embed(
    slide: Slide, pipe: ZoomLDMPipeline, encoder: PatchEncoder, config: GenerateConfig, job: _Job, console: Console
) -> Tensor:
    x, y = _corner(config)
    with progress_bar(console) as progress:
        task = progress.add_task(f"embedding {job.magnification}", total=job.magnification.grid**2, unit="patches")
        embeddings = region_embeddings(
            slide,
            x,
            y,
            job.magnification,
            encoder,
            pipe.ladder,
            on_patches=lambda done, _: progress.update(task, completed=done),
        )
    return torch.from_numpy(embeddings)


def _draw(pipe: ZoomLDMPipeline, config: GenerateConfig, job: _Job, grid: Tensor | None, console: Console) -> None:
    """Draws the missing images; each is written as soon as its batch is done."""
    sources = spawn(torch.Generator().manual_seed(config.seed), len(job.paths))
    at_once = pipe.samples_at_once(config.batch_size)
    with progress_bar(console) as progress:
        there = len(job.paths) - len(job.missing)
        task = progress.add_task(escape(str(job.magnification)), total=len(job.paths), completed=there, unit="images")
        for start in range(0, len(job.missing), at_once):
            part = job.missing[start : start + at_once]

            def show(done: int, total: int, before: int = there + start, count: int = len(part)) -> None:
                progress.update(task, completed=before + count * done / total)

            images = pipe(
                grid,
                job.magnification,
                num_inference_steps=config.steps,
                guidance_scale=config.guidance,
                num_images=len(part),
                generator=[sources[index] for index in part],
                batch_size=at_once,
                progress=show,
                return_dict=False,
            )[0]
            for index, image in zip(part, images, strict=True):
                save_png(image, job.paths[index], job.arguments[index], job.mpp)


def _label(job: _Job, referenced: bool) -> str:
    label = f"{job.magnification}, {resolution(job.mpp)}/px"
    return f"{label}: the region, then variations" if referenced else label


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")

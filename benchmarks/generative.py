"""Runs the tasks of generation: patches, large images and super-resolution, held against real tissue."""

from __future__ import annotations

import dataclasses
import hashlib
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.markup import escape

from benchmarks.generation.methods import METHODS
from benchmarks.generation.results import Results
from benchmarks.metrics import ImageFiles, RandomCrops, compare_sets
from benchmarks.metrics import Measurement as Measured
from benchmarks.metrics.frechet import FewImagesWarning
from benchmarks.metrics.images import Images, image_paths
from benchmarks.metrics.registry import find_pair_metric
from benchmarks.recomputation import recomputed
from benchmarks.record import Cost, EncoderFacts, HeadFacts, Measurement, Record, canonical, record_file
from benchmarks.runner import Outcome, facts_of, hardware, kept, peak_memory_bytes
from benchmarks.tasks import Task
from generation.commands import generate, generate_large
from generation.pipelines.baselines import BicubicUpscaler
from generation.pipelines.models import MODELS, load_pipeline
from generation.pipelines.patch import ZoomLDMPipeline
from generation.pipelines.superres import Condition, SuperResolutionPipeline
from generation.region import region_embeddings
from mil.runs import environment
from zoomfeat.conf.schema import BenchmarkConfig, GenerateConfig, GenerateLargeConfig
from zoomfeat.errors import ConfigurationError, ZoomfeatError
from zoomfeat.files import make_folder, replacing
from zoomfeat.magnification import BRCA, Magnification
from zoomfeat.run_folder import now
from zoomfeat.slides import Slide, find_tissue, make_grid, slides
from zoomfeat.slides.resample import resize

SHORT = {"FID": "fid", "crop FID": "crop_fid", "CLIP vit-b-32 FID": "clip_fid", "SSIM": "ssim", "PSNR (dB)": "psnr",
         "LPIPS (alex)": "lpips", "cosine similarity (uni)": "similarity_uni"}  # fmt: skip
"""Metrics under which results are published; any other keeps the name that says over which network it is."""

_SCALE = 4
_FEWEST = 3  # images of which a kernel distance can be taken
_TISSUE = 0.9
"""Share of the 20x patches of a region that must be tissue."""


@dataclasses.dataclass(frozen=True)
class Region:
    """A piece of a slide, one patch of a coarse magnification.

    Attributes:
        slide: file.
        x: left edge in level-0 pixels.
        y: top edge.
    """

    slide: Path
    x: int
    y: int

    @property
    def name(self) -> str:
        """Slide and place."""
        return f"{self.slide.stem}_{self.x}_{self.y}"


@dataclasses.dataclass(frozen=True)
class Findings:
    """What was measured of one model at one magnification.

    Attributes:
        measured: of images and sets.
        cost: what it took.
        notes: what a reader has to know.
    """

    measured: list[Measurement]
    cost: Cost
    notes: tuple[str, ...] = ()


def run_generation(task: Task, config: BenchmarkConfig, folder: Path, console: Console) -> Outcome:
    """Makes every record of a model, a magnification and, for super-resolution, a method that is not there yet.

    Raises:
        ConfigurationError: no data, no such model.
    """
    if config.data is None:
        raise ConfigurationError(f"{task.name} needs data=", cure=f"To be had: {task.access}")
    run = {"patch_folders": _patches, "large_regions": _large_images, "restored_regions": _restored}[task.cohort]
    records: list[Record] = []
    failures: list[str] = []
    with console.status(f"loading {config.encoders[0]}"):
        pipe = load_pipeline(config.encoders[0], config.cdm, config.device)
    pipe.set_progress_bar_config(disable=True)
    for magnification in config.magnifications:
        try:
            records += run(task, config, pipe, BRCA[magnification], folder, console)
        except ZoomfeatError as error:
            failures.append(f"{config.encoders[0]} {magnification}: {error}")
    return Outcome(tuple(records), tuple(failures))


def ranked_by(task: Task, extractor: str) -> Task:
    """The task with the metric that this extractor gives, which is another version unless it is the published one."""
    if task.kind != "generation" or extractor == "inception-v3":
        return task
    crop = "crop " if task.cohort == "large_regions" else ""
    return dataclasses.replace(task, metric=f"{crop}Frechet distance ({extractor})")


def _patches(
    task: Task, config: BenchmarkConfig, pipe: ZoomLDMPipeline, step: Magnification, folder: Path, console: Console
) -> list[Record]:
    real = Path(str(config.data)) / step.name
    if config.images is not None and config.images < _FEWEST:
        raise ConfigurationError(f"images={config.images}", cure=f"Distances of sets need at least {_FEWEST}")
    if not real.is_dir():
        raise ConfigurationError("no such folder of real patches", cure=f"Give {real}, or other magnifications=")
    model, count, steps = config.encoders[0], config.images or 100, config.steps or 50
    inputs = {"images": count, "steps": steps, "extractor": config.extractor, "real_sha256": _names_sha256(real)}

    def measure() -> Findings:
        out = folder / "images" / f"{Path(model).name}-{pipe.weights_hash()[:8]}-{steps}"
        there, start = len(list(out.glob(f"{step.name}-*.png"))), time.perf_counter()
        generate.run(
            GenerateConfig(
                magnification=step.name, out=str(out), model=model, cdm=config.cdm, num_images=count, steps=steps,
                device=config.device,
            )
        )  # fmt: skip
        seconds = time.perf_counter() - start
        made = ImageFiles(tuple(out / f"{step.name}-{number:04d}.png" for number in range(count)))
        found = _compared(made, str(real), config, console)
        rate = None if there else count / seconds
        cost = Cost(patches_per_second=rate, peak_memory_bytes=peak_memory_bytes())
        return Findings([_of_set(step.name, found)], cost, _notes(found))

    return [_record(task, config, pipe, step, None, inputs, folder, measure, console)]


def _large_images(
    task: Task, config: BenchmarkConfig, pipe: ZoomLDMPipeline, step: Magnification, folder: Path, console: Console
) -> list[Record]:
    """Variations of real regions: how long each takes, and how far crops of them are from crops of the regions."""
    model, count, steps = config.encoders[0], config.images or 4, config.steps or 20
    regions = find_regions(Path(str(config.data)), step, count)
    inputs = {"regions": [r.name for r in regions], "steps": steps, "extractor": config.extractor}

    def measure() -> Findings:
        root = make_folder(folder / "images" / f"{Path(model).name}-{pipe.weights_hash()[:8]}-{step.name}-{steps}")
        times, made, real = [], [], []
        for region in regions:
            out, start = root / region.name, time.perf_counter()
            drawn_before = out.is_dir()
            generate_large.run(
                GenerateLargeConfig(
                    guide=step.name, out=str(out), model=model, slide=str(region.slide), x=region.x, y=region.y,
                    mpp=0.5, ssl_encoder=pipe.config.ssl_encoder, steps=steps, device=config.device,
                )
            )  # fmt: skip
            if not drawn_before:
                times.append(Measurement(region.name, "image", {"seconds": time.perf_counter() - start}))
            made += sorted(out.glob("*.tiff"))
            real.append(root / f"{region.name}.png")
            _write_region(region, step, real[-1])
        ours, theirs = (RandomCrops(tuple(paths), per_image=32, default_mpp=0.5) for paths in (made, real))
        found = _compared(ours, theirs, config, console)
        cost = Cost(peak_memory_bytes=peak_memory_bytes())
        return Findings([*times, _of_set(step.name, found)], cost, _notes(found))

    return [_record(task, config, pipe, step, None, inputs, folder, measure, console)]


def _restored(
    task: Task, config: BenchmarkConfig, pipe: ZoomLDMPipeline, step: Magnification, folder: Path, console: Console
) -> list[Record]:
    """Regions at 20x, seen at 5x by an area mean and brought back; each method a record."""
    if step.name != "5x":
        raise ConfigurationError(f"super-resolution by 4 is from 5x, not from {step}", cure="Use magnifications=[5x]")
    if unknown := [method for method in config.heads if method not in METHODS]:
        raise ConfigurationError(f"no method {unknown[0]!r}", cure=f"Use some of {', '.join(METHODS)}")
    regions = find_regions(Path(str(config.data)), step, config.images or 8)
    steps = config.steps or 20
    inputs = {"regions": [region.name for region in regions], "steps": steps}
    upscale = SuperResolutionPipeline.over(pipe)
    upscale.set_progress_bar_config(disable=True)
    encoder = pipe.embedding_encoder().at(BRCA.steps[0])
    metrics = [find_pair_metric(name)() for name in ("ssim", "psnr", "efficientnet-distance")]
    metrics.append(find_pair_metric("embedding-similarity")(encoder=encoder))
    results = Results.open(folder / f"regions-{pipe.weights_hash()[:8]}.json", inputs)

    def measure(method: str) -> Findings:
        for number, region in enumerate(regions):
            if results.find(method=method, region=region.name):
                continue
            console.print(f"  {method}: {escape(region.name)}", highlight=False)
            truth, embeddings = _read_region(region, step, encoder)
            coarse = resize(truth, (truth.shape[1] // _SCALE, truth.shape[0] // _SCALE))
            start = time.perf_counter()
            if method == "bicubic":
                made = BicubicUpscaler()(coarse, _SCALE, output_type="pt", return_dict=False)[0]
            else:
                made = upscale(
                    coarse,
                    _SCALE,
                    cast(Condition, method),  # `heads` were checked to be some of METHODS
                    torch.from_numpy(embeddings) if method == "given" else None,
                    num_inference_steps=steps,
                    generator=torch.Generator().manual_seed(number),
                    output_type="pt",
                    return_dict=False,
                )[0]
            seconds = time.perf_counter() - start
            made = (made.clamp(0, 1) * 255).round() / 255  # what a file would hold
            pixels = torch.from_numpy(truth).permute(2, 0, 1)[None].float() / 255
            scores = {SHORT.get(m.name, m.name): float(m.score(made, pixels)) for m in metrics}
            results.add({"method": method, "region": region.name, "values": {**scores, "seconds": seconds}})
        rows = [row for region in regions for row in results.find(method=method, region=region.name)]
        images = [Measurement(row["region"], "image", row["values"]) for row in rows]
        return Findings(images, Cost(peak_memory_bytes=peak_memory_bytes()))

    return [
        _record(task, config, pipe, step, method, inputs, folder, partial(measure, method), console)
        for method in config.heads
    ]


def find_regions(folder: Path, step: Magnification, count: int) -> list[Region]:
    """Regions that are nearly all tissue, as many from each slide as from the next, from the top left on.

    Args:
        folder: of slides, or of plain images, which are taken to be 20x.
        step: magnification whose patches they are.
        count: how many.

    Raises:
        ConfigurationError: there are fewer.
    """
    found = []
    for entry in slides(str(folder)):
        with Slide.open(entry.path, mpp=entry.mpp, default_mpp=0.5) as slide:
            grid = make_grid(slide, find_tissue(slide), (BRCA.steps[0], step), min_tissue=0.3)
        children = np.bincount(grid.parents[step.name], minlength=len(grid.scales[1].coords))
        whole = grid.scales[1].coords[children >= _TISSUE * step.grid**2]
        found.append([Region(Path(entry.path), int(x), int(y)) for x, y in whole])
    deepest = max(map(len, found), default=0)
    chosen = [each[depth] for depth in range(deepest) for each in found if depth < len(each)][:count]
    if len(chosen) < count:
        raise ConfigurationError(
            f"{len(chosen)} {step} regions that are nearly all tissue; {count} were asked for",
            cure="Give more slides, or fewer images=",
            path=folder,
        )
    return chosen


def _read_region(region: Region, step: Magnification, encoder: Any) -> tuple[np.ndarray, np.ndarray]:
    """Its pixels at 20x, and the embeddings of its 20x patches."""
    with Slide.open(region.slide, default_mpp=0.5) as slide:
        return _at_20x(slide, region, step), region_embeddings(slide, region.x, region.y, step, encoder)


def _at_20x(slide: Slide, region: Region, step: Magnification) -> np.ndarray:
    side = 256 * step.grid
    width, height = (round(side * BRCA.steps[0].mpp / mpp) for mpp in slide.mpp)
    return slide.read(region.x, region.y, width, height, [(side, side)])[0]


def _write_region(region: Region, step: Magnification, path: Path) -> None:
    if not path.exists():
        with Slide.open(region.slide, default_mpp=0.5) as slide, replacing(path) as temporary:
            Image.fromarray(_at_20x(slide, region, step)).save(temporary, format="PNG")


def _compared(made: Images, real: Images, config: BenchmarkConfig, console: Console) -> list[Measured]:
    """Distances of two sets; what few images mean for them stands in their notes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewImagesWarning)
        return compare_sets(made, real, ["fid", "kid"], config.extractor, console=console, device=config.device)


def _notes(found: list[Measured]) -> tuple[str, ...]:
    return tuple(f"{each.name} {each.note}" for each in found if each.note)


def _of_set(name: str, found: list[Measured]) -> Measurement:
    values = {SHORT.get(each.name, each.name): each.value for each in found if np.isfinite(each.value)}
    ends = {SHORT.get(each.name, each.name): (each.low, each.high) for each in found if np.isfinite(each.low)}
    return Measurement(name, "set", values, {name: (float(low), float(high)) for name, (low, high) in ends.items()})


def _record(
    task: Task,
    config: BenchmarkConfig,
    pipe: ZoomLDMPipeline,
    step: Magnification,
    method: str | None,
    inputs: dict[str, Any],
    folder: Path,
    measure: Callable[[], Findings],
    console: Console,
) -> Record:
    """The record that is there, or measured."""
    name, weights = Path(config.encoders[0]).name, pipe.weights_hash()
    inputs = {"task": task.version, "weights": weights, "magnification": step.name, "method": method, **inputs}
    key = hashlib.sha256(canonical(inputs).encode()).hexdigest()
    path = make_folder(folder / "records") / record_file(task.name, name, step.name, method)
    label = " ".join(part for part in (name, step.name, method) if part)
    if (record := kept(path, key)) is not None:
        console.print(f"[bold]{escape(label)}[/]: done before", highlight=False)
        return record
    console.print(f"[bold]{escape(label)}[/]", highlight=False)
    found = measure()
    named = MODELS.get(config.encoders[0])
    record = Record(
        task=facts_of(task),
        encoder=EncoderFacts(name, weights, note=named.note if named else "", parameters=_parameters(pipe)),
        magnification=step.name,
        head=HeadFacts(method) if method else None,
        configuration={**inputs, "key": key, "notes": list(found.notes)},
        predictions=tuple(found.measured),
        metrics={},
        cost=found.cost,
        hardware=hardware(),
        software=environment(),
        created=now(),
        submitter=config.submitter,
    )
    record = dataclasses.replace(record, metrics=recomputed(record)).sealed()
    record.save(path.parent)
    return record


def _parameters(pipe: ZoomLDMPipeline) -> int:
    networks = (part for part in pipe.components.values() if isinstance(part, torch.nn.Module))
    return sum(parameter.numel() for network in networks for parameter in network.parameters())


def _names_sha256(folder: Path) -> str:
    """Of names and sizes of the images of a folder: enough to tell one set from another."""
    lines: Iterator[str] = (f"{path.name} {path.stat().st_size}\n" for path in image_paths(folder))
    return hashlib.sha256("".join(lines).encode()).hexdigest()

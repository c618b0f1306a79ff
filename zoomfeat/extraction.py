"""Slides in, bags out: one slide is one unit of work.

Reading and encoding overlap: threads decode regions ahead, in the order of the reading plan, while the encoder
runs. Rows are written where the grid says, so neither the number of threads nor the batch size changes a bag.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from zoomfeat.bags import Bag, BagMetadata, ScaleFeatures
from zoomfeat.conf.schema import ENCODERS, ExtractConfig
from zoomfeat.domains import DEFAULT, load_domain
from zoomfeat.encoders import PatchEncoder
from zoomfeat.errors import BagInvalidError, ConfigurationError, ZoomfeatError
from zoomfeat.files import make_folder
from zoomfeat.magnification import MAX_GRID, PATCH_SIZE, resolution
from zoomfeat.slides import (
    Grid,
    Scale,
    Slide,
    SlideEntry,
    draw_preview,
    find_foreground,
    make_grid,
    read_region,
    regions,
)
from zoomfeat.slides.reader import DECODERS

Advance = Callable[[int, int], None]
"""Told how many patches of a slide are encoded, and how many it has."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class SlideReport:
    """What became of one slide: a row of the report.

    Attributes:
        slide_id: the slide.
        path: its file.
        status: ``done``, ``exists`` (an earlier run made the same bag) or ``failed``.
        patches: magnification name to patches kept.
        dropped: reason to finest patches left out.
        mpp: um/px of level 0 along x and y.
        mpp_source: where that is from.
        seconds: stage to seconds.
        stage: where it failed.
        error: what was found, one line.
        cure: what helps.
        details: the traceback of an error that zoomfeat does not know.
        encoder: whose bag it is about.
    """

    slide_id: str
    path: Path
    status: str
    patches: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    mpp: tuple[float, float] | None = None
    mpp_source: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    stage: str = ""
    error: str = ""
    cure: str = ""
    details: str = ""
    encoder: str = ""


class _Stages:
    """Which stage a slide is in, and how long each took."""

    def __init__(self) -> None:
        self.name = "open"
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.name = name
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(time.perf_counter() - start, 3)


def check_config(config: ExtractConfig) -> None:
    """Refuses what cannot run before any slide is opened.

    Raises:
        ConfigurationError: no encoder or one twice, a number out of its range, an unknown domain, or an output folder
            inside the slide folder.
        MagnificationError: an unknown or repeated magnification.
    """
    if config.workers < 1:
        raise ConfigurationError(f"workers={config.workers}; expected at least 1", cure="The default is 2")
    if config.batch_size < 1:
        raise ConfigurationError(f"batch_size={config.batch_size}; expected at least 1", cure="The default is 16")
    if not 0 <= config.min_tissue <= 1:
        raise ConfigurationError(f"min_tissue={config.min_tissue}; expected 0 to 1", cure="The default is 0.5")
    if config.decode not in DECODERS:
        raise ConfigurationError(
            f"decode={config.decode!r}; expected one of {', '.join(DECODERS)}", cure="The default is exact"
        )
    if config.dtype not in ("float32", "float16"):
        raise ConfigurationError(f"dtype={config.dtype!r}; expected float32 or float16", cure="The default is float32")
    if config.encoder is None and not config.encoders:
        raise ConfigurationError(
            "encoder= is missing (the patch encoder), and so is encoders= (several)",
            cure=f"Use one of {', '.join(ENCODERS)}",
        )
    if config.encoder is not None and config.encoders:
        raise ConfigurationError(
            "encoder= and encoders= are both given",
            cure="Use encoder= for one, whose bags go to out, or encoders= for several, whose bags go to out/ENCODER/",
        )
    if len(set(config.encoders)) < len(config.encoders):
        raise ConfigurationError(f"an encoder is asked for twice in {config.encoders}", cure="Name each once")
    if unused := config.encoder_options.keys() - set(config.encoders):
        raise ConfigurationError(
            f"encoder_options of {', '.join(sorted(unused))}, not among encoders={config.encoders}",
            cure="The keys of one encoder are encoder.KEY",
        )
    load_domain(config.domain).steps(config.magnifications)
    slides, out = Path(config.slides).resolve(), Path(config.out).resolve()
    if slides.is_dir() and (out == slides or slides in out.parents):
        raise ConfigurationError(
            f"out={config.out} lies inside the slide folder {config.slides}", cure="Keep raw slides apart from results"
        )


def bag_configuration(config: ExtractConfig, encoder: PatchEncoder) -> dict[str, Any]:
    """What decides the content of a bag besides the slide: no paths, no devices, no numbers of workers."""
    domain = load_domain(config.domain)
    configuration = {
        "encoder": {"name": encoder.name, "weights_hash": encoder.weights_hash, **encoder.settings},
        "magnifications": [str(m) for m in domain.steps(config.magnifications)],
        "mpp": config.mpp,
        "min_tissue": config.min_tissue,
        "dtype": config.dtype,
    }
    if domain != load_domain(DEFAULT):  # bags from before there were domains stay what they are
        configuration["domain"] = {
            "name": domain.name,
            "reader": domain.reader,
            "foreground": domain.foreground,
            "finest_mpp": domain.ladder.finest.mpp,
        }
    if config.decode == "dct":  # the other ways give the same pixels
        configuration["decode"] = "dct"
    return configuration


def configuration_hash(configuration: dict[str, Any]) -> str:
    """SHA-256 of a configuration, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest()


def bag_path(config: ExtractConfig, encoder: str, slide_id: str) -> Path:
    """Where a bag goes: into ``out``, or into a folder of its encoder there when several were asked for."""
    folder = Path(config.out) / encoder if config.encoders else Path(config.out)
    return folder / f"{slide_id}.h5"


def extract_slide(
    entry: SlideEntry, config: ExtractConfig, encoder: PatchEncoder, advance: Advance = lambda done, total: None
) -> SlideReport:
    """Extracts one slide; pure but for the bag (and preview) that it leaves.

    Args:
        entry: the slide.
        config: checked by :func:`check_config`.
        encoder: at any magnification of its ladder.
        advance: told of progress.

    Returns:
        The report; a slide that cannot be extracted is a report with an error, never an exception.
    """
    (report,) = extract_bags(entry, config, [encoder], advance)
    return report


def extract_bags(
    entry: SlideEntry,
    config: ExtractConfig,
    encoders: Sequence[PatchEncoder],
    advance: Advance = lambda done, total: None,
) -> list[SlideReport]:
    """Extracts one slide with several encoders from one read of it.

    Its pixels are decoded once for all encoders whose bag is missing, and each bag is the one that its encoder alone
    would have made. The features of all of them are in memory until the last patch is encoded.

    Args:
        entry: the slide.
        config: checked by :func:`check_config`.
        encoders: of different names, at any magnification of their ladders.
        advance: told how many patches are encoded, each counted once an encoder.

    Returns:
        A report an encoder, in order. Stages that they share (open, tissue) count in each of them; ``encode`` is what
        the encoder took and what all waited for pixels.
    """
    reports = {encoder.name: _earlier(entry, config, encoder) for encoder in encoders}
    missing = [encoder for encoder in encoders if reports[encoder.name] is None]
    stages = _Stages()
    try:
        made = _extract(entry, config, missing, advance, stages) if missing else []
    except Exception as error:  # one slide never ends a run
        made = [failure(entry, error, stages.name, stages.seconds, encoder.name) for encoder in missing]
    reports |= {report.encoder: report for report in made}
    return [report for report in reports.values() if report is not None]


def failure(
    entry: SlideEntry, error: Exception, stage: str = "", seconds: dict[str, float] | None = None, encoder: str = ""
) -> SlideReport:
    """The report of a slide that an error ended; of one that zoomfeat does not know it keeps type, text and traceback.

    Args:
        entry: the slide.
        error: what ended it, being handled.
        stage: where.
        seconds: stage to seconds until then.
        encoder: whose bag it is about.
    """
    report = SlideReport(entry.slide_id, entry.path, "failed", seconds=seconds or {}, stage=stage, encoder=encoder)
    if isinstance(error, ZoomfeatError):
        return replace(report, error=error.problem, cure=error.cure)
    return replace(
        report,
        error=f"{type(error).__name__}: {error}".replace("\n", " "),
        cure="Unexpected: see the traceback in failures/, and report it",
        details="".join(traceback.format_exception(error)),
    )


def _extract(
    entry: SlideEntry, config: ExtractConfig, encoders: Sequence[PatchEncoder], advance: Advance, stages: _Stages
) -> list[SlideReport]:
    domain = load_domain(config.domain)
    with stages("open"):
        slide = Slide.open(
            entry.path, mpp=entry.mpp, default_mpp=config.mpp, reader=domain.reader, decode=config.decode
        )
    with slide:
        with stages("tissue"):
            mask = find_foreground(slide, domain.foreground)
            grid = make_grid(slide, mask, domain.steps(config.magnifications), config.min_tissue)
        if config.preview:
            with stages("preview"):
                previews = make_folder(Path(config.out) / "previews")
                draw_preview(slide, mask, grid, previews / f"{entry.slide_id}.png")
        with stages("encode"):
            encoded = encode_grid(slide, grid, encoders, config.batch_size, config.workers, advance)
        waited = stages.seconds["encode"] - sum(result.seconds for result in encoded)
        reports = []
        for encoder, result in zip(encoders, encoded, strict=True):
            stages.seconds["encode"] = round(result.seconds + waited, 3)
            try:
                with stages("write"):
                    path = bag_path(config, encoder.name, entry.slide_id)
                    configuration = bag_configuration(config, encoder)
                    bag = _make_bag(entry, slide, grid, mask.method, result.features, encoder, configuration)
                    make_folder(path.parent)
                    bag.save(path, dtype=config.dtype)
            except Exception as error:  # the other bags are whole all the same
                reports.append(failure(entry, error, stages.name, dict(stages.seconds), encoder.name))
                continue
            reports.append(
                SlideReport(
                    entry.slide_id,
                    entry.path,
                    "done",
                    patches={str(scale.magnification): len(scale.coords) for scale in grid.scales},
                    dropped=grid.dropped,
                    mpp=slide.mpp,
                    mpp_source=slide.mpp_source,
                    seconds=dict(stages.seconds),
                    encoder=encoder.name,
                )
            )
    return reports


def _earlier(entry: SlideEntry, config: ExtractConfig, encoder: PatchEncoder) -> SlideReport | None:
    """The report of an earlier run's bag, of one that another configuration made as a failure; None without one."""
    path = bag_path(config, encoder.name, entry.slide_id)
    if config.overwrite or not path.exists():
        return None
    try:
        return _existing(entry, path, bag_configuration(config, encoder), encoder.name)
    except Exception as error:  # one slide never ends a run
        return failure(entry, error, "resume", encoder=encoder.name)


def _existing(entry: SlideEntry, path: Path, configuration: dict[str, Any], encoder: str) -> SlideReport:
    """The report of a bag that an earlier run made, if it is the one that this run would make."""
    bag = Bag.open(path)
    if bag.metadata.config_hash != configuration_hash(configuration):
        differences = _differences(bag.metadata.configuration, configuration)
        raise BagInvalidError(
            f"made with another configuration ({', '.join(differences[:4]) or 'unknown'})",
            path=path,
            cure="Choose another out=, or overwrite=true to replace it",
        )
    return SlideReport(
        entry.slide_id,
        entry.path,
        "exists",
        patches={scale.magnification: len(scale) for scale in bag.scales},
        dropped=bag.metadata.dropped,
        mpp=bag.metadata.mpp_level0,
        mpp_source=bag.metadata.mpp_source,
        encoder=encoder,
    )


def _differences(stored: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> list[str]:
    if stored.get("name") != wanted.get("name"):  # of the encoder: its other keys are then no news
        return [f"{prefix}name: {stored.get('name')} there, {wanted.get('name')} now"]
    found = []
    for key in sorted(stored.keys() | wanted.keys()):
        old, new = stored.get(key), wanted.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key}: {str(old)[:40]} there, {str(new)[:40]} now")
    return found


@dataclass(frozen=True)
class Encoded:
    """What one encoder made of a grid.

    Attributes:
        features: one array ``(N, dim)`` a scale.
        seconds: that the encoder took.
    """

    features: list[NDArray[np.float32]]
    seconds: float


def encode_grid(
    slide: Slide, grid: Grid, encoders: Sequence[PatchEncoder], batch_size: int, workers: int, advance: Advance
) -> list[Encoded]:
    """Features of every patch of a grid by every encoder, each region of the slide being read once.

    Args:
        slide: where the pixels are.
        grid: which patches.
        encoders: each is run at each scale's magnification.
        batch_size: patches a call of an encoder.
        workers: threads that read ahead.
        advance: told of progress after every call of an encoder.
    """
    scaled = [[encoder.at(scale.magnification) for scale in grid.scales] for encoder in encoders]
    features = [[np.empty((len(scale.coords), e.dim), np.float32) for scale in grid.scales] for e in encoders]
    seconds = [0.0] * len(encoders)
    waiting: list[list[tuple[int, NDArray[np.uint8]]]] = [[] for _ in grid.scales]
    total = len(encoders) * sum(len(scale.coords) for scale in grid.scales)
    done = 0

    def encode(i: int, count: int) -> None:
        nonlocal done
        batch, waiting[i] = waiting[i][:count], waiting[i][count:]
        rows = np.array([row for row, _ in batch])
        patches = np.stack([patch for _, patch in batch])
        for j, encoder in enumerate(scales[i] for scales in scaled):
            start = time.perf_counter()
            context = _context(slide, grid.scales[i], rows, encoder, batch_size)
            features[j][i][rows] = encoder(patches, context)
            seconds[j] += time.perf_counter() - start
            done += len(batch)
            advance(done, total)

    advance(0, total)
    for parts in _read_ahead(lambda region: read_region(slide, region), regions(grid), workers):
        for i, rows, patches in parts:
            waiting[i] += zip(rows, patches, strict=True)
            while len(waiting[i]) >= batch_size:
                encode(i, batch_size)
    for i, rest in enumerate(waiting):
        if rest:
            encode(i, len(rest))
    return [Encoded(arrays, took) for arrays, took in zip(features, seconds, strict=True)]


def _read_ahead(read: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Results in order, read by threads that run at most a few items ahead of the consumer."""
    queue = iter(items)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="read")
    try:
        pending = deque(pool.submit(read, item) for item in islice(queue, 2 * workers))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(read, item) for item in islice(queue, 1))
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _context(
    slide: Slide, scale: Scale, rows: NDArray[np.integer], encoder: PatchEncoder, batch_size: int
) -> NDArray[np.float32] | None:
    """Embeddings of the finest patches under some patches, ``(len(rows), C, g, g)``, for a conditioned encoder."""
    side = scale.magnification.grid
    if encoder.context_encoder is None or side == 1:
        return None
    embed = encoder.context_encoder
    context = np.empty((len(rows), embed.dim, side, side), np.float32)
    block = min(side, MAX_GRID)  # finest patches a side that are read at once, so that memory stays bounded
    width, height = (length // side for length in scale.size)
    for i, (x, y) in enumerate(scale.coords[rows]):
        for top in range(0, side, block):
            for left in range(0, side, block):
                box = (int(x) + left * width, int(y) + top * height, block * width, block * height)
                (canvas,) = slide.read(*box, sizes=[(block * PATCH_SIZE, block * PATCH_SIZE)])
                cells = canvas.reshape(block, PATCH_SIZE, block, PATCH_SIZE, 3).swapaxes(1, 2)
                patches = cells.reshape(-1, PATCH_SIZE, PATCH_SIZE, 3)
                parts = [embed(patches[start : start + batch_size]) for start in range(0, len(patches), batch_size)]
                grid = np.concatenate(parts).T.reshape(embed.dim, block, block)
                context[i, :, top : top + block, left : left + block] = grid
    return context


def _make_bag(
    entry: SlideEntry,
    slide: Slide,
    grid: Grid,
    tissue_method: str,
    features: Sequence[NDArray[np.float32]],
    encoder: PatchEncoder,
    configuration: dict[str, Any],
) -> Bag:
    scales = tuple(
        ScaleFeatures(
            magnification=str(scale.magnification),
            coords=scale.coords,
            patch_size_level0=scale.size,
            mpp=scale.magnification.mpp,
            features=rows,
        )
        for scale, rows in zip(grid.scales, features, strict=True)
    )
    metadata = BagMetadata(
        slide_id=entry.slide_id,
        encoder=encoder.name,
        weights_hash=encoder.weights_hash,
        encoder_settings=dict(encoder.settings),
        reader=slide.reader,
        mpp_level0=slide.mpp,
        mpp_source=slide.mpp_source,
        level0_width=slide.width,
        level0_height=slide.height,
        tissue_method=tissue_method,
        georeference=slide.georeference,
        dropped=grid.dropped,
        configuration=configuration,
        config_hash=configuration_hash(configuration),
        versions=package_versions(),
        note="; ".join(_notes(slide, grid, encoder)),
    )
    return Bag(scales, grid.parents, metadata=metadata)


def _notes(slide: Slide, grid: Grid, encoder: PatchEncoder) -> Iterator[str]:
    """What a reader of the bag must know."""
    if encoder.note:
        yield encoder.note
    finest = grid.scales[0].magnification
    if max(slide.mpp) > finest.mpp:
        yield f"up-sampled: {resolution(max(slide.mpp))}/px served as {finest} ({resolution(finest.mpp)}/px)"
    if slide.metadata_mpp is not None and slide.mpp != slide.metadata_mpp:
        yield f"um/px {slide.mpp} by the {slide.mpp_source}, {slide.metadata_mpp} by the file"


def package_versions() -> dict[str, str]:
    """Versions of what a bag's content may depend on."""
    packages = (
        "zoomfeat",
        "torch",
        "diffusers",
        "timm",
        "openslide-python",
        "simplejpeg",
        "opencv-python-headless",
        "numpy",
    )
    return {"python": platform.python_version()} | {package: version(package) for package in packages}


def report_row(report: SlideReport, magnifications: Sequence[str]) -> dict[str, Any]:
    """A report as a flat row of a table; the magnifications fix its columns."""
    row = asdict(report)
    patches, dropped, seconds, mpp = (row.pop(name) for name in ("patches", "dropped", "seconds", "mpp"))
    row.pop("details")
    if not row["encoder"]:
        row.pop("encoder")
    row["mpp_x"], row["mpp_y"] = mpp or ("", "")
    row |= {f"patches_{name}": patches.get(name, "") for name in magnifications}
    row["dropped"] = "; ".join(f"{reason} {count}" for reason, count in dropped.items())
    row["seconds"] = round(sum(seconds.values()), 2)
    return row

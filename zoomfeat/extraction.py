"""Slides in, bags out: one slide is one unit of work."""

from __future__ import annotations

import glob
import logging
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoomfeat.bags import Bag, BagMetadata, ScaleFeatures
from zoomfeat.claims import Claims, sweep
from zoomfeat.conf.schema import ExtractConfig
from zoomfeat.configuration import bag_configuration, bag_path, configuration_hash, differences
from zoomfeat.domains import load_domain
from zoomfeat.encoders import PatchEncoder
from zoomfeat.encoding import Advance, encode_grid
from zoomfeat.errors import BagInvalidError
from zoomfeat.files import make_folder
from zoomfeat.magnification import resolution
from zoomfeat.report import SlideReport, failure, log_text
from zoomfeat.slide_log import log, slide_log
from zoomfeat.slides import Grid, Slide, SlideEntry, draw_preview, drop_faulty, find_foreground, make_grid

CLAIMS = ".claims"
"""The folder in ``out`` that says who works on which slide."""
LOGS = "logs"
"""The folder in ``out`` that holds a log a slide."""


class _Stages:
    """Which stage a slide is in, and how long each took."""

    def __init__(self) -> None:
        self.name = "claim"
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self.name = name
        log.info(name)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(time.perf_counter() - start, 3)


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
    stages = _Stages()
    missing = [encoder for encoder in encoders if reports[encoder.name] is None]
    try:
        made = _extract_missing(entry, config, missing, advance, stages) if missing else []
    except Exception as error:  # one slide never ends a run
        made = [failure(entry, error, stages.name, stages.seconds, encoder.name) for encoder in missing]
    reports |= {report.encoder: report for report in made}
    return [report for report in reports.values() if report is not None]


def claims(config: ExtractConfig) -> Claims:
    """Who works on which slide of an output folder."""
    return Claims(Path(config.out) / CLAIMS)


def _extract_missing(
    entry: SlideEntry, config: ExtractConfig, encoders: Sequence[PatchEncoder], advance: Advance, stages: _Stages
) -> list[SlideReport]:
    """What :func:`extract_bags` does once it is clear that bags are missing: no two processes do it at a time."""
    with claims(config).hold(entry.slide_id) as mine:
        if not mine:
            holder = claims(config).holder(entry.slide_id) or "another process"
            problem = f"being extracted by {holder}"
            return [
                SlideReport(entry.slide_id, entry.path, "claimed", error=problem, encoder=encoder.name)
                for encoder in encoders
            ]
        # Another run may have made them between the look at the bags and the claim.
        reports = {encoder.name: _earlier(entry, config, encoder) for encoder in encoders}
        missing = [encoder for encoder in encoders if reports[encoder.name] is None]
        if missing:
            for encoder in missing:
                path = bag_path(config, encoder.name, entry.slide_id)
                sweep(path.parent, f".{glob.escape(path.name)}.*.tmp")
            with slide_log(Path(config.out) / LOGS, entry.slide_id):
                try:
                    made = _extract(entry, config, missing, advance, stages)
                except Exception as error:  # one slide never ends a run
                    made = [failure(entry, error, stages.name, stages.seconds, encoder.name) for encoder in missing]
                for report in made:
                    log.log(logging.ERROR if report.status == "failed" else logging.INFO, log_text(report))
            reports |= {report.encoder: report for report in made}
        return [report for report in reports.values() if report is not None]


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
        if config.quality:
            with stages("quality"):
                grid = drop_faulty(slide, grid, config.quality)
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
    """The report of an earlier run's bag; None without one, or where it is to be made again."""
    path = bag_path(config, encoder.name, entry.slide_id)
    try:
        if config.overwrite or not path.exists():
            return None
        bag = Bag.open(path)
        configuration = bag_configuration(config, encoder)
        report = SlideReport(
            entry.slide_id,
            entry.path,
            "exists",
            patches={scale.magnification: len(scale) for scale in bag.scales},
            dropped=bag.metadata.dropped,
            mpp=bag.metadata.mpp_level0,
            mpp_source=bag.metadata.mpp_source,
            encoder=encoder.name,
        )
        if bag.metadata.config_hash == configuration_hash(configuration):
            return report
        if config.on_mismatch == "recompute":
            return None
        found = differences(bag.metadata.configuration, configuration)
        problem = f"made with another configuration ({', '.join(found[:4]) or 'unknown'})"
        if config.on_mismatch == "keep":
            return replace(report, status="kept", error=problem)
        raise BagInvalidError(
            problem,
            path=path,
            cure="Choose another out=, or on_mismatch=recompute to replace it (keep: to leave it), "
            "or overwrite=true to make all again",
        )
    except Exception as error:  # one slide never ends a run
        return failure(entry, error, "resume", encoder=encoder.name)


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

"""Bags of a benchmark: given by the user, or extracted from the cohort's slides; what made them, and their hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.record import Cost, EncoderFacts, canonical
from benchmarks.tasks.cohorts import CohortFiles
from mil.cohort import find_bags
from mil.dataset import load_instances, probe
from zoomfeat.bags import hdf5
from zoomfeat.commands.extract import extract_all
from zoomfeat.conf.schema import BenchmarkConfig, ExtractConfig
from zoomfeat.configuration import bag_configuration, check_config, configuration_hash
from zoomfeat.encoders import PatchEncoder, encoder_info, encoder_names, load_encoder
from zoomfeat.errors import BagInvalidError, ConfigurationError, ZoomfeatError
from zoomfeat.files import make_folder, replacing
from zoomfeat.magnification import PATCH_SIZE
from zoomfeat.report import SlideReport
from zoomfeat.slides import slides


@dataclass(frozen=True)
class EncoderBags:
    """The bags of one encoder.

    Attributes:
        encoder: what made them.
        folder: that holds them.
        cost: of their extraction.
    """

    encoder: EncoderFacts
    folder: Path
    cost: Cost


def given_bags(bags: Any, encoders: Sequence[str]) -> dict[str, Path]:
    """Which folder holds the bags of which encoder.

    Args:
        bags: encoder to folder; or one folder, with a folder an encoder in it or, for one encoder, bags.
        encoders: names.

    Raises:
        ConfigurationError: no folder for an encoder.
    """
    if isinstance(bags, Mapping):
        folders = {str(name): Path(folder) for name, folder in bags.items()}
    else:
        root = Path(str(bags))
        folders = {name: root / name for name in encoders if (root / name).is_dir()}
        if not folders and len(encoders) == 1:
            folders = {encoders[0]: root}
    missing = [name for name in encoders if name not in folders]
    if missing:
        raise ConfigurationError(
            f"no bags of {', '.join(missing)} in bags={bags}",
            cure="Give a folder with one folder an encoder, or bags={encoder:folder}",
        )
    for name in encoders:
        find_bags(folders[name])
    return {name: folders[name] for name in encoders}


def open_given(name: str, folder: Path) -> EncoderBags:
    """Bags that the user has; nothing is known of what they took."""
    return EncoderBags(_facts(name, folder), folder, Cost(bytes_per_slide=_mean_size(folder)))


def extract_bags(
    cohort: CohortFiles, config: BenchmarkConfig, magnifications: Sequence[str], folder: Path, console: Console
) -> tuple[dict[str, EncoderBags], list[str]]:
    """Extracts what is missing, with all encoders from one read of each slide.

    Bags in ``folder`` that another configuration or other weights made are made again.

    Args:
        cohort: its slides.
        config: of the command.
        magnifications: finest first.
        folder: gets a folder of bags an encoder.
        console: where progress is shown.

    Returns:
        Encoder to bags, and what failed, a line each: encoders that cannot be loaded, slides that cannot be read.
    """
    assert cohort.slides is not None  # the caller has checked
    encoders: list[PatchEncoder] = []
    failures = []
    for name in config.encoders:
        try:
            with console.status(f"loading {name}"):
                options = config.encoder_options.get(name, {})
                device = config.device if config.engine.name == "local" else "cpu"  # workers load their own
                encoders.append(load_encoder(name, magnifications[0], device, **options))
        except ZoomfeatError as error:
            failures.append(f"{name}: {error}")
    extraction = ExtractConfig(
        slides=cohort.slides,
        out=str(folder),
        encoders=[encoder.name for encoder in encoders],
        magnifications=list(magnifications),
        min_tissue=cohort.min_tissue,
        device=config.device,
        batch_size=config.batch_size,
        workers=config.workers,
        preview=False,
        encoder_options={encoder.name: config.encoder_options.get(encoder.name, {}) for encoder in encoders},
        engine=config.engine,
    )
    if not encoders:
        return {}, failures
    check_config(extraction)
    make_folder(folder)
    wanted = {encoder.name: configuration_hash(bag_configuration(extraction, encoder)) for encoder in encoders}
    for name, configuration in wanted.items():
        for path in (folder / name).glob("*.h5"):
            if not _is_of(path, configuration):
                path.unlink()
    reports = extract_all(slides(cohort.slides), extraction, encoders, console)
    failures += [f"{r.encoder}, slide {r.slide_id}: {r.error}. {r.cure}" for r in reports if r.status == "failed"]
    found = {}
    for encoder in encoders:
        mine = [report for report in reports if report.encoder == encoder.name and report.status != "failed"]
        if mine:
            place = folder / encoder.name
            facts = replace(_facts(encoder.name, place), note=encoder.note, flops_per_patch=_flops(encoder))
            found[encoder.name] = EncoderBags(facts, place, _cost(mine, place, wanted[encoder.name]))
    return found, failures


def content_sha256(folder: Path, slides: Sequence[str], scales: Sequence[str], cache: Path) -> str:
    """SHA-256 of what training sees of a folder of bags: names, features and parents.

    Args:
        folder: the bags.
        slides: names of those that count; others are left out.
        scales: magnifications, finest first.
        cache: JSON of hashes that are known by size and time of change, so that nothing is read twice.
    """
    known = json.loads(cache.read_text()) if cache.exists() else {}
    lines, fresh = [], dict(known)
    found = {name: path for name, path in find_bags(folder).items() if name in set(slides)}
    for name, path in found.items():
        state = path.stat()
        key = canonical([str(path.resolve()), state.st_size, state.st_mtime_ns, list(scales)])
        if key not in fresh:
            fresh[key] = _instances_sha256(path, scales)
        lines.append(f"{name} {fresh[key]}\n")
    if fresh != known:
        with replacing(cache) as temporary:
            temporary.write_text(json.dumps(fresh), encoding="utf-8")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _instances_sha256(path: Path, scales: Sequence[str]) -> str:
    instances = load_instances(path, scales or None)
    digest = hashlib.sha256()
    for kind in (instances.features, instances.parents):
        for name, array in kind.items():
            digest.update(f"{name} {array.shape} {array.dtype}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _is_of(path: Path, wanted: str) -> bool:
    try:
        return hdf5.read(path)[2].config_hash == wanted
    except BagInvalidError:
        return False


def _facts(name: str, folder: Path) -> EncoderFacts:
    """What the bags say of their encoder, and what the registry knows of it."""
    paths = list(find_bags(folder).values())
    found = probe(paths[:1])
    settings = dict(found.encoder or {})
    stated = settings.pop("name", name)
    if stated != name and name in encoder_names():
        raise ConfigurationError(f"bags of the encoder {stated}, expected {name}", cure="Check bags=", path=paths[0])
    info = encoder_info(name) if name in encoder_names() else None
    weights_hash = settings.pop("weights_hash", None)
    return EncoderFacts(
        name=name,
        weights_hash=weights_hash,
        settings=settings,
        licence=info.licence if info else None,
        parameters=info.parameters if info else None,
        dim=next(iter(found.widths.values())),
    )


def _flops(encoder: PatchEncoder) -> float | None:
    """Floating-point operations for one patch, those of matrix products and convolutions; None where there are none."""
    patch = np.full((1, PATCH_SIZE, PATCH_SIZE, 3), 128, np.uint8)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        inputs = encoder.transform(patch).to(encoder.device)
        encoder.embed(inputs, None)
    return float(counter.get_total_flops()) or None


def _cost(reports: Sequence[SlideReport], folder: Path, wanted: str) -> Cost:
    """Of all slides, also those that an earlier run of the same configuration extracted."""
    path = folder / "cost.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    if known.get("configuration") != wanted:
        known = {"configuration": wanted, "slides": {}}
    for report in reports:
        if report.status == "done":
            known["slides"][report.slide_id] = [sum(report.seconds.values()), sum(report.patches.values())]
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(known), encoding="utf-8")
    seconds, patches = (sum(each[i] for each in known["slides"].values()) for i in (0, 1))
    complete = all(report.slide_id in known["slides"] for report in reports)
    return Cost(
        patches_per_second=patches / seconds if seconds else None,
        extraction_seconds=seconds if complete and seconds else None,
        bytes_per_slide=_mean_size(folder),
    )


def _mean_size(folder: Path) -> float:
    return float(np.mean([path.stat().st_size for path in find_bags(folder).values()]))

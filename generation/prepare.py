"""Slides in, a multi-scale training set out: one slide is one unit of work."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import VQModel
from numpy.typing import NDArray

from generation.index import INDEX, Index, SlideRecord
from generation.initial import initial_first_stage
from generation.plan import BLOCK, BLOCK_LEVEL, make_plan
from generation.pyramid import read_patches
from generation.shards import SlideWriter, columns, write_card
from zoomfeat.conf.schema import EncoderConfig, ExtractConfig, PrepareConfig
from zoomfeat.configuration import check_config as check_extract_config
from zoomfeat.domains import DEFAULT, Domain, load_domain
from zoomfeat.encoders import PatchEncoder, encoder_names, load_encoder
from zoomfeat.encoders.base import resolve_device
from zoomfeat.encoders.zoomldm import ZoomLDMEncoder
from zoomfeat.encoding import Advance
from zoomfeat.errors import ConfigurationError
from zoomfeat.extraction import package_versions
from zoomfeat.magnification import PATCH_SIZE, Magnification
from zoomfeat.models.weights import hash_weights
from zoomfeat.report import SlideReport, failure
from zoomfeat.slides import Slide, SlideEntry, find_foreground
from zoomfeat.slides.tissue import METHOD as TISSUE_METHOD


class FirstStage:
    """The encoding half of a first stage: patches in, latents out.

    Args:
        vae: the first stage.
        device: where it runs.
        note: what a user of the latents must know.

    Attributes:
        weights_hash: SHA-256 of the weights of the whole first stage.
        shape: channels, rows and columns of a latent.
    """

    def __init__(self, vae: VQModel, device: str = "auto", note: str = "") -> None:
        self.device = resolve_device(device)
        self.note = note
        self.weights_hash = hash_weights({"vae": vae})
        side = PATCH_SIZE // 2 ** (len(vae.config.block_out_channels) - 1)
        self.shape: tuple[int, int, int] = (vae.config.latent_channels, side, side)
        self._vae = vae.eval().requires_grad_(False).to(self.device)

    @classmethod
    def load(cls, source: str, device: str = "auto") -> FirstStage:
        """Loads a first stage.

        Args:
            source: the name of a ZoomLDM encoder such as ``zoomldm-tiny``, or what `initial_first_stage` reads: a
                folder of a ZoomLDM or of a first stage, or a CompVis checkpoint.
            device: where it runs.

        Raises:
            ConfigurationError: the name of an encoder that is no ZoomLDM.
            CheckpointMismatchError: no such file, or one without a first stage.
        """
        if source not in encoder_names():
            return cls(initial_first_stage("full", source), device)
        encoder = load_encoder(source, device="cpu")
        if not isinstance(encoder, ZoomLDMEncoder):
            raise ConfigurationError(
                f"first_stage={source} is no ZoomLDM", cure="Give zoomldm-tiny, zoomldm-brca, a folder or a checkpoint"
            )
        return cls(encoder.bundle.vae, device, encoder.note)

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Latents (B, channels, h, w) of patches (B, 256, 256, 3), not quantised.

        On a CPU each patch runs by itself, as in a patch encoder, so that batches do not change its bits.
        """
        step = 1 if self.device.type == "cpu" else len(images)
        latents = np.empty((len(images), *self.shape), np.float16)
        for start in range(0, len(images), step):
            pixels = torch.from_numpy(images[start : start + step]).permute(0, 3, 1, 2).to(self.device).float()
            encoded = self._vae.encode(pixels / 127.5 - 1).latents * self._vae.config.scaling_factor
            latents[start : start + step] = encoded.cpu().numpy()
        return latents


@dataclass(frozen=True, eq=False)
class Tools:
    """What turns pixels into rows.

    Attributes:
        encoder: embeds 20x patches.
        first_stage: makes latents; None for a set without.
    """

    encoder: PatchEncoder
    first_stage: FirstStage | None

    @classmethod
    def load(cls, config: PrepareConfig) -> Tools:
        """Loads both as the configuration says.

        Raises:
            ConfigurationError: an unknown name or option.
            CheckpointMismatchError: weights that do not fit.
        """
        options = {} if config.ssl_weights is None else {"weights": config.ssl_weights}
        domain = load_domain(config.domain)
        name = config.ssl_encoder or domain.embedding
        encoder = load_encoder(name, domain.ladder.finest, device=config.device, **options)
        return cls(encoder, FirstStage.load(config.first_stage, config.device) if config.first_stage else None)

    @property
    def note(self) -> str:
        """What a user of the set must know."""
        notes = {"embeddings": self.encoder.note, "first stage": self.first_stage.note if self.first_stage else ""}
        return "; ".join(f"{part}: {note}" for part, note in notes.items() if note)


def check_config(config: PrepareConfig) -> None:
    """Refuses what cannot run before any slide is opened.

    Raises:
        ConfigurationError: a number out of its range, or an output folder inside the slide folder.
        MagnificationError: an unknown or repeated magnification.
    """
    check_extract_config(  # the keys that both have mean the same
        ExtractConfig(
            slides=config.slides,
            out=config.out,
            encoder=EncoderConfig(config.ssl_encoder or load_domain(config.domain).embedding),
            domain=config.domain,
            magnifications=config.magnifications,
            min_tissue=config.min_tissue,
            batch_size=config.batch_size,
            workers=config.workers,
        )
    )
    if not 0 <= config.min_tissue_coarsest <= config.min_tissue:
        raise ConfigurationError(
            f"min_tissue_coarsest={config.min_tissue_coarsest}; expected 0 to min_tissue ({config.min_tissue})",
            cure="The default is 0.1",
        )
    if config.orientations not in (1, 8):
        raise ConfigurationError(f"orientations={config.orientations}", cure="Use 1 (as on the slide) or 8")
    if config.origins < 1:
        raise ConfigurationError(f"origins={config.origins}", cure="Use 1 (the aligned grid alone) or more, such as 16")
    if config.origins > 1 and max(step.index for step in tissue_thresholds(config)) <= BLOCK_LEVEL:
        raise ConfigurationError(
            f"origins={config.origins} adds no patches: places differ by blocks of {BLOCK} finest patches, "
            "and none of the magnifications is coarser",
            cure="Leave out origins=, or add coarser magnifications",
        )


def tissue_thresholds(config: PrepareConfig) -> dict[Magnification, float]:
    """The least share of tissue at each magnification asked for, finest first.

    A coarse patch is seldom full: most of its area is glass or lies beyond the slide, and with one threshold for all
    nothing would be left of the coarsest steps. From ``min_tissue`` at the finest step to ``min_tissue_coarsest`` at
    the coarsest the threshold falls by the same factor at each step (histology's default: 0.5, 0.4, 0.32, 0.25, 0.2,
    0.16, 0.13, 0.1).
    """
    finest, coarsest = config.min_tissue, config.min_tissue_coarsest
    domain = load_domain(config.domain)
    thresholds = {}
    for step in domain.ladder.steps if config.magnifications is None else domain.steps(config.magnifications):
        share = step.index / domain.ladder.steps[-1].index
        thresholds[step] = float(f"{finest ** (1 - share) * coarsest**share:.4g}")
    return thresholds


def set_configuration(config: PrepareConfig, tools: Tools) -> dict[str, Any]:
    """What decides the rows of a set besides the slides: no paths, no devices, no numbers of workers."""
    thresholds = tissue_thresholds(config)
    domain = load_domain(config.domain)
    return (
        ({} if domain == load_domain(DEFAULT) else {"domain": _described(domain)})
        | {
            "magnifications": [str(step) for step in thresholds],
            "ssl_encoder": tools.encoder.name,
            "ssl_weights_hash": tools.encoder.weights_hash,
            "ssl_settings": dict(tools.encoder.settings),
            "first_stage": tools.first_stage.weights_hash if tools.first_stage else None,
            "min_tissue": {str(step): threshold for step, threshold in thresholds.items()},
            "tissue_method": TISSUE_METHOD if domain.foreground == "tissue" else domain.foreground,
            "unpooled": config.unpooled,
            "mpp": config.mpp,
            "orientations": config.orientations,
        }
        | ({} if config.origins == 1 else {"origins": config.origins})
    )


def _described(domain: Domain) -> dict[str, Any]:
    """A domain as values that make it again, wherever its YAML file is by then."""
    ladder = domain.ladder
    names = [step.name for step in ladder.steps]
    return {
        "reader": domain.reader,
        "foreground": domain.foreground,
        "ladder": {"name": ladder.name, "names": names, "finest": f"{ladder.finest.mpp:.12g} um"},
    }


def open_index(config: PrepareConfig, tools: Tools) -> Index:
    """The index of ``out``: a new one, or that of the run to go on with.

    Raises:
        ConfigurationError: the set there was made with another configuration; the differing keys are named.
        ZoomfeatError: its index is damaged.
    """
    out, wanted = Path(config.out), set_configuration(config, tools)
    if not (out / INDEX).exists():
        shape = tools.first_stage.shape if tools.first_stage else None
        return Index(wanted, tools.encoder.dim, shape, tools.note, package_versions())
    index = Index.load(out)
    there = index.configuration
    differing = [key for key in sorted(wanted.keys() | there.keys()) if there.get(key) != wanted.get(key)]
    if differing:
        pairs = (f"{key}: {str(there.get(key))[:40]} there, {str(wanted.get(key))[:40]} now" for key in differing)
        raise ConfigurationError(
            f"made with another configuration ({', '.join(pairs)})", path=out, cure="Choose another out="
        )
    return index


def save_index(folder: Path, index: Index) -> None:
    """Writes the index, and the data set card that follows from it."""
    write_card(folder, index)
    index.save(folder)


def prepare_slide(
    entry: SlideEntry,
    config: PrepareConfig,
    tools: Tools,
    advance: Advance = lambda done, total: None,
) -> tuple[SlideReport, SlideRecord | None]:
    """Prepares one slide; pure but for the shards that it leaves.

    Args:
        entry: the slide.
        config: checked by `check_config`.
        tools: encoder and first stage.
        advance: told how many patches of all magnifications are made, and how many there will be.

    Returns:
        The report, and the record for the index. A slide that cannot be prepared is a report with an error and no
        record.
    """
    start = time.perf_counter()
    try:
        record = _prepare(entry, config, tools, advance)
    except Exception as error:  # one slide never ends a run
        return failure(entry, error, seconds={"all": time.perf_counter() - start}), None
    return report_of(entry, record, "done", time.perf_counter() - start), record


def report_of(entry: SlideEntry, record: SlideRecord, status: str, seconds: float = 0.0) -> SlideReport:
    """The report of a slide that is in the set; ``status`` is ``done`` or ``exists``."""
    return SlideReport(
        entry.slide_id,
        entry.path,
        status,
        patches={name: record.counts.get(name, 0) for name in record.dropped},
        dropped={f"tissue at {name}": count for name, count in record.dropped.items() if count},
        mpp=record.mpp,
        mpp_source=record.mpp_source,
        seconds={"all": seconds},
    )


def _prepare(entry: SlideEntry, config: PrepareConfig, tools: Tools, advance: Advance) -> SlideRecord:
    features = columns(config.unpooled, tools.first_stage is not None)
    domain = load_domain(config.domain)
    with Slide.open(entry.path, mpp=entry.mpp, default_mpp=config.mpp, reader=domain.reader) as slide:
        foreground = find_foreground(slide, domain.foreground)
        plan = make_plan(slide, foreground, tissue_thresholds(config), domain.ladder, config.origins)
        done, total = 0, config.orientations * sum(plan.counts.values())
        advance(done, total)
        patches = read_patches(slide, plan, tools.encoder, config.batch_size, config.workers)
        with (
            ThreadPoolExecutor(config.workers, thread_name_prefix="png") as pool,
            SlideWriter(Path(config.out), entry.slide_id, features, pool) as writer,
        ):
            while batch := [
                patch.turned(number)
                for patch in islice(patches, config.batch_size)
                for number in range(config.orientations)
            ]:
                images = np.stack([patch.image for patch in batch])
                writer.add(batch, tools.first_stage(images) if tools.first_stage else [None] * len(batch))
                done += len(batch)
                advance(done, total)
        return SlideRecord(entry.slide_id, slide.mpp, slide.mpp_source, plan.dropped, writer.shards())

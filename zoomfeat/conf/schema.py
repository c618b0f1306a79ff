"""Every key of every command: its type, its default and what it means.

These dataclasses are the only list of keys. Hydra validates against them, ``--help`` and ``--cfg job`` print
their explanations, and the encoders take their options as one of them. Nothing heavy is imported here.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from typing import Any


def key(default: Any, meaning: str) -> Any:
    """A field with an explanation; lists are copied for each instance."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": meaning})
    return field(default=default, metadata={"help": meaning})


REQUIRED: Any = "???"
"""A key without a default, as OmegaConf spells it."""


@dataclass
class EncoderConfig:
    """An encoder without options of its own."""

    name: str = key(REQUIRED, "name in the registry; `zoomfeat encoders` lists all")


@dataclass
class WeightsConfig(EncoderConfig):
    """An encoder whose weights lie on the hub or on disk."""

    weights: str | None = key(None, "local weights instead of the hub's: a checkpoint file or a folder")


@dataclass
class ZoomLDMConfig(EncoderConfig):
    """What decides ZoomLDM's features besides weights and magnification."""

    weights: str | None = key(
        None, "weights.ckpt of the release (config.yaml beside it) or a converted folder; null: the encoder's own"
    )
    taps: list[str] = key(
        ["up_blocks.0"], "places in the denoiser, concatenated: mid, up_blocks.0, up_blocks.1.layers.2, output_blocks.3"
    )
    pool: str = key("mean", "how a tap's activations are pooled over space: mean or max")
    timestep: int = key(100, "noise level of the patch, 0 to 999")
    seed: int = key(0, "seed of the noise")
    draws: int = key(1, "how many noises the features are averaged over")
    conditioning: str = key("null", "null: no condition; ssl: embeddings of the 20x patches through the Summarizer")
    ssl_encoder: str = key("uni", "encoder of those embeddings: the one that the model was trained with")


@dataclass
class ExtractConfig:
    """Slides in, one HDF5 bag a slide out."""

    slides: str = key(
        REQUIRED, "folder of slides (searched below too), one slide, or a manifest CSV: path[,slide_id][,mpp]"
    )
    out: str = key(REQUIRED, "folder for the bags, report.csv, config.yaml and previews; not inside the slide folder")
    encoder: EncoderConfig = key(
        REQUIRED, "patch encoder, for example encoder=zoomldm-brca; its keys follow as encoder.KEY"
    )
    magnifications: list[str] = key(["20x", "5x"], "any of 20x 10x 5x 2.5x 1.25x 0.625x 0.3125x 0.15625x")
    mpp: float | None = key(
        None, "microns per pixel of slides whose metadata give none; a manifest's mpp column wins over both"
    )
    min_tissue: float = key(0.5, "share of a finest-magnification patch that must be tissue, 0 to 1")
    device: str = key("auto", "where the encoder runs: auto, cpu, cuda, cuda:1")
    batch_size: int = key(
        16, "patches at once on a GPU (a CPU takes them one by one); never changes which patches are kept"
    )
    workers: int = key(2, "threads that read ahead while the encoder runs")
    dtype: str = key("float32", "type of stored features: float32 or float16 (CLAM's head needs float32)")
    preview: bool = key(True, "write a PNG of tissue and kept patches for every slide to out/previews")
    overwrite: bool = key(False, "make bags again that exist already")


@dataclass
class InspectConfig:
    """Prints bags as tables."""

    bag: str = key(REQUIRED, "a bag, or a folder of bags; also accepted without `bag=`")


@dataclass
class ConvertConfig:
    """Bags to and from the layouts of other tools."""

    source: str = key(REQUIRED, "a bag, a folder of bags, or a folder in another tool's layout")
    out: str = key(REQUIRED, "folder to write to")
    to: str = key("zoomfeat", "layout to write: zoomfeat, fused, trident, clam, stamp, torchmil or anndata")
    layout: str | None = key(None, "layout to read: zoomfeat, trident, clam, stamp or torchmil; null: recognised")
    features: str = key(
        "all", "what goes into one matrix: all (a folder a magnification), finest, 20x, 5x, ... or fused"
    )
    mpp: float | None = key(None, "microns per pixel at level 0, where the source does not state it")
    magnification: str | None = key(None, "magnification of the patches, where the source does not state it")
    encoder_name: str | None = key(None, "name of the encoder, where the source does not state it or holds several")


@dataclass
class ConvertCheckpointConfig:
    """A released checkpoint to diffusers' layout (safetensors)."""

    weights: str = key(REQUIRED, "weights.ckpt of the release")
    config: str | None = key(None, "its config.yaml; null: the one beside the checkpoint")
    out: str = key(REQUIRED, "folder to write to; give it later as encoder.weights")
    ema: bool = key(True, "the averaged denoiser weights, as published results use; false: the raw ones")


@dataclass
class EncodersConfig:
    """Lists the patch encoders."""


@dataclass
class DemoConfig:
    """Makes small synthetic slides and runs the main job on them, offline."""

    out: str = key("demo", "folder for the slides, the bags and the previews")
    encoder: EncoderConfig = key(REQUIRED, "patch encoder; zoomldm-tiny where not given")


COMMAND_CONFIGS: dict[str, type] = {
    "extract": ExtractConfig,
    "inspect": InspectConfig,
    "convert": ConvertConfig,
    "convert-checkpoint": ConvertCheckpointConfig,
    "encoders": EncodersConfig,
    "demo": DemoConfig,
}
"""The class of each command's keys; the YAML of the same name holds what Hydra composes."""

ENCODER_CONFIGS: dict[str, type] = {"plain": EncoderConfig, "weights": WeightsConfig, "zoomldm": ZoomLDMConfig}
"""The classes of encoder options, by the names that the YAML files of the encoders use."""

ENCODERS = {
    "color-stats": "plain",
    "efficientnet-lite0": "plain",
    "uni": "weights",
    "zoomldm-brca": "zoomldm",
    "zoomldm-naip": "zoomldm",
    "zoomldm-tiny": "zoomldm",
}
"""The registered encoders and their kind of options, without importing what runs them."""


def explanations(config: type) -> dict[str, str]:
    """Key to explanation, in order."""
    return {f.name: f.metadata["help"] for f in fields(config)}


def defaults(config: type) -> dict[str, Any]:
    """Key to default; ``REQUIRED`` where there is none."""
    return {f.name: f.default_factory() if f.default_factory is not MISSING else f.default for f in fields(config)}

"""Models by name: the released ones, the small one that ships, or whatever lies at a path."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from generation.pipelines.patch import ZoomLDMPipeline
from zoomfeat.domains import load_domain
from zoomfeat.encoders.base import resolve_device
from zoomfeat.encoders.zoomldm import TINY, released_checkpoint
from zoomfeat.errors import ConfigurationError
from zoomfeat.magnification import BRCA, NAIP


@dataclass(frozen=True)
class NamedModel:
    """A model that users name.

    Attributes:
        ladder: the domain whose magnifications it knows.
        ssl_encoder: what it was conditioned on.
        weights: where it lies; None: the domain's released checkpoint.
        note: what whoever sees its images must know.
    """

    ladder: str
    ssl_encoder: str
    weights: Path | None = None
    note: str = ""


MODELS = {
    "zoomldm-brca": NamedModel(BRCA.name, load_domain(BRCA.name).embedding),
    "zoomldm-naip": NamedModel(NAIP.name, load_domain(NAIP.name).embedding),
    "zoomldm-tiny": NamedModel(
        BRCA.name, "efficientnet-lite0", TINY, "a small model trained on few pictures, for demonstration and tests only"
    ),
}
"""The models by name."""


def load_pipeline(model: str, cdm: str | Path | None = None, device: str = "auto") -> ZoomLDMPipeline:
    """A model, ready to sample.

    Args:
        model: a name of :data:`MODELS`, or the path of a folder or of a released checkpoint.
        cdm: its conditioning model; null: the one that lies beside it, if any. The public release has none.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` and so on.

    Raises:
        ConfigurationError: neither a name nor a path.
        CheckpointMismatchError: weights that are not to be had, or do not fit.
    """
    where = resolve_device(device)
    named = MODELS.get(model)
    if named is None:
        if not Path(model).exists():
            raise ConfigurationError(
                f"no model {model!r}", cure=f"Use one of {', '.join(MODELS)}, or the path of a folder or checkpoint"
            )
        return ZoomLDMPipeline.load(model, cdm=cdm).to(where)
    weights = named.weights or released_checkpoint(named.ladder)
    pipe = ZoomLDMPipeline.load(weights, cdm=cdm)
    pipe.register_to_config(ladder=named.ladder, ssl_encoder=named.ssl_encoder)
    return pipe.to(where)

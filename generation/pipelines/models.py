"""Models by name: the released ones, the small one that ships, or whatever lies at a path."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from generation.pipelines.patch import ZoomLDMPipeline
from zoomfeat.encoders.base import resolve_device
from zoomfeat.encoders.zoomldm import HUB, TINY
from zoomfeat.errors import ConfigurationError
from zoomfeat.magnification import BRCA, NAIP
from zoomfeat.models.weights import fetch


@dataclass(frozen=True)
class NamedModel:
    """A model that users name.

    Attributes:
        ladder: its magnifications.
        ssl_encoder: what it was conditioned on, where that is an encoder of ours.
        folder: of the hub repository; None: the model ships with zoomfeat.
        note: what whoever sees its images must know.
    """

    ladder: str
    ssl_encoder: str | None
    folder: str | None
    note: str = ""


MODELS = {
    "zoomldm-brca": NamedModel(BRCA.name, "uni", "brca"),
    "zoomldm-naip": NamedModel(NAIP.name, "dinov2-vitl14-reg", "naip"),
    "zoomldm-tiny": NamedModel(
        BRCA.name, "efficientnet-lite0", None, "a small model trained on few pictures, for demonstration and tests only"
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
    if named.folder is None:
        weights = TINY
    else:
        weights = fetch(HUB, f"{named.folder}/weights.ckpt")
        fetch(HUB, f"{named.folder}/config.yaml")  # comes to lie beside the weights
    pipe = ZoomLDMPipeline.load(weights, cdm=cdm)
    pipe.register_to_config(ladder=named.ladder, ssl_encoder=named.ssl_encoder)
    return pipe.to(where)

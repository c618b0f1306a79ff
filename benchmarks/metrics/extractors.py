"""Networks whose features are compared: any encoder of the registry, the FID Inception, CLIP's image towers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from torch_fidelity.feature_extractor_clip import MODEL_METADATA, FeatureExtractorCLIP
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

from benchmarks.metrics.features import Network
from zoomfeat.encoders import PatchEncoder, encoder_names, load_encoder
from zoomfeat.encoders.base import resolve_device
from zoomfeat.errors import CheckpointMismatchError, ConfigurationError
from zoomfeat.files import file_sha256
from zoomfeat.magnification import PATCH_SIZE
from zoomfeat.models.weights import hash_weights, read_state_dict

INCEPTION = "inception-v3"
CLIP_TOWERS = tuple(MODEL_METADATA)
"""``clip-vit-b-32``, which clean-fid's CLIP FID uses, and its relatives."""

# SHA-256 of weights-inception-2015-12-05-6726825d.pth, torch-fidelity's and pytorch-fid's port of the network that FID
# was defined on (Heusel et al. 2017).
_FID_INCEPTION = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


@dataclass(frozen=True)
class Extractor:
    """A network as metrics see it.

    Attributes:
        network: its name and identity.
        embed: ``(B, H, W, 3)`` uint8 to ``(B, D)`` float32.
        side: of the images it takes, in pixels; None: any.
    """

    network: Network
    embed: Callable[[NDArray[np.uint8]], NDArray[np.float32]]
    side: int | None = None

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features ``(B, D)`` of images ``(B, H, W, 3)`` uint8.

        Raises:
            ConfigurationError: images of a size that it does not take.
        """
        if self.side and images.shape[1:3] != (self.side, self.side):
            height, width = images.shape[1:3]
            raise ConfigurationError(
                f"images of {width} x {height} px; {self.network.name} takes {self.side} x {self.side}",
                cure="Use patches of that size, or random crops (RandomCrops) of large images",
            )
        return self.embed(images)


def extractor_names() -> list[str]:
    """All names, registry encoders included."""
    return sorted([INCEPTION, *CLIP_TOWERS, *encoder_names()])


def load_extractor(
    name: str,
    *,
    weights: str | Path | None = None,
    magnification: str = "20x",
    device: str = "auto",
    download: bool = False,
    **options: Any,
) -> Extractor:
    """An extractor by name.

    Args:
        name: ``inception-v3`` (that of FID), a CLIP tower, or an encoder of the registry.
        weights: a local file: for Inception and CLIP torch-fidelity's or OpenAI's, for encoders what they take.
        magnification: of the patches, for encoders.
        device: as for encoders.
        download: lets torch-fidelity fetch the weights of Inception or CLIP; else nothing is fetched for them.
        options: the encoder's own.

    Raises:
        ConfigurationError: unknown, or no weights.
        CheckpointMismatchError: weights that do not fit.
    """
    if name in (INCEPTION, *CLIP_TOWERS):
        if options:
            raise ConfigurationError(
                f"{name} has no option {', '.join(options)}", cure="It has weights, device and download"
            )
        return _fidelity_extractor(name, weights, device, download)
    if weights is not None:
        options["weights"] = str(weights)
    return encoder_extractor(load_encoder(name, magnification, device, **options))


def encoder_extractor(encoder: PatchEncoder) -> Extractor:
    """A registry encoder that is loaded already."""
    settings = json.dumps({"magnification": str(encoder.magnification), **encoder.settings}, sort_keys=True)
    return Extractor(Network(encoder.name, encoder.dim, encoder.weights_hash, settings), encoder, PATCH_SIZE)


def _fidelity_extractor(name: str, weights: str | Path | None, device: str, download: bool) -> Extractor:
    kind, layer = (FeatureExtractorInceptionV3, "2048") if name == INCEPTION else (FeatureExtractorCLIP, "clip")
    if weights is None and not download:
        raise ConfigurationError(
            f"no weights of {name} here, and nothing is fetched unasked",
            cure="Give weights=path (a file that torch-fidelity knows), or download=True",
        )
    if weights is not None and name == INCEPTION:
        read_state_dict(weights)  # refuses what would run code: torch-fidelity itself unpickles anything
    try:
        path = None if weights is None else str(weights)
        network = kind(name, [layer], feature_extractor_weights_path=path, verbose=False)
    except (RuntimeError, KeyError, ValueError, OSError) as error:
        raise CheckpointMismatchError(
            f"no weights of {name} ({' '.join(str(error).split())[:120]})",
            path=weights,
            cure="Give the file that torch-fidelity fetches for it, or see whether the network can be reached",
        ) from error
    fetched = Path(torch.hub.get_dir(), "checkpoints", Path(URL_INCEPTION_V3).name)  # of CLIP, its hash is checked
    file = Path(weights or fetched)
    expected = _FID_INCEPTION if name == INCEPTION else MODEL_METADATA[name]["hash"]
    official = file_sha256(file) == expected if weights or name == INCEPTION else True
    identity = hash_weights({"network": network})
    dim = 2048 if name == INCEPTION else network.model.visual.output_dim
    known = Network(
        name if official else f"{name}, weights {identity[:8]}",
        dim,
        identity,
        short=("" if name == INCEPTION else f"CLIP {name.removeprefix('clip-')} ") if official else None,
    )
    place = resolve_device(device)
    network.to(place)
    side = None if name == INCEPTION else network.resolution

    @torch.inference_mode()
    def embed(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(place)
        if side:  # as clean-fid does for CLIP: antialiased; torch-fidelity's own way skips pixels of large images
            pixels = _bicubic(pixels, side)
        return network(pixels)[0].float().cpu().numpy()

    return Extractor(known, embed)


def _bicubic(pixels: torch.Tensor, side: int) -> torch.Tensor:
    if pixels.shape[-2:] == (side, side):
        return pixels
    resized = functional.interpolate(pixels.float(), (side, side), mode="bicubic", antialias=True)
    return resized.clamp(0, 255).round().byte()

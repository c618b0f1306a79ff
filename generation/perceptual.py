"""A perceptual distance from a network that installs with zoomfeat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoomfeat.encoders.pretrained import efficientnet_lite0_network

STAGES = 5
"""Of the network; their strides are 2, 4, 8, 16 and 32."""


class EfficientNetDistance(nn.Module):
    """Distance between features of EfficientNet-Lite0 (ImageNet weights).

    The form is that of LPIPS (Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual
    Metric", 2018, equation 1) with equal weights: features are normalised over their channels, and the squared
    differences averaged over space and summed over stages.

    Args:
        weight: factor on the distance.
        stages: of the network that are compared, ascending, from 0. The first three see edges to nuclei.
    """

    def __init__(self, weight: float, stages: Sequence[int] = (0, 1, 2)) -> None:
        super().__init__()
        self.weight, self.stages = weight, list(stages)
        self.network: Any = efficientnet_lite0_network().eval().requires_grad_(False)

    def forward(self, made: Tensor, real: Tensor) -> Tensor:
        """Weighted distance of each pair, ``(B,)``; both ``(B, 3, H, W)`` in [-1, 1], which is the network's range."""
        with torch.no_grad():
            wanted = self._features(real)
        pairs = zip(self._features(made), wanted, strict=True)
        return self.weight * torch.stack([(a - b).square().sum(1).mean((1, 2)) for a, b in pairs]).sum(0)

    def _features(self, images: Tensor) -> list[Tensor]:
        stages = self.network.forward_intermediates(images, indices=self.stages, intermediates_only=True)
        return [functional.normalize(stage.float(), dim=1) for stage in stages]

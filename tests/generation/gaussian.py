"""A model with a known answer, to test samplers on: white noise as data, and a first stage that loses nothing."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor
from torch.nn import functional

from zoomfeat.models.architecture import build_scheduler

FACTOR = 32  # px of an image along the side of a latent value


class GaussianModel:
    """What joint sampling needs of a ZoomLDM, for latents that are independent and standard normal.

    The best prediction of noise is then ``sqrt(1 - abar) * x``. Images are latents with every value as a block.
    """

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.scheduler = build_scheduler()
        self.vae = SimpleNamespace(config=SimpleNamespace(block_out_channels=(8,) * 6, scaling_factor=1.0), decode=self)
        self.summarizer = SimpleNamespace(null_context=lambda batch: torch.zeros(batch, 65, 4))
        self.passes = 0

    @property
    def unet(self):
        def predict(states: Tensor, timestep: float, tokens: Tensor) -> SimpleNamespace:
            self.passes += 1
            abar = self.scheduler.alphas_cumprod[int(timestep) - 1]
            return SimpleNamespace(sample=(1 - abar).sqrt() * states)

        predict.config = SimpleNamespace(in_channels=3)
        return predict

    def encode(self, pixels: Tensor) -> Tensor:
        return functional.avg_pool2d(pixels, FACTOR)

    def decode(self, latents: Tensor) -> Tensor:
        return functional.interpolate(latents, scale_factor=FACTOR)

"""Classifier-free guidance, in the two conventions that ZoomLDM's release uses side by side.

Source: Ho and Salimans, "Classifier-Free Diffusion Guidance" (2022), equation 6, which is the second convention;
the samplers of latent diffusion use the first. The null condition is zeros after the Summarizer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoomfeat.models.zoomldm import ZoomLDM


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """``u + scale * (c - u)``: 1 is no guidance; same shape as the inputs.

    The joint sampler's ``(1 + w) * c - w * u`` is this with ``scale = 1 + w``, see :func:`scale_of_weight`.
    """
    return unconditional + scale * (conditional - unconditional)


def scale_of_weight(weight: float) -> float:
    """The scale of :func:`guide` for the weight w of ``(1 + w) * c - w * u``."""
    return 1 + weight


@torch.no_grad()
def guided_noise(bundle: ZoomLDM, latents: Tensor, timestep: Tensor | float, tokens: Tensor, scale: float) -> Tensor:
    """The denoiser's noise prediction under guidance, both passes in one batch.

    Args:
        bundle: the model.
        latents: noisy latents ``(B, 3, h, w)``.
        timestep: one for all, 0 to 1000; fractions are allowed.
        tokens: Summarizer tokens ``(B, 65, D)``.
        scale: see :func:`guide`.

    Returns:
        ``(B, 3, h, w)``.
    """
    both = torch.cat([tokens, torch.zeros_like(tokens)])
    conditional, unconditional = bundle.unet(torch.cat([latents, latents]), timestep, both).sample.chunk(2)
    return guide(conditional, unconditional, scale)

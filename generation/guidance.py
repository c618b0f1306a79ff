"""Classifier-free guidance, in the two conventions that ZoomLDM's release uses side by side.

With the conditional prediction c and the unconditional one u:

- ``u + scale * (c - u)``: latent diffusion's samplers, diffusers' ``guidance_scale``, and every ``scale`` and
  ``guidance`` in this package. 1 is no guidance, 0 no condition.
- ``(1 + w) * c - w * u``: Ho and Salimans, "Classifier-Free Diffusion Guidance" (2022), equation 6, and the release's
  joint sampler. 0 is no guidance, -1 no condition.

They are the same with ``scale = 1 + w``. The null condition is zeros after the Summarizer.
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


def guided_noise(bundle: ZoomLDM, latents: Tensor, timestep: Tensor | float, tokens: Tensor, scale: float) -> Tensor:
    """The denoiser's noise prediction under guidance, both passes in one batch; without guidance there is one pass.

    It can be differentiated; samplers hold ``torch.no_grad()`` themselves.

    Args:
        bundle: the model.
        latents: noisy latents ``(B, C, h, w)``.
        timestep: one for all, 0 to 1000; fractions are allowed.
        tokens: Summarizer tokens ``(B, 65, D)``.
        scale: see :func:`guide`.

    Returns:
        ``(B, C, h, w)``.
    """
    if scale == 1:
        return bundle.unet(latents, timestep, tokens).sample
    both = torch.cat([tokens, torch.zeros_like(tokens)])
    conditional, unconditional = bundle.unet(torch.cat([latents, latents]), timestep, both).sample.chunk(2)
    return guide(conditional, unconditional, scale)

"""Condition inversion: the embeddings of 20x patches that best explain an image of a coarser magnification.

Source: ZoomLDM (CVPR 2025, section 4.3) and its release; the objective is :func:`generation.losses.inversion_loss`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from generation.batches import seeded_normal
from generation.losses import InversionLoss, inversion_loss
from generation.sampling_state import SamplingState
from zoomfeat.magnification import PATCH_SIZE, Magnification
from zoomfeat.models.zoomldm import ZoomLDM

STEPS, RATE = 200, 0.1
FIRST, LAST = 950, 50
"""Timesteps go evenly from the first to the last."""

_INITIAL, _NOISE = range(2)  # what random numbers are for, as a part of their seed


def invert(
    bundle: ZoomLDM,
    latents: Tensor,
    embeddings: Tensor,
    magnification: int,
    timesteps: Iterable[int],
    noises: Iterable[Tensor],
    *,
    rate: float = RATE,
    on_step: Callable[[InversionLoss], None] = lambda loss: None,
) -> Tensor:
    """Moves embeddings by Adam until the denoiser explains a latent with them.

    Args:
        bundle: the model; its weights stay.
        latents: what to explain, ``(1, C, h, w)``.
        embeddings: where to start, ``(D, g, g)``, not normalised.
        magnification: index in the ladder.
        timesteps: one a step, 1 to 1000.
        noises: one a step, like ``latents``.
        rate: Adam's.
        on_step: is called with the objective of every step.

    Returns:
        ``(D, g, g)``, not normalised.
    """
    with torch.enable_grad():
        variable = embeddings.detach().clone().requires_grad_()
        optimizer = torch.optim.Adam([variable], lr=rate)
        abar = bundle.scheduler.alphas_cumprod
        for t, noise in zip(timesteps, noises, strict=True):
            loss = inversion_loss(
                bundle.unet, bundle.summarizer, latents, variable, magnification, float(t), abar[t - 1], noise
            )
            variable.grad = torch.autograd.grad(loss.total, variable)[0]  # the weights get none
            optimizer.step()
            on_step(loss)
    return variable.detach()


def infer_embeddings(
    bundle: ZoomLDM,
    image: Tensor,
    magnification: Magnification,
    *,
    seed: int,
    steps: int = STEPS,
    rate: float = RATE,
    on_step: Callable[[], None] = lambda: None,
    state: SamplingState | None = None,
) -> Tensor:
    """Embeddings of the 20x patches under an image, patch by patch of its own magnification.

    Args:
        bundle: the model.
        image: ``(3, H, W)`` in [-1, 1], H and W at least 256 and multiples of 256 / g, where g x g patches of 20x lie
            under a patch of the image's magnification. Where 256 does not divide a side, the last patches overlap and
            the means of both are taken.
        magnification: of the image; its grid is at most 8 x 8, since coarser ones know pooled embeddings only.
        seed: decides where the embeddings start, and the noise.
        steps: of Adam.
        rate: Adam's.
        on_step: is called after every step of every patch.
        state: where to keep what is found, and go on from.

    Returns:
        ``(D, H * g / 256, W * g / 256)``, not normalised.

    Raises:
        ConfigurationError: the state belongs to another run.
    """
    grid = magnification.grid
    cell = PATCH_SIZE // grid
    shape = (bundle.summarizer.config.input_dim, grid, grid)
    state = state or SamplingState(None, "")
    done, kept = state.load()
    total = kept.get("total", torch.zeros(shape[0], image.shape[1] // cell, image.shape[2] // cell)).to(bundle.device)
    counts = kept.get("counts", torch.zeros_like(total[:1])).to(bundle.device)
    timesteps = torch.linspace(FIRST, LAST, steps).long().tolist()
    for number, (top, left) in enumerate(patch_places(image.shape[1], image.shape[2])):
        if number < done:
            for _ in timesteps:
                on_step()
            continue
        patch = image[None, :, top : top + PATCH_SIZE, left : left + PATCH_SIZE].to(bundle.device)
        latents = bundle.encode(patch)
        noises = (seeded_normal(latents.shape, seed, _NOISE, number, step).to(latents) for step in range(steps))
        found = invert(
            bundle,
            latents,
            seeded_normal(shape, seed, _INITIAL, number).to(latents),
            magnification.index,
            timesteps,
            noises,
            rate=rate,
            on_step=lambda loss: on_step(),
        )
        row, column = top // cell, left // cell
        total[:, row : row + grid, column : column + grid] += found
        counts[:, row : row + grid, column : column + grid] += 1
        state.save(number + 1, {"total": total, "counts": counts})
    return total / counts


def patch_places(height: int, width: int) -> list[tuple[int, int]]:
    """Top and left of the patches that cover an image; the last ones move inwards where 256 does not divide it."""
    return [(top, left) for top in _starts(height) for left in _starts(width)]


def _starts(length: int) -> list[int]:
    return sorted({*range(0, length - PATCH_SIZE + 1, PATCH_SIZE), length - PATCH_SIZE})

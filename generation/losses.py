"""The denoiser's losses, for training and for inferring a condition, through one prediction.

:func:`predict` noises latents, summarises embeddings and predicts the noise. Training averages its squared error;
condition inversion (ZoomLDM, CVPR 2025, section 4.3) weighs it and looks for the embeddings that make it small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.nn import functional

from zoomfeat.models.summarizer import Summarizer, embedding_grid

SIMILARITY_WEIGHT = 0.05
"""Weight of the mean pairwise cosine similarity in the inversion objective, as published."""


@dataclass(frozen=True)
class Prediction:
    """What the denoiser said of a noised batch.

    Attributes:
        tokens: the context it read, ``(B, 65, D)``; zeros where the condition was dropped.
        noise: its prediction, ``(B, 3, h, w)``.
        squared_error: against the noise that was added, ``(B, 3, h, w)``, float32.
    """

    tokens: Tensor
    noise: Tensor
    squared_error: Tensor


def predict(
    unet: UNet2DConditionModel,
    summarizer: Summarizer,
    latents: Tensor,
    grids: Sequence[Tensor],
    magnifications: Tensor,
    timesteps: Tensor,
    signal: Tensor,
    noise: Tensor,
    dropped: Tensor | None = None,
) -> Prediction:
    """Noises latents and predicts that noise from them, the timestep and the condition.

    Args:
        unet: the denoiser.
        summarizer: makes its context.
        latents: clean latents ``(B, 3, h, w)``.
        grids: raw embeddings of the patches below, one ``(C, g, g)`` a sample; normalised here.
        magnifications: indices in the ladder, ``(B,)`` integers.
        timesteps: what the denoiser is told, ``(B,)``, 0 to 1000; fractions are allowed.
        signal: share of the latents' variance that is left, ``(B,)`` in (0, 1); the schedule's ``alphas_cumprod``
            at the timestep. An argument of its own since the release reads it at ``t`` in training and at ``t - 1``
            in inversion and joint sampling.
        noise: standard normal, like ``latents``.
        dropped: ``(B,)`` booleans, true for the null condition (zeros after the Summarizer); null: none dropped.

    Returns:
        Tokens, predicted noise and its squared error.
    """
    signal = signal.reshape(-1, 1, 1, 1)
    noisy = signal.sqrt() * latents + (1 - signal).sqrt() * noise
    tokens = summarizer([embedding_grid(grid[None])[0] for grid in grids], magnifications)
    if dropped is not None:
        # Multiplying keeps the Summarizer in the graph of a batch that drops all: every process must have gradients.
        tokens = tokens * (~dropped).to(tokens.dtype)[:, None, None]
    predicted = unet(noisy, timesteps, tokens).sample
    return Prediction(tokens, predicted, (predicted.float() - noise.float()).square())


@dataclass(frozen=True)
class InversionLoss:
    """The inversion objective and its terms, scalars.

    Attributes:
        total: ``error - 0.05 * similarity``, what is minimised.
        error: weighted squared error of the noise prediction.
        similarity: mean cosine similarity of all pairs of embeddings, each with itself included.
        prediction: the denoiser's.
    """

    total: Tensor
    error: Tensor
    similarity: Tensor
    prediction: Prediction


def inversion_loss(
    unet: UNet2DConditionModel,
    summarizer: Summarizer,
    latents: Tensor,
    embeddings: Tensor,
    magnification: int,
    timestep: float,
    signal: float | Tensor,
    noise: Tensor,
) -> InversionLoss:
    """How badly embeddings explain a latent at one noise level.

    Source: ZoomLDM, section 4.3, and its release: the error is weighted by ``sqrt(abar) * (1 - abar)``, and embeddings
    of one region are held alike.

    Args:
        unet: the denoiser.
        summarizer: makes its context.
        latents: the latent to explain, ``(1, 3, h, w)``.
        embeddings: the variable, ``(C, g, g)``, not normalised.
        magnification: index in the ladder.
        timestep: what the denoiser is told, 1 to 1000.
        signal: ``alphas_cumprod`` at ``timestep - 1``.
        noise: like ``latents``.

    Returns:
        The objective, with its gradient's graph down to ``embeddings``.
    """
    abar = torch.as_tensor(signal, device=latents.device).reshape(1)
    prediction = predict(
        unet,
        summarizer,
        latents,
        [embeddings],
        torch.tensor([magnification], device=latents.device),
        torch.tensor([timestep], device=latents.device),
        abar,
        noise,
    )
    error = (abar.sqrt() * (1 - abar) * prediction.squared_error).mean()
    directions = functional.normalize(embeddings.flatten(1), dim=0)
    similarity = (directions.T @ directions).mean()
    return InversionLoss(error - SIMILARITY_WEIGHT * similarity, error, similarity, prediction)

"""Weights to start training from, in the layout of CompVis' latent diffusion: its denoiser and its VQ first stage.

The names are those of the ZoomLDM release (:mod:`zoomfeat.models.checkpoint`); here a file holds one part of it, or
more than is wanted.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel, VQModel
from torch import Tensor

from zoomfeat.errors import CheckpointMismatchError
from zoomfeat.models.checkpoint import release_keys
from zoomfeat.models.weights import read_state_dict

_PREFIX = "first_stage_model."


class _Inert:
    """Stands for the trainer's callback class that these files name beside their weights, and does nothing."""


def _read(path: str | Path) -> dict[str, Tensor]:
    named = (_Inert, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")
    with torch.serialization.safe_globals([named]):
        return read_state_dict(path)


def _fitted(tensor: Tensor, wanted: Tensor) -> Tensor | None:
    """The weight in the wanted shape; None where it is of another (1x1 convolutions fit linear layers)."""
    if tensor.squeeze().shape != wanted.squeeze().shape:
        return None
    return tensor.reshape(wanted.shape).float()


def load_unet(unet: UNet2DConditionModel, path: str | Path) -> list[str]:
    """Loads what fits of a latent-diffusion denoiser, such as the class-conditional ImageNet model.

    Args:
        unet: filled in place.
        path: a checkpoint with keys ``model.diffusion_model.*``, flat or below ``state_dict``; the rest is not read.

    Returns:
        Keys of ``unet`` that the file lacks or holds in another shape; they keep their fresh weights.

    Raises:
        CheckpointMismatchError: not a safe checkpoint, or none of its weights fits.
    """
    state, weights = _read(path), unet.state_dict()
    fresh = []
    for ours, theirs in release_keys({"unet": unet})["unet"].items():
        fitted = _fitted(state[theirs], weights[ours]) if theirs in state else None
        if fitted is None:
            fresh.append(ours)
        else:
            weights[ours] = fitted
    if len(fresh) == len(weights):
        raise CheckpointMismatchError(
            "none of its weights fits this denoiser (keys model.diffusion_model.* of the same widths are expected)",
            path=path,
            cure="Give a latent-diffusion checkpoint of the same size, or size=full",
        )
    unet.load_state_dict(weights)
    return fresh


def load_first_stage(vae: VQModel, path: str | Path) -> list[str]:
    """Loads a VQ first stage, such as the published VQ-f4; every weight must be there.

    Args:
        vae: filled in place.
        path: a checkpoint with the autoencoder's keys, flat or below ``state_dict``, with or without the prefix
            ``first_stage_model.``.

    Returns:
        Keys of the file that are not the autoencoder's, which are not loaded: of its training loss (``loss.*``), or
        of the model around it.

    Raises:
        CheckpointMismatchError: not a safe checkpoint, or a weight is missing or has another shape; it is named.
    """
    state, weights = _read(path), vae.state_dict()
    names = release_keys({"vae": vae})["vae"]
    if not any(key.startswith(_PREFIX) for key in state):
        names = {ours: theirs.removeprefix(_PREFIX) for ours, theirs in names.items()}
    for ours, theirs in names.items():
        fitted = _fitted(state[theirs], weights[ours]) if theirs in state else None
        if fitted is None:
            found = f"has shape {tuple(state[theirs].shape)}" if theirs in state else "is missing"
            raise CheckpointMismatchError(
                f"{theirs} {found}; expected {tuple(weights[ours].shape)}",
                path=path,
                cure="Give a VQ first stage of this size (size=full is the published VQ-f4)",
            )
        weights[ours] = fitted
    vae.load_state_dict(weights)
    return sorted(state.keys() - set(names.values()))

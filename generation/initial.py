"""The model that training starts from: its size, and the weights that parts of it begin with."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import VQModel

from generation.compvis import load_first_stage, load_unet
from zoomfeat.conf.schema import TrainLDMConfig
from zoomfeat.errors import CheckpointMismatchError, ConfigurationError
from zoomfeat.magnification import PATCH_SIZE
from zoomfeat.models.architecture import (
    FIRST_STAGES,
    SUMMARIZERS,
    UNETS,
    build_first_stage,
    build_scheduler,
    build_unet,
)
from zoomfeat.models.summarizer import Summarizer
from zoomfeat.models.weights import load_module
from zoomfeat.models.zoomldm import ZoomLDM


def initial_first_stage(size: str, init: str | None, seed: int = 0) -> VQModel:
    """A first stage: fresh, from a folder, or from a CompVis checkpoint (see :func:`load_first_stage`).

    Args:
        size: ``full`` or ``tiny``; a folder brings its own.
        init: a folder of a ZoomLDM or of a first stage, a checkpoint, or None for fresh weights.
        seed: of fresh weights.

    Raises:
        CheckpointMismatchError: no such file, or one that does not hold a first stage of this size.
    """
    if init is not None and Path(init).is_dir():
        folder = Path(init) / "vae" if (Path(init) / "vae").is_dir() else Path(init)
        return load_module(
            VQModel, folder, "Give a ZoomLDM folder, a folder of train-first-stage, or a CompVis checkpoint"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = build_first_stage(**FIRST_STAGES[size], sample_size=PATCH_SIZE)
    if init is not None:
        load_first_stage(vae, init)
    return vae


def initial_model(config: TrainLDMConfig, embedding_dim: int, num_magnifications: int = 8) -> tuple[ZoomLDM, list[str]]:
    """The ZoomLDM that training starts from.

    Args:
        config: ``init``, or ``size`` with ``first_stage`` and ``init_unet``; and the ablations.
        embedding_dim: width of the data's embeddings, which the Summarizer follows.
        num_magnifications: steps of the data's ladder, which it follows too.

    Returns:
        The model, and the keys of a denoiser from ``init_unet`` that had to stay fresh.

    Raises:
        ConfigurationError: keys that exclude each other, or no first stage.
        CheckpointMismatchError: weights that do not fit.
    """
    if config.init is not None:
        return _continued(config, config.init, embedding_dim), []
    if config.first_stage is None:
        raise ConfigurationError(
            "neither first_stage= nor init= is given: latents need the first stage that made them",
            cure="Give the VQ-f4 checkpoint, or train one with `zoomfeat train-first-stage`",
        )
    vae = initial_first_stage(config.size, config.first_stage)
    side = PATCH_SIZE // 2 ** (len(vae.config.block_out_channels) - 1)
    summarizer = SUMMARIZERS[config.size] | {"input_dim": embedding_dim, "num_magnifications": num_magnifications}
    if config.summarizer_layers is not None:
        summarizer["num_layers"] = config.summarizer_layers
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        bundle = ZoomLDM(
            vae=vae,
            unet=build_unet(**UNETS[config.size], sample_size=side),
            summarizer=Summarizer(**summarizer, magnification_token=config.magnification_token),
            scheduler=build_scheduler(),
        )
    return bundle, load_unet(bundle.unet, config.init_unet) if config.init_unet else []


def _continued(config: TrainLDMConfig, init: str, embedding_dim: int) -> ZoomLDM:
    for name in ("first_stage", "init_unet", "summarizer_layers"):
        if getattr(config, name) is not None:
            raise ConfigurationError(f"init= brings its own {name}", cure=f"Leave out init= or {name}=")
    bundle = ZoomLDM.load(init)
    found = bundle.summarizer.config
    if found.input_dim != embedding_dim:
        raise CheckpointMismatchError(
            f"its Summarizer reads embeddings of width {found.input_dim}, the data's have {embedding_dim}",
            path=init,
            cure="Prepare the data with the encoder that the model was trained with",
        )
    if found.magnification_token != config.magnification_token:
        raise ConfigurationError(
            f"init= has magnification_token={found.magnification_token}", cure="Give the same, or leave out init="
        )
    return bundle

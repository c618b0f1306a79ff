"""A checkpoint in the layout of the public release, tiny, with random weights: the release cannot be had here."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml

from zoomfeat.models.architecture import build_first_stage, build_scheduler, build_unet
from zoomfeat.models.checkpoint import ema_key, release_keys
from zoomfeat.models.summarizer import Summarizer


def write_release(folder: Path, width: int, magnifications: int) -> Path:
    """``weights.ckpt`` and ``config.yaml`` as the release has them.

    Args:
        folder: where to.
        width: of the embeddings that condition it.
        magnifications: how many it knows: 8 in histology, 4 in aerial images.

    Returns:
        The path of the weights.
    """
    torch.manual_seed(0)
    modules = {
        "vae": build_first_stage((32,) * 6, 16, sample_size=256),
        "unet": build_unet((32, 32), 16, sample_size=8),
        "summarizer": Summarizer(width, 16, 16, num_layers=1, mlp_dim=16, num_magnifications=magnifications),
    }
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(release_state(modules), folder / "weights.ckpt")
    (folder / "config.yaml").write_text(yaml.safe_dump(_config(width)))
    return folder / "weights.ckpt"


def release_state(modules: dict[str, torch.nn.Module], drift: float = 0) -> dict[str, torch.Tensor]:
    """Weights under the release's keys: the inverse of loading.

    Args:
        modules: ``vae``, ``unet`` and ``summarizer``.
        drift: by how much the averaged weights of the denoiser differ from the raw ones.
    """
    state = {}
    for part, names in release_keys(modules).items():
        weights = modules[part].state_dict()
        for ours, theirs in names.items():
            tensor = weights[ours]
            if part == "vae" and tensor.ndim == 2 and ".attn_1." in theirs:
                tensor = tensor[:, :, None, None]
            state[theirs] = tensor
            if part == "unet":
                state[ema_key(theirs)] = tensor + drift
    state["model_ema.decay"], state["model_ema.num_updates"] = torch.tensor(0.9999), torch.tensor(3)
    state["betas"] = build_scheduler().betas
    return state


def _config(width: int) -> dict:
    """The numbers of its ``config.yaml``."""
    return {
        "model": {
            "params": {
                "linear_start": 0.0015, "linear_end": 0.0195, "timesteps": 1000, "image_size": 8,
                "unet_config": {"params": {"model_channels": 32, "channel_mult": [1, 1], "context_dim": 16}},
                "first_stage_config": {"params": {
                    "n_embed": 16, "ddconfig": {"ch": 32, "ch_mult": [1, 1, 1, 1, 1, 1], "resolution": 256},
                }},
                "cond_stage_config": {"params": {
                    "num_layers": 1, "input_channels": width, "hidden_channels": 16, "vit_mlp_dim": 16,
                    "p_uncond": 0.1,
                }},
            }
        }
    }  # fmt: skip

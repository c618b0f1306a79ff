"""The release's checkpoint layout (CompVis latent diffusion), mapped key by key onto diffusers' modules.

Every key of the modules has exactly one key in the release, and the mapping leaves no remainder. The averaged
(EMA) weights cover the denoiser only, under keys whose dots were removed; they are found from the raw keys.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import UNet2DConditionModel
from torch import Tensor

from zoomfeat.errors import CheckpointMismatchError
from zoomfeat.models.architecture import build_first_stage, build_scheduler, build_unet
from zoomfeat.models.summarizer import Summarizer
from zoomfeat.models.weights import check_finite, read_state_dict
from zoomfeat.words import shown

# What the release keeps beside weights: the schedule's buffers, which the configuration determines.
_BUFFERS = {
    "alphas_cumprod", "alphas_cumprod_prev", "betas", "log_one_minus_alphas_cumprod", "posterior_log_variance_clipped",
    "posterior_mean_coef1", "posterior_mean_coef2", "posterior_variance", "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod",
}  # fmt: skip
_LARGEST_SIZE, _MOST_LAYERS = 100_000, 256
_EMA_COUNTERS = {"model_ema.decay", "model_ema.num_updates"}

_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_UNET_ENDS = {
    "conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
_VQ_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_SUMMARIZER = {
    "pad_token": "pad_token", "position_embedding": "encoder.pos_embedding", "magnification_embedding": "mag_embedding",
    "proj_in": "dim_reduce", "proj_out": "final_proj", "norm_out": "layer_norm", "transformer.norm": "encoder.ln",
}  # fmt: skip
_SUMMARIZER_LAYER = {
    "self_attn.in_proj_weight": "self_attention.in_proj_weight",
    "self_attn.in_proj_bias": "self_attention.in_proj_bias",
    "self_attn.out_proj": "self_attention.out_proj", "norm1": "ln_1", "norm2": "ln_2", "linear1": "mlp.0",
    "linear2": "mlp.3",
}  # fmt: skip


def _swap(key: str, table: dict[str, str]) -> str | None:
    """The key with its longest prefix that the table knows replaced, or None."""
    for ours in sorted(table, key=len, reverse=True):
        if key == ours or key.startswith(ours + "."):
            return table[ours] + key[len(ours) :]
    return None


def _unet_key(key: str, unet: UNet2DConditionModel) -> str:
    """The release's name of a denoiser weight, without its prefix."""
    if (swapped := _swap(key, _UNET_ENDS)) is not None:
        return swapped
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", key):
        kind, j, rest = match[1], int(match[2]), match[3]
        return f"middle_block.{2 * j}.{_swap(rest, _RESNET)}" if kind == "resnets" else f"middle_block.1.{rest}"
    match = re.fullmatch(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.+)", key)
    if match is None:
        raise KeyError(key)
    way, i, kind, j, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    layers = unet.config.layers_per_block
    if way == "down":
        stage = f"input_blocks.{1 + i * (layers + 1) + (layers if kind == 'downsamplers' else j)}"
    else:
        stage = f"output_blocks.{i * (layers + 1) + (layers if kind == 'upsamplers' else j)}"
    if kind == "resnets":
        return f"{stage}.0.{_swap(rest, _RESNET)}"
    if kind == "attentions":
        return f"{stage}.1.{rest}"
    if kind == "downsamplers":
        return f"{stage}.0.{rest.replace('conv', 'op')}"
    has_attention = getattr(unet.up_blocks[i], "has_cross_attention", False)
    return f"{stage}.{2 if has_attention else 1}.{rest}"


def _first_stage_key(key: str, levels: int) -> str:
    """The release's name of a first-stage weight, without its prefix."""
    key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    if match := re.fullmatch(r"(encoder|decoder)\.mid_block\.(resnets|attentions)\.(\d)\.(.+)", key):
        part, kind, j, rest = match[1], match[2], int(match[3]), match[4]
        if kind == "resnets":
            return f"{part}.mid.block_{j + 1}.{rest}"
        return f"{part}.mid.attn_1.{_swap(rest, _VQ_ATTENTION)}"
    if match := re.fullmatch(r"encoder\.down_blocks\.(\d)\.(resnets\.(\d)|downsamplers\.0)\.(.+)", key):
        inner = "downsample" if match[3] is None else f"block.{match[3]}"
        return f"encoder.down.{match[1]}.{inner}.{match[4]}"
    if match := re.fullmatch(r"decoder\.up_blocks\.(\d)\.(resnets\.(\d)|upsamplers\.0)\.(.+)", key):
        inner = "upsample" if match[3] is None else f"block.{match[3]}"
        # The release numbers the decoder's levels from the finest.
        return f"decoder.up.{levels - 1 - int(match[1])}.{inner}.{match[4]}"
    return key


def _summarizer_key(key: str) -> str:
    """The release's name of a Summarizer weight, without its prefix."""
    if match := re.fullmatch(r"transformer\.layers\.(\d+)\.(.+)", key):
        return f"encoder.layers.encoder_layer_{match[1]}.{_swap(match[2], _SUMMARIZER_LAYER)}"
    swapped = _swap(key, _SUMMARIZER)
    if swapped is None:
        raise KeyError(key)
    return swapped


def release_keys(modules: dict[str, Any]) -> dict[str, dict[str, str]]:
    """For each module given (any of ``unet``, ``vae``, ``summarizer``): its keys, and the release's name of each."""
    names = {}
    if unet := modules.get("unet"):
        names["unet"] = {k: f"model.diffusion_model.{_unet_key(k, unet)}" for k in unet.state_dict()}
    if vae := modules.get("vae"):
        levels = len(vae.config.block_out_channels)
        names["vae"] = {k: f"first_stage_model.{_first_stage_key(k, levels)}" for k in vae.state_dict()}
    if summarizer := modules.get("summarizer"):
        names["summarizer"] = {k: f"cond_stage_model.{_summarizer_key(k)}" for k in summarizer.state_dict()}
    return names


def ema_key(raw: str) -> str:
    """The key of the averaged weight for a raw denoiser key of the release."""
    return "model_ema." + raw.removeprefix("model.").replace(".", "")


def modules_for(config: dict[str, Any], *, num_magnifications: int) -> dict[str, Any]:
    """Modules of the sizes that a release ``config.yaml`` names, with fresh weights.

    The number of magnifications is not in that file; it is read off the weights. ``ckpt_path`` is never opened
    and ``p_uncond`` not used: dropping the condition belongs to training.

    Raises:
        KeyError: the file lacks an entry that names a size.
        ValueError: a size that no model of this kind has.
    """
    params = config["model"]["params"]
    unet = params["unet_config"]["params"]
    vq = params["first_stage_config"]["params"]
    dd = vq["ddconfig"]
    cond = params["cond_stage_config"]["params"]
    hidden = cond.get("hidden_channels", 512)
    layers = cond.get("num_layers", 12)
    _check_plausible(
        ch=dd["ch"],
        ch_mult=dd["ch_mult"],
        n_embed=vq["n_embed"],
        model_channels=unet["model_channels"],
        channel_mult=unet["channel_mult"],
        context_dim=unet["context_dim"],
        hidden_channels=hidden,
        num_layers=layers,
        timesteps=params["timesteps"],
    )
    return {
        "vae": build_first_stage([dd["ch"] * m for m in dd["ch_mult"]], vq["n_embed"], sample_size=dd["resolution"]),
        "unet": build_unet(
            [unet["model_channels"] * m for m in unet["channel_mult"]],
            unet["context_dim"],
            sample_size=params["image_size"],
        ),
        "summarizer": Summarizer(
            input_dim=cond.get("input_channels", 1024),
            hidden_dim=hidden,
            output_dim=cond.get("output_channels", hidden),
            num_layers=layers,
            mlp_dim=cond.get("vit_mlp_dim", 2048),
            num_magnifications=num_magnifications,
        ),
        "scheduler": build_scheduler(params["timesteps"], params["linear_start"], params["linear_end"]),
    }


def _check_plausible(**sizes: Any) -> None:
    """Refuses sizes beyond any model of this kind, before memory and hours go into building one.

    Raises:
        ValueError: a size out of range.
        TypeError: something that is no number.
    """
    for name, value in sizes.items():
        most = _MOST_LAYERS if name == "num_layers" else _LARGEST_SIZE
        for size in value if isinstance(value, list) else [value]:
            if not 0 < size <= most:
                raise ValueError(f"{name} {size}, expected 1 to {most}")


def _read_config(weights: Path, config: str | Path | None) -> dict[str, Any]:
    path = Path(config) if config is not None else weights.with_name("config.yaml")
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointMismatchError(
            "no such file",
            path=path,
            cure=f"Put the config.yaml of the release beside {weights.name}, or give config=path",
        ) from None
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
        raise CheckpointMismatchError("not YAML", path=path, cure="Give the config.yaml of the release") from error


def load_checkpoint(weights: str | Path, config: str | Path | None = None, *, ema: bool = True) -> dict[str, Any]:
    """Modules with the weights of a release checkpoint, in float32 and evaluation mode.

    Args:
        weights: ``weights.ckpt``.
        config: its ``config.yaml``; the one beside it where not given.
        ema: averaged or raw denoiser weights; Summarizer and first stage have raw ones only.

    Returns:
        ``vae``, ``unet``, ``summarizer``, ``scheduler``.

    Raises:
        CheckpointMismatchError: the two files do not fit each other; the first offending keys are named.
    """
    weights = Path(weights)
    settings = _read_config(weights, config)
    state = read_state_dict(weights)
    magnifications = state.get("cond_stage_model.mag_embedding.weight")
    if magnifications is None:
        raise CheckpointMismatchError(
            "lacks cond_stage_model.mag_embedding.weight: not a ZoomLDM",
            path=weights,
            cure="Give the weights.ckpt of a ZoomLDM release",
        )
    try:
        modules = modules_for(settings, num_magnifications=len(magnifications))
    except (KeyError, TypeError) as error:
        raise CheckpointMismatchError(
            f"its configuration lacks {error}", path=weights, cure="Give the config.yaml of the same release"
        ) from error
    except (ValueError, RuntimeError, ArithmeticError, AttributeError, LookupError, MemoryError) as error:
        raise CheckpointMismatchError(
            f"its configuration describes no model that can be built ({' '.join(str(error).split())[:200]})",
            path=weights,
            cure="Give the config.yaml of the same release",
        ) from error

    names = release_keys(modules)
    raw_unet = set(names["unet"].values())
    has_ema = any(key.startswith("model_ema.") for key in state)
    expected = raw_unet | set(names["vae"].values()) | set(names["summarizer"].values()) | _BUFFERS
    if has_ema:
        expected |= {ema_key(key) for key in raw_unet} | _EMA_COUNTERS
    elif ema:
        raise CheckpointMismatchError(
            "holds no averaged (EMA) weights", path=weights, cure="Load the raw ones with ema=false"
        )
    if missing := expected - state.keys() - _BUFFERS:
        raise CheckpointMismatchError(
            f"{len(missing)} keys are missing: {shown(sorted(missing), 3)}",
            path=weights,
            cure="Give the config.yaml of the same release",
        )
    if extra := state.keys() - expected:
        raise CheckpointMismatchError(
            f"{len(extra)} keys are not ZoomLDM's: {shown(sorted(extra), 3)}",
            path=weights,
            cure="Give the config.yaml of the same release",
        )
    _check_schedule(state, modules["scheduler"].betas, weights)

    for part, keys in names.items():
        module = modules[part]
        wanted = module.state_dict()
        source = {ours: state[ema_key(theirs) if ema and part == "unet" else theirs] for ours, theirs in keys.items()}
        wrong = set()
        for ours, tensor in source.items():
            # 1x1 convolutions of the release are linear layers in diffusers' first stage: same numbers, fewer axes.
            if tensor.squeeze().shape == wanted[ours].squeeze().shape:
                source[ours] = tensor.reshape(wanted[ours].shape)
            else:
                wrong.add(f"{keys[ours]} {tuple(tensor.shape)} instead of {tuple(wanted[ours].shape)}")
        if wrong:
            raise CheckpointMismatchError(
                f"{len(wrong)} keys have another shape: {shown(sorted(wrong), 3)}",
                path=weights,
                cure="Give the config.yaml of the same release",
            )
        check_finite({keys[ours]: tensor for ours, tensor in source.items()}, weights)
        module.load_state_dict({ours: tensor.float() for ours, tensor in source.items()})
        module.eval()
    return modules


def _check_schedule(state: dict[str, Tensor], betas: Tensor, weights: Path) -> None:
    """Weights trained under one noise schedule give wrong features under another, without any other sign."""
    if "betas" in state and not torch.allclose(state["betas"].float(), betas.float(), rtol=1e-4, atol=1e-7):
        raise CheckpointMismatchError(
            "its noise schedule is not the one that the configuration names",
            path=weights,
            cure="Give the config.yaml of the same release",
        )

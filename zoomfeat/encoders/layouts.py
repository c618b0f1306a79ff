"""Names of weights, from the layouts that models are published in to timm's."""

from __future__ import annotations

import re

import torch
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

# What transformers' ViTModel and Dinov2Model call the parts of a vision transformer when they are saved (checked
# against transformers 5.23, which writes what version 4 wrote), and what timm calls them.
_TRANSFORMERS = (
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
    ("encoder.layer.", "blocks."),
    (".attention.output.dense.", ".attn.proj."),
    (".intermediate.dense.", ".mlp.fc1."),
    (".output.dense.", ".mlp.fc2."),
    (".layernorm_before.", ".norm1."),
    (".layernorm_after.", ".norm2."),
    (".layer_scale1.lambda1", ".ls1.gamma"),
    (".layer_scale2.lambda1", ".ls2.gamma"),
)
_UNUSED = ("embeddings.mask_token", "pooler.")  # serve pretraining, not the features


def from_transformers(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """A vision transformer in the layout of transformers, or in timm's already."""
    if "embeddings.cls_token" not in state:
        return state
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith(_UNUSED) or ".attention.attention." in name:
            continue
        for theirs, ours in _TRANSFORMERS:
            name = name.replace(theirs, ours)
        found[re.sub(r"^layernorm\.", "norm.", name)] = tensor
    for name in state:  # timm holds query, key and value in one matrix
        if match := re.fullmatch(r"encoder\.layer\.(\d+)\.attention\.attention\.query\.(weight|bias)", name):
            names = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
            if all(part in state for part in names):
                found[f"blocks.{match[1]}.attn.qkv.{match[2]}"] = torch.cat([state[part] for part in names])
    return found


def from_dinov2(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """DINOv2 in the layout of its authors (told by its mask token), or in timm's already."""
    return checkpoint_filter_fn(state, network) if "mask_token" in state else state


def from_old_swin(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """A Swin transformer of timm before 0.9, or of today.

    Then a stage ended with its downsampling, today the next one begins with it; then the buffers of the windows were
    stored, today they are computed.
    """
    state = {name: t for name, t in state.items() if not name.endswith(("relative_position_index", "attn_mask"))}
    if not any(name.startswith("layers.0.downsample.") for name in state):
        return state
    return {
        re.sub(r"^layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) + 1}.downsample.", name): tensor
        for name, tensor in state.items()
    }


def without_classifier(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """A ResNet without its last layer."""
    return {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}

"""Activations inside the denoiser: the UNet's forward pass as a walk that stops at the last tap asked for.

A *tap* is a place in the UNet. Taps carry diffusers' names (``mid``, ``up_blocks.0``, ``up_blocks.0.layers.1``)
and those of the release (``middle_block``, ``output_blocks.1``) for the same places.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn

from zoomfeat.errors import ConfigurationError


def _names(unet: UNet2DConditionModel) -> list[tuple[str, ...]]:
    """The names of every stage, in the order of the forward pass; the first of each tuple is canonical."""
    names: list[tuple[str, ...]] = [("conv_in", "input_blocks.0")]
    inputs = 1
    for i, block in enumerate(unet.down_blocks):
        for j in range(len(block.resnets)):
            layer = f"down_blocks.{i}.layers.{j}"
            last = j == len(block.resnets) - 1 and not block.downsamplers
            names.append((layer, f"input_blocks.{inputs}", *([f"down_blocks.{i}"] if last else [])))
            inputs += 1
        if block.downsamplers:
            names.append((f"down_blocks.{i}", f"input_blocks.{inputs}"))
            inputs += 1
    names += [("mid.layers.0",), ("mid", "mid_block", "middle_block")]
    outputs = 0
    for i, block in enumerate(unet.up_blocks):
        for j in range(len(block.resnets)):
            layer = f"up_blocks.{i}.layers.{j}"
            last = j == len(block.resnets) - 1
            if not last:
                names.append((layer, f"output_blocks.{outputs}"))
            elif block.upsamplers:
                # The release's last stage of a level includes the up-sampling, as diffusers' block does.
                names += [(layer,), (f"up_blocks.{i}", f"output_blocks.{outputs}")]
            else:
                names.append((layer, f"up_blocks.{i}", f"output_blocks.{outputs}"))
            outputs += 1
    return names


def canonical_taps(unet: UNet2DConditionModel, taps: Sequence[str]) -> tuple[str, ...]:
    """The taps by their canonical names, in the order given.

    Raises:
        ConfigurationError: an unknown tap (the nearest known one is named), a repeated one, or none.
    """
    canonical = {alias: names[0] for names in _names(unet) for alias in names}
    if not taps:
        raise ConfigurationError("no tap asked for", cure="Give at least one, for example taps=[up_blocks.0]")
    for tap in taps:
        if tap not in canonical:
            near = difflib.get_close_matches(str(tap), canonical, n=1)
            cure = f"Did you mean {near[0]!r}? " if near else ""
            raise ConfigurationError(
                f"no tap {tap!r} in the denoiser",
                cure=f"{cure}Taps are mid, up_blocks.0 to up_blocks.3, their layers"
                " (up_blocks.0.layers.1) and the release's output_blocks.0 to output_blocks.11",
            )
    chosen = tuple(canonical[tap] for tap in taps)
    check_distinct(chosen, taps)
    return chosen


def check_distinct(places: Sequence[str], taps: Sequence[str]) -> None:
    """Refuses places that taps name more than once.

    Raises:
        ConfigurationError: one of them occurs twice.
    """
    if len(set(places)) < len(places):
        raise ConfigurationError(f"a tap is asked for twice in {list(taps)}", cure="Name each place once")


def tap_dims(unet: UNet2DConditionModel, taps: Sequence[str]) -> tuple[int, ...]:
    """Channels at each tap."""
    widths = unet.config.block_out_channels
    by_room = {"conv_in": widths[0], "mid": widths[-1]}
    by_room |= {f"down_blocks.{i}": width for i, width in enumerate(widths)}
    by_room |= {f"up_blocks.{i}": width for i, width in enumerate(reversed(widths))}
    return tuple(by_room[tap.split(".layers.")[0]] for tap in canonical_taps(unet, taps))


class _NullAttention(nn.Module):
    """What cross-attention makes of a context of zeros, whatever asks: its values are zeros, so the output's bias."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        project: Any = attention.to_out
        self.bias: nn.Parameter = project[0].bias

    def forward(self, hidden_states: Tensor, **_: Any) -> Tensor:
        return self.bias.expand_as(hidden_states)


def without_condition(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """A denoiser for the null condition alone, without the cross-attention that zeros make constant.

    Args:
        unet: stays as it is; the weights are shared.

    Returns:
        One that ignores its context and gives what ``unet`` gives for a context of zeros.
    """
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*unet.parameters(), *unet.buffers())}
    lean = copy.deepcopy(unet, shared)
    for block in list(lean.modules()):
        if isinstance(block, BasicTransformerBlock) and block.attn2.to_v.bias is None:
            block.norm2, block.attn2 = nn.Identity(), _NullAttention(block.attn2)
    return lean


def _walk(unet: UNet2DConditionModel, sample: Tensor, timestep: Tensor, context: Tensor) -> Iterator[Tensor]:
    """The hidden state after every stage, in the order of :func:`_names`; lazily, so that stopping saves the rest.

    The order of operations is that of ``UNet2DConditionModel.forward`` for the blocks that ZoomLDM uses;
    the tests hold the two equal.
    """
    time = unet.time_embedding(unet.time_proj(timestep.expand(len(sample))).to(sample.dtype))

    def layer(block: Any, j: int, hidden: Tensor) -> Tensor:
        hidden = block.resnets[j](hidden, time)
        if getattr(block, "has_cross_attention", False):
            hidden = block.attentions[j](hidden, encoder_hidden_states=context, return_dict=False)[0]
        return hidden

    hidden = unet.conv_in(sample)
    skips = [hidden]
    yield hidden
    for block in unet.down_blocks:
        for j in range(len(block.resnets)):
            hidden = layer(block, j, hidden)
            skips.append(hidden)
            yield hidden
        if block.downsamplers:
            hidden = block.downsamplers[0](hidden)
            skips.append(hidden)
            yield hidden
    mid = unet.mid_block
    hidden = mid.resnets[0](hidden, time)
    hidden = mid.attentions[0](hidden, encoder_hidden_states=context, return_dict=False)[0]
    yield hidden
    hidden = mid.resnets[1](hidden, time)
    yield hidden
    for block in unet.up_blocks:
        for j in range(len(block.resnets)):
            hidden = layer(block, j, torch.cat([hidden, skips.pop()], dim=1))
            yield hidden
        if block.upsamplers:
            hidden = block.upsamplers[0](hidden)
            yield hidden


def activations(
    unet: UNet2DConditionModel, sample: Tensor, timestep: Tensor | int, context: Tensor, taps: Sequence[str]
) -> dict[str, Tensor]:
    """Hidden states at the taps; the forward pass stops at the last of them.

    Args:
        unet: a denoiser whose blocks are (CrossAttn)DownBlock2D and (CrossAttn)UpBlock2D.
        sample: noisy latents ``(B, C, h, w)``; h and w divisible by 8.
        timestep: one for all or ``(B,)``, 0 to 999.
        context: Summarizer tokens or the null condition, ``(B, 65, cross_attention_dim)``.
        taps: names as in :func:`canonical_taps`.

    Returns:
        The hidden state ``(B, channels, h', w')`` at each tap, keyed by the names given, in their order.
    """
    timestep = torch.as_tensor(timestep, device=sample.device)
    wanted = dict(zip(canonical_taps(unet, taps), taps, strict=True))
    found: dict[str, Tensor] = {}
    for names, hidden in zip(_names(unet), _walk(unet, sample, timestep, context), strict=False):
        if names[0] in wanted:
            found[wanted[names[0]]] = hidden
            if len(found) == len(wanted):
                break
    return {tap: found[tap] for tap in taps}

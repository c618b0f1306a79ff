"""The same networks for float32 on a CPU, with every matrix product by oneDNN, as convolutions are by themselves.

PyTorch gives linear layers, attention and (on one thread) 1 x 1 convolutions to its BLAS, which on processors of AMD
reached less than half of the rate of oneDNN, and brings the weights of a convolution into oneDNN's order at every call,
which for the deep layers of a denoiser takes longer than the convolution. Results are equal but for rounding. These
operators have no gradient: where PyTorch keeps track of gradients, its own ones run.
"""

from __future__ import annotations

import copy
import ctypes
import sys
from typing import Any, TypeVar

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.nn import functional

_FEW_PIXELS = 32 * 32
"""Pixels of an output up to which ordering the weights beforehand pays; above, it is lost in the convolution."""

_TRIM_THRESHOLD, _MAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h

M = TypeVar("M", bound=nn.Module)


def available() -> bool:
    """Whether this PyTorch has the operators, which its own compiler uses as well."""
    names = ("_linear_pointwise", "_convolution_pointwise", "_reorder_convolution_weight")
    return torch.backends.mkldnn.is_available() and all(hasattr(torch.ops.mkldnn, name) for name in names)


def accelerated(network: M) -> M:
    """A network with frozen weights that runs by oneDNN; layers of other kinds stay as they are.

    Args:
        network: on the CPU, float32, in evaluation mode; stays as it is, and shares its weights.

    Returns:
        The same network. At its first run it keeps the weights of deep convolutions a second time, in another order.
    """
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    fast = copy.deepcopy(network, shared)
    _replace(fast, {})
    return fast


def keep_memory() -> None:
    """Tells the C library of Linux to keep what is freed for what comes next, for the rest of the process.

    It gives blocks of more than 32 MiB back to the system at once, such as 128 channels at 256 px, and the system
    clears them page by page when they are taken again: a tenth of a first stage's time. Up to 512 MiB are kept.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if set_option is not None:  # it is missing in other C libraries than GNU's
        set_option(_MAP_THRESHOLD, 2**28)
        set_option(_TRIM_THRESHOLD, 2**29)


def _replace(module: nn.Module, done: dict[int, nn.Module]) -> None:
    # A layer may stand under two names, which `named_children` would not show.
    for name, child in list(module._modules.items()):
        if child is None:
            continue
        if id(child) not in done:
            _replace(child, done)
            done[id(child)] = _by_onednn(child)
        module._modules[name] = done[id(child)]


def _by_onednn(layer: nn.Module) -> nn.Module:
    if type(layer) is nn.Linear:
        return _Linear(layer)
    if type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        return Convolution(layer)
    if isinstance(layer, ResnetBlock2D) and _is_plain(layer):
        return _Residual(layer)
    if isinstance(layer, Attention) and layer.heads == 1 and _is_simple(layer):
        layer.set_processor(_Attention())
    return layer


class _Linear(nn.Module):
    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return _product(x, self.weight, self.bias)


class Convolution(nn.Module):
    """A convolution whose weights are brought into oneDNN's order once where that pays."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self._shape: tuple[list[int], list[int], list[int], int] = (
            [int(side) for side in layer.padding],
            list(layer.stride),
            list(layer.dilation),
            layer.groups,
        )
        self._pointwise = layer.kernel_size == (1, 1)
        self._ordered: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (B, C, h, w) to (B, C', h', w')."""
        padding, stride, dilation, groups = self._shape
        few = x.shape[2] * x.shape[3] <= _FEW_PIXELS * stride[0] * stride[1]
        if torch.is_grad_enabled() or not (few or self._pointwise):
            return functional.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)
        if few and self._ordered is None:
            self._ordered = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *self._shape, list(x.shape))
        weight = self._ordered if few else self.weight
        return torch.ops.mkldnn._convolution_pointwise(x, weight, self.bias, *self._shape, "none", [], "")


def _is_plain(block: ResnetBlock2D) -> bool:
    return (
        block.upsample is None
        and block.downsample is None
        and block.time_embedding_norm == "default"
        and block.output_scale_factor == 1
        and isinstance(block.nonlinearity, nn.SiLU)
        and not block.skip_time_act
    )


class _Residual(nn.Module):
    """A residual block of diffusers that writes over what nobody else reads: fresh memory costs more than the sum."""

    def __init__(self, block: ResnetBlock2D) -> None:
        super().__init__()
        self.norm1, self.conv1, self.norm2, self.conv2 = block.norm1, block.conv1, block.norm2, block.conv2
        self.time_emb_proj, self.conv_shortcut = block.time_emb_proj, block.conv_shortcut

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        own = not torch.is_grad_enabled()
        hidden = self.conv1(functional.silu(self.norm1(x), inplace=own))
        if self.time_emb_proj is not None and temb is not None:
            hidden = hidden + self.time_emb_proj(functional.silu(temb))[:, :, None, None]
        hidden = self.conv2(functional.silu(self.norm2(hidden), inplace=own))
        shortcut = x if self.conv_shortcut is None else self.conv_shortcut(x)
        return hidden.add_(shortcut) if own else hidden + shortcut


def _is_simple(attention: Attention) -> bool:
    extras = ("spatial_norm", "norm_q", "norm_k", "norm_cross", "added_kv_proj_dim")
    return all(getattr(attention, extra, None) is None for extra in extras)


class _Attention:
    """Attention of one head as two products and a softmax; PyTorch's fused kernel multiplies by its BLAS."""

    def __call__(
        self,
        attention: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        assert attention_mask is None
        residual = hidden_states
        tokens = hidden_states.flatten(2).mT if hidden_states.ndim == 4 else hidden_states
        if attention.group_norm is not None:
            tokens = attention.group_norm(tokens.mT).mT
        context = tokens if encoder_hidden_states is None else encoder_hidden_states
        queries, keys, values = attention.to_q(tokens), attention.to_k(context), attention.to_v(context)
        queries = queries * keys.shape[-1] ** -0.5
        found = torch.stack(
            [
                _product(_product(q, k.contiguous()).softmax(-1), v.mT.contiguous())
                for q, k, v in zip(queries, keys, values, strict=True)
            ]
        )
        found = attention.to_out[0](found)
        if hidden_states.ndim == 4:
            found = found.mT.reshape(hidden_states.shape)
        if attention.residual_connection:
            found = found + residual
        return found if attention.rescale_output_factor == 1 else found / attention.rescale_output_factor


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x`` (..., n) times the transpose of ``weight`` (m, n)."""
    if torch.is_grad_enabled():
        return functional.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

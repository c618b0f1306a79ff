"""Bicubic resizing by whole factors with mirrored borders: how joint sampling compares images of two magnifications.

PyTorch's antialiased bicubic kernel (a = -0.5, stretched by the factor) is that of the release, which also mirrors
the image at its borders, the edge pixel repeated; PyTorch drops what lies outside instead.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_SUPPORT = 2  # reach of the cubic kernel, in pixels of the smaller image


def downscale(images: Tensor, factor: int) -> Tensor:
    """``(B, C, H, W)`` to ``(B, C, H / factor, W / factor)``; the factor divides both sides."""
    height, width = images.shape[-2:]
    padded = mirrored(images, _SUPPORT * factor)
    size = (height // factor + 2 * _SUPPORT, width // factor + 2 * _SUPPORT)
    return _cropped(functional.interpolate(padded, size, mode="bicubic", antialias=True), _SUPPORT)


def upscale(images: Tensor, factor: int) -> Tensor:
    """``(B, C, H, W)`` to ``(B, C, H * factor, W * factor)``."""
    height, width = images.shape[-2:]
    padded = mirrored(images, _SUPPORT)
    size = ((height + 2 * _SUPPORT) * factor, (width + 2 * _SUPPORT) * factor)
    return _cropped(functional.interpolate(padded, size, mode="bicubic", antialias=True), _SUPPORT * factor)


def mirrored(images: Tensor, border: int | tuple[int, int, int, int]) -> Tensor:
    """Images with a border that mirrors them, the edge pixel repeated; it may be wider than the image.

    Args:
        images: ``(..., H, W)``.
        border: pixels on every side, or (left, right, top, bottom).
    """
    left, right, top, bottom = (border,) * 4 if isinstance(border, int) else border
    rows = _reflected(images.shape[-2], top, bottom, images.device)
    columns = _reflected(images.shape[-1], left, right, images.device)
    return images[..., rows, :][..., columns]


def _reflected(length: int, before: int, after: int, device: torch.device) -> Tensor:
    """Indices of a line that is continued by its mirror image on both sides."""
    place = torch.arange(-before, length + after, device=device) % (2 * length)
    return torch.minimum(place, 2 * length - 1 - place)


def _cropped(images: Tensor, border: int) -> Tensor:
    return images[..., border:-border, border:-border]

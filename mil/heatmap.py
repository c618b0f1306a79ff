"""Attention as pictures that lie on the slide to the pixel.

Every edge is taken from level 0 by the exact ratio of the picture to the slide, along x and y each, and rounded
once; neighbours share the rounded edge. Nothing adds up over the width of a slide, so the far corner is as good as
the near one. Colours are viridis: perceptually uniform, and told apart by all kinds of colour vision.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from mil.attention import ScaleAttention
from zoomfeat.errors import ConfigurationError

VALUES = ("percentile", "attention")
"""What colours can show: the percentile rank (0 to 100), or the model's values from the lowest to the highest."""


def colour_table() -> NDArray[np.uint8]:
    """(256, 3) RGB, from the lowest to the highest value."""
    ramp = cv2.applyColorMap(np.arange(256, dtype=np.uint8), cv2.COLORMAP_VIRIDIS)
    return np.ascontiguousarray(ramp.reshape(256, 3)[:, ::-1])


def value_range(scale: ScaleAttention, values: str) -> tuple[float, float]:
    """What the first and the last colour stand for.

    Raises:
        ConfigurationError: not one of `VALUES`.
    """
    if values not in VALUES:
        raise ConfigurationError(f"values={values!r}", cure=f"Use one of {', '.join(VALUES)}")
    return (0.0, 100.0) if values == "percentile" else (float(scale.attention.min()), float(scale.attention.max()))


def patch_colours(scale: ScaleAttention, values: str = "percentile") -> NDArray[np.uint8]:
    """(N, 3) RGB, one colour a patch; the middle one where all values are the same."""
    low, high = value_range(scale, values)
    shown = scale.percentile if values == "percentile" else scale.attention
    share = (shown - low) / (high - low) if high > low else np.full(len(scale), 0.5)
    return colour_table()[np.rint(share * 255).astype(np.intp)]


def pixel_boxes(scale: ScaleAttention, level0_size: tuple[int, int], size: tuple[int, int]) -> NDArray[np.int64]:
    """Where the patches lie in a picture of the whole slide.

    Args:
        scale: the patches.
        level0_size: width and height of the slide in level-0 px.
        size: width and height of the picture in px.

    Returns:
        (N, 4): left, top, right, bottom in px of the picture, right and bottom exclusive; at least a pixel a side,
        and cut at the edges of the picture.
    """
    ratio = np.array(size) / np.array(level0_size)
    start = np.floor(scale.coords * ratio + 0.5).astype(np.int64)
    end = np.floor((scale.coords + np.array(scale.size)) * ratio + 0.5).astype(np.int64)
    start = np.clip(start, 0, np.array(size) - 1)
    end = np.clip(end, start + 1, size)
    return np.hstack([start, end])


def draw_heatmap(
    scale: ScaleAttention, level0_size: tuple[int, int], size: tuple[int, int], values: str = "percentile"
) -> NDArray[np.uint8]:
    """The attention of one magnification as a picture of the whole slide.

    Args:
        scale: the patches.
        level0_size: width and height of the slide in level-0 px.
        size: width and height of the picture in px.
        values: one of `VALUES`.

    Returns:
        (height, width, 4) uint8 RGBA: opaque on patches, transparent elsewhere. Where patches overlap, and where
        several share a pixel, the strongest shows.
    """
    picture = np.zeros((size[1], size[0], 4), np.uint8)
    colours = np.hstack([patch_colours(scale, values), np.full((len(scale), 1), 255, np.uint8)])
    boxes = pixel_boxes(scale, level0_size, size)
    for row in scale.strongest()[::-1]:
        left, top, right, bottom = boxes[row]
        picture[top:bottom, left:right] = colours[row]
    return picture


def blend(thumbnail: NDArray[np.uint8], heatmap: NDArray[np.uint8], opacity: float = 0.5) -> NDArray[np.uint8]:
    """The heatmap over the slide.

    Args:
        thumbnail: (H, W, 3) RGB.
        heatmap: (H, W, 4) RGBA of the same size.
        opacity: of the heatmap where it is opaque, 0 to 1.

    Returns:
        (H, W, 3) RGB.
    """
    alpha = heatmap[..., 3:].astype(np.float32) / 255 * opacity
    return np.rint(thumbnail * (1 - alpha) + heatmap[..., :3] * alpha).astype(np.uint8)


def picture_size(level0_size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Width and height of a picture of the slide with that longest side; never larger than level 0."""
    shrink = min(1.0, longest / max(level0_size))
    return max(1, round(level0_size[0] * shrink)), max(1, round(level0_size[1] * shrink))

"""The most and the least attended patches of a slide, as images."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from mil.attention import ScaleAttention
from zoomfeat.magnification import PATCH_SIZE
from zoomfeat.slides import Slide

_QUALITY = 88


@dataclass(frozen=True)
class GalleryPatch:
    """One patch of a gallery.

    Attributes:
        row: in the bag's scale.
        x: left edge in level-0 px.
        y: top edge.
        attention: as the model gives it.
        percentile: its rank, 0 to 100.
        image: a JPEG as a data URL.
    """

    row: int
    x: int
    y: int
    attention: float
    percentile: float
    image: str


@dataclass(frozen=True)
class Gallery:
    """The extreme patches of one magnification.

    Attributes:
        magnification: its name.
        top: the most attended, strongest first.
        bottom: the least attended, weakest first; never one of ``top``.
    """

    magnification: str
    top: tuple[GalleryPatch, ...]
    bottom: tuple[GalleryPatch, ...]


def read_gallery(slide: Slide, scale: ScaleAttention, count: int) -> Gallery:
    """Reads the extreme patches of one magnification from the slide.

    Args:
        slide: an open slide.
        scale: the attention of its patches.
        count: patches at each end; fewer where the slide has fewer than twice as many.

    Raises:
        SlideUnreadableError: a patch does not decode.
    """
    order = scale.strongest()
    top = order[: min(count, -(-len(order) // 2))]
    bottom = order[len(top) :][::-1][:count]
    return Gallery(
        scale.magnification,
        tuple(_read_patch(slide, scale, int(row)) for row in top),
        tuple(_read_patch(slide, scale, int(row)) for row in bottom),
    )


def _read_patch(slide: Slide, scale: ScaleAttention, row: int) -> GalleryPatch:
    x, y = scale.coords[row].tolist()
    pixels = slide.read(x, y, *scale.size, [(PATCH_SIZE, PATCH_SIZE)])[0]
    return GalleryPatch(row, x, y, float(scale.attention[row]), float(scale.percentile[row]), jpeg_url(pixels))


def jpeg_url(pixels: NDArray[np.uint8]) -> str:
    """An RGB image (H, W, 3) as the data URL of a JPEG."""
    _, encoded = cv2.imencode(".jpg", np.ascontiguousarray(pixels[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.tobytes()).decode()}"

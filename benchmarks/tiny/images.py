"""The real tissue that `zoomldm-tiny` is trained on, and how one picture becomes several."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zoomfeat.magnification import PATCH_SIZE
from zoomfeat.slides import Slide

HELD_OUT_PREFIX = "held-out-"
"""How the names of validation slides begin."""

HELD_OUT = ("colorectal-slide-4", "torchstain_target", "histolab_tcga-lung-rgb")
"""Pictures that are never trained on: validation sees them instead."""

_PICTURES = (
    "henorm_example1.png",
    "histolab_tcga-lung-rgb.png",
    "histolab_tile_low-nuclei-score-level0.png",
    "histolab_tile_tissue-level0-7352-11762-7864-12274.png",
    "stardist_histo.jpg",
    "tiatoolbox_target_image.png",
    "torchstain_source.png",
    "torchstain_target.png",
)

_SCALES = (0.75, 1.33)  # most of these pictures do not state their um/px: 0.5 is assumed, within this factor


def real_images(data: Path) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Names and pixels ``(H, W, 3)`` RGB of real H&E at about 0.5 um/px.

    Args:
        data: the folder of test data.
    """
    with Slide.open(data / "slides" / "CMU-1-Small-Region.svs") as slide:
        width, height = slide.width, slide.height
        yield "CMU-1", slide.read(0, 0, width, height, [(width, height)])[0]
    for name in _PICTURES:
        yield Path(name).stem, _on_white(Image.open(data / "stain_and_artifacts" / name))
    with zipfile.ZipFile(data / "histology_patches" / "tcga_crc_hia_example.zip") as archive:
        for number, name in enumerate(sorted(n for n in archive.namelist() if n.endswith(".jpg"))):
            slide_number = name.split("/Slide_")[1][0]
            yield f"colorectal-slide-{slide_number}-{number}", _on_white(Image.open(io.BytesIO(archive.read(name))))


def is_held_out(name: str) -> bool:
    """Whether a picture belongs to validation."""
    return name.startswith(HELD_OUT)


def _on_white(picture: Image.Image) -> NDArray[np.uint8]:
    rgba = picture.convert("RGBA")
    white = Image.new("RGBA", rgba.size, "white")
    white.alpha_composite(rgba)
    return np.asarray(white.convert("RGB"))


def variants(image: NDArray[np.uint8], count: int, rng: np.random.Generator) -> Iterator[NDArray[np.uint8]]:
    """A picture in other orientations, sizes, stains and cuts; the first keeps its stain and its size.

    Args:
        image: ``(H, W, 3)`` RGB.
        count: how many.
        rng: decides all of it.

    Yields:
        ``(256 a, 256 b, 3)`` RGB, so that the aligned grid has no patch that hangs over.
    """
    for number in range(count):
        scale = 1.0 if number == 0 else float(rng.uniform(*_SCALES))
        scale = max(scale, (PATCH_SIZE + 1) / min(image.shape[:2]))
        varied = image
        if scale != 1:
            kind = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
            varied = np.asarray(cv2.resize(image, None, fx=scale, fy=scale, interpolation=kind), np.uint8)
        varied = np.rot90(varied, int(rng.integers(4)))
        if rng.random() < 0.5:
            varied = varied[:, ::-1]
        if number:
            varied = restained(varied, rng)
        height, width = (side // PATCH_SIZE * PATCH_SIZE for side in varied.shape[:2])
        top = rng.integers(varied.shape[0] - height + 1)
        left = rng.integers(varied.shape[1] - width + 1)
        yield np.ascontiguousarray(varied[top : top + height, left : left + width])


def restained(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """The picture as another laboratory might stain it: optical densities mixed and scaled, white stays white."""
    return to_rgb(to_density(image) @ stain(rng))


def stain(rng: np.random.Generator) -> NDArray[np.float32]:
    """A change of stain, ``(3, 3)``, for rows of optical density."""
    mixing = np.eye(3) + rng.normal(0, 0.06, (3, 3))
    return (mixing * rng.uniform(0.7, 1.35)).astype(np.float32)


def to_density(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Optical density against white, by Beer and Lambert: ``-ln(I / 255)``."""
    return -np.log(np.maximum(image, 1).astype(np.float32) / 255)


def to_rgb(density: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The inverse of :func:`to_density`."""
    return np.rint(255 * np.exp(-np.maximum(density, 0))).astype(np.uint8)

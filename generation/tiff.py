"""Large images to tiled, pyramidal TIFF files while they are made, as slide readers open them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from zoomfeat.files import replacing

TILE = 256
_STEP = 4  # between levels of the pyramid
_LARGE = 2**31  # bytes of pixels from which on offsets may not fit a classic TIFF


def write_pyramid(
    bands: Iterable[NDArray[np.uint8]], size: tuple[int, int], path: Path, *, mpp: float, arguments: dict[str, Any]
) -> None:
    """Writes an image band by band; it is there whole or not at all.

    Only a strip of tiles and the levels above the first (a fifteenth of the image) are held in memory. Compression is
    lossless, and equal pixels give equal files.

    Args:
        bands: from top to bottom, ``(height, W, 3)`` RGB; heights are multiples of 4 but for the last.
        size: width and height of the image.
        path: the file, ending in ``.tiff``.
        mpp: um/px.
        arguments: how the image was made, kept as JSON in its description.

    Raises:
        ZoomfeatError: the file cannot be written.
    """
    width, height = size
    level: NDArray[np.uint8] = np.zeros((-(-height // _STEP), -(-width // _STEP), 3), np.uint8)
    large = 3 * width * height > _LARGE
    with replacing(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=large) as tiff:
        _write_level(tiff, _tiles(_reduced(bands, level), size), (height, width, 3), mpp, arguments)
        scale = _STEP
        while True:
            _write_level(tiff, level, level.shape, mpp * scale, None)
            if max(level.shape[:2]) <= TILE:
                break
            level = _area(level)
            scale *= _STEP


def read_arguments(path: str | Path) -> dict[str, Any]:
    """What :func:`write_pyramid` kept of how the image was made."""
    with tifffile.TiffFile(path) as tiff:
        return json.loads(tiff.pages[0].description)


def _write_level(
    tiff: tifffile.TiffWriter, pixels: Any, shape: tuple[int, ...], mpp: float, arguments: dict[str, Any] | None
) -> None:
    tiff.write(
        pixels,
        shape=shape,
        dtype=np.uint8,
        tile=(TILE, TILE),
        subfiletype=0 if arguments is not None else 1,
        description=None if arguments is None else json.dumps(arguments, sort_keys=True),
        resolution=(1e4 / mpp, 1e4 / mpp),
        resolutionunit="CENTIMETER",
        photometric="rgb",
        compression="adobe_deflate",
        predictor=True,
        software="zoomfeat",
        metadata=None,
    )


def _reduced(bands: Iterable[NDArray[np.uint8]], level: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    """Passes bands on, and fills the next level of the pyramid with them."""
    row = 0
    for band in bands:
        small = _area(band)
        level[row : row + len(small)] = small
        row += len(small)
        yield band


def _area(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    size = (-(-image.shape[1] // _STEP), -(-image.shape[0] // _STEP))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA).astype(np.uint8)


def _tiles(bands: Iterable[NDArray[np.uint8]], size: tuple[int, int]) -> Iterator[NDArray[np.uint8]]:
    """Tiles row by row; those at the right and lower edge are filled up by repeating it."""
    width, height = size
    strip: NDArray[np.uint8] = np.zeros((0, width, 3), np.uint8)
    done = 0
    for band in bands:
        strip = np.concatenate([strip, band])
        while len(strip) >= TILE or (done + len(strip) == height and len(strip)):
            yield from _cut(strip[:TILE])
            done += min(TILE, len(strip))
            strip = strip[TILE:]


def _cut(strip: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    padded = np.pad(strip, ((0, TILE - len(strip)), (0, -strip.shape[1] % TILE), (0, 0)), mode="edge")
    for left in range(0, padded.shape[1], TILE):
        yield np.ascontiguousarray(padded[:, left : left + TILE])

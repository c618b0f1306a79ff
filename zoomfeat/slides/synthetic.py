"""Synthetic slides: drawn, not scanned, and marked so in every file.

They have the structure that the toolkit works on (pieces of tissue on glass, stroma, glands, nuclei, um/px, a JPEG
pyramid) and no biology: for the demo and for tests, never for science.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import tifffile

from zoomfeat.files import replacing

MARK = "SYNTHETIC: drawn by zoomfeat, not a scan of tissue"
"""Stands in the image description of every file."""

_GLASS = (243, 241, 243)
_STROMA = (226, 160, 195)
_CYTOPLASM = (196, 132, 184)
_NUCLEUS = (96, 58, 138)


def make_slide(path: Path, *, seed: int, size: tuple[int, int] = (4096, 3072), mpp: float = 0.5) -> None:
    """Writes a pyramidal JPEG TIFF that OpenSlide opens, with um/px.

    Args:
        path: the file, ending in ``.tiff``.
        seed: decides the picture.
        size: width and height of level 0 in px.
        mpp: microns per pixel of level 0.
    """
    write_pyramid(path, draw_tissue(size, mpp, seed), mpp)


def write_pyramid(path: Path, image: np.ndarray, mpp: float) -> None:
    """Writes a drawn picture as a tiled JPEG TIFF that OpenSlide opens, with three levels and ``MARK``.

    Args:
        path: the file, ending in ``.tiff``.
        image: ``(height, width, 3)`` uint8 RGB.
        mpp: its microns per pixel.
    """
    with replacing(path) as temporary, tifffile.TiffWriter(temporary) as tiff:
        level: np.ndarray = image
        for step in range(3):
            scale = 1e4 / (mpp * 4**step)
            tiff.write(
                level,
                resolution=(scale, scale),
                subfiletype=1 if step else 0,
                description=MARK if step == 0 else None,
                software="zoomfeat",
                photometric="rgb",
                tile=(256, 256),
                compression="jpeg",
                compressionargs={"level": 90},
                resolutionunit="CENTIMETER",
                metadata=None,
            )
            height, width = level.shape[:2]
            level = cv2.resize(level, (width // 4, height // 4), interpolation=cv2.INTER_AREA)


def draw_tissue(size: tuple[int, int], mpp: float, seed: int) -> np.ndarray:
    """A picture in the colours of H&E: glass, stroma, glands and nuclei.

    Args:
        size: width and height in px.
        mpp: microns per pixel; nuclei are about 8 um and glands about 120 um across, whatever it is.
        seed: decides the picture.

    Returns:
        ``(height, width, 3)`` uint8 RGB.
    """
    rng = np.random.default_rng(seed)
    width, height = size
    tissue = _tissue_shape(rng, width, height)
    fibres = _noise(rng, width, height, 20 / mpp, 3 / mpp)
    image = np.full((height, width, 3), _GLASS, np.float32)
    image[tissue] = np.array(_STROMA) + 18 * fibres[tissue, None]
    _draw_nuclei(rng, image, tissue, mpp)
    _draw_glands(rng, image, tissue, mpp)  # over the nuclei, since a lumen is empty
    blurred = cv2.GaussianBlur(image, (0, 0), 0.5 / mpp)  # the optics
    noisy = blurred + rng.normal(0, 2.5, (height, width, 1))  # the sensor
    return np.clip(noisy, 0, 255).astype(np.uint8)


def _noise(rng: np.random.Generator, width: int, height: int, across: float, down: float) -> np.ndarray:
    """Smooth noise with unit deviation; its grain is ``across`` px wide and ``down`` px high."""
    coarse = rng.normal(size=(max(2, int(height / down)), max(2, int(width / across)))).astype(np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def _tissue_shape(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """One large piece with a ragged edge, leaving glass around."""
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    cx, cy = rng.uniform(-0.15, 0.15, 2)
    edge = _noise(rng, width, height, width / 5, height / 5)
    return ((x - cx) / 0.75) ** 2 + ((y - cy) / 0.7) ** 2 + 0.18 * edge < 0.85


def _draw_glands(rng: np.random.Generator, image: np.ndarray, tissue: np.ndarray, mpp: float) -> None:
    """Rings of epithelium around an empty lumen, with nuclei at their base."""
    height, width = tissue.shape
    for _ in range(int(tissue.sum() * mpp**2 / 1e6 * 40)):  # about 40 a square millimetre of tissue
        x, y = int(rng.integers(width)), int(rng.integers(height))
        if not tissue[y, x]:
            continue
        radius = rng.uniform(45, 80) / mpp
        axes = (int(radius), int(radius * rng.uniform(0.6, 1)))
        tilt = float(rng.uniform(0, 180))
        cv2.ellipse(image, (x, y), axes, tilt, 0, 360, _CYTOPLASM, -1)
        cv2.ellipse(image, (x, y), (axes[0] // 2, axes[1] // 2), tilt, 0, 360, _GLASS, -1)
        turn = np.deg2rad(tilt)
        for angle in np.arange(0, 2 * np.pi, 9 / mpp / radius):
            u, v = 0.85 * axes[0] * np.cos(angle), 0.85 * axes[1] * np.sin(angle)
            centre = (x + u * np.cos(turn) - v * np.sin(turn), y + u * np.sin(turn) + v * np.cos(turn))
            _draw_nucleus(rng, image, centre, mpp)


def _draw_nuclei(rng: np.random.Generator, image: np.ndarray, tissue: np.ndarray, mpp: float) -> None:
    """Nuclei of the stroma, scattered."""
    rows, columns = np.nonzero(tissue)
    chosen = rng.integers(len(rows), size=int(tissue.sum() * mpp**2 / 1e6 * 1800))
    for row, column in zip(rows[chosen], columns[chosen], strict=True):
        _draw_nucleus(rng, image, (column, row), mpp)


def _draw_nucleus(rng: np.random.Generator, image: np.ndarray, centre: tuple[float, float], mpp: float) -> None:
    radius = rng.uniform(2.5, 4.5) / mpp
    axes = (max(1, round(radius)), max(1, round(radius * rng.uniform(0.5, 1))))
    colour = tuple(float(c) for c in np.array(_NUCLEUS) + rng.normal(0, 12))
    cv2.ellipse(image, (round(centre[0]), round(centre[1])), axes, float(rng.uniform(0, 180)), 0, 360, colour, -1)

"""Random fields that everything is drawn from."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]
"""A picture of one number a pixel, ``(height, width)`` float32."""


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], grain: float) -> Field:
    """Smooth noise of about unit deviation, whose grain is ``grain`` px wide."""
    height, width = shape
    coarse = rng.normal(size=(max(3, round(height / grain)), max(3, round(width / grain)))).astype(np.float32)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)


def tile_noise(rng: np.random.Generator, side: int, sigma: tuple[float, float]) -> Field:
    """A square of noise of unit deviation that repeats without a seam.

    Args:
        rng: random numbers.
        side: its width and height in px.
        sigma: deviation of the Gaussian that smooths it, down and across, in px.
    """
    frequency = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :]
    smoothing = np.exp(-2 * np.pi**2 * ((frequency[0] * sigma[0]) ** 2 + (frequency[1] * sigma[1]) ** 2))
    white = rng.normal(size=(side, side))
    noise = np.fft.irfft2(np.fft.rfft2(white) * smoothing, (side, side))
    return ((noise - noise.mean()) / noise.std()).astype(np.float32)


def resampled(field: Field, scale: float, top: int, shape: tuple[int, int], wrap: bool = False) -> Field:
    """A strip of a field at another pixel size.

    Args:
        field: the field.
        scale: px of the field per px of the strip.
        top: first row of the strip, in px of the strip.
        shape: height and width of the strip.
        wrap: whether the field repeats (a tile); else its edge goes on.
    """
    # Centres of pixels lie at a half, in both.
    shift = (scale - 1) / 2
    matrix = np.array([[scale, 0, shift], [0, scale, top * scale + shift]], np.float64)
    border = cv2.BORDER_WRAP if wrap else cv2.BORDER_REPLICATE
    strip = cv2.warpAffine(field, matrix, shape[::-1], flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=border)
    return np.asarray(strip, np.float32)

"""The lesion: a solid sheet of cells of two kinds, eosinophilic and pale, which lie in cords.

Both architectures have the same cells, each kind as often, and cords that wind and branch without a direction; one
has *narrow* cords, the other *broad* ones. A cord is 30 or 42 um wide, so a field of 128 um, a patch of 20x, holds
more than one of either, is about as dark as any other, and sees pieces; in one of 512 um, a patch of 5x, cords are a
texture.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from benchmarks.phantom.fields import Field

CORDS_UM = {False: 30.0, True: 42.0}
"""Width of narrow and of broad cords."""

_BANDWIDTH = 0.15  # how far the width varies, a share of it
_SPACING_UM = 12.0  # between nuclei
_JITTER = 0.18  # deviation of their places, a share of the spacing


@dataclass(frozen=True, eq=False)
class Growth:
    """The cells of a lesion.

    Attributes:
        cords: ``(h, w)`` float32 at 1 um/px, from -1, pale, to 1, eosinophilic, each value as often; 0 outside.
        places: ``(n, 2)`` x and y of nuclei in um.
    """

    cords: Field
    places: NDArray[np.float64]


def grow(rng: np.random.Generator, region: NDArray[np.bool_], *, broad: bool, scale: float) -> Growth:
    """Fills a lesion with cells.

    Args:
        rng: random numbers.
        region: ``(h, w)``, where the lesion is, at 1 um/px.
        broad: whether its cords are broad.
        scale: factor on the distances of nuclei.
    """
    cords = np.zeros(region.shape, np.float32)
    # Ranks in place of values: in every lesion each shade covers the same area, whatever the architecture.
    order = rankdata(_ring_noise(rng, region.shape, 2 * CORDS_UM[broad])[region], "ordinal")
    cords[region] = (2 * order - 1) / len(order) - 1
    return Growth(cords, _lattice(rng, region, _SPACING_UM * scale))


def _ring_noise(rng: np.random.Generator, shape: tuple[int, int], wavelength: float) -> NDArray[np.float64]:
    """Noise of one wavelength, in px, and all directions."""
    frequency = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None])
    ring = np.exp(-0.5 * ((frequency * wavelength - 1) / _BANDWIDTH) ** 2)
    return np.fft.irfft2(np.fft.rfft2(rng.normal(size=shape)) * ring, shape)


def _lattice(rng: np.random.Generator, region: NDArray[np.bool_], spacing: float) -> NDArray[np.float64]:
    """Points of a hexagonal lattice, turned and shaken, that lie inside the region, at 1 um/px."""
    height, width = region.shape
    reach = np.ceil(np.hypot(height, width) / spacing)
    row, column = (axis.ravel() for axis in np.meshgrid(*[np.arange(-reach, reach + 1)] * 2, indexing="ij"))
    points = spacing * np.stack([column + 0.5 * (row % 2), row * np.sqrt(0.75)], axis=1)
    turn = rng.uniform(0, np.pi)
    points = points @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    points = points + np.array([width, height]) / 2 + rng.normal(0, _JITTER * spacing, points.shape)
    whole = cv2.erode(region.astype(np.uint8), np.ones((9, 9), np.uint8))  # no nucleus stands across the edge
    x, y = np.floor(points).astype(np.intp).T
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    points, x, y = points[inside], x[inside], y[inside]
    return points[whole[y, x] > 0]

"""Glands: how they are packed, and the outline of each.

Both architectures are packings of one unit, a ring of epithelium around a lumen, with a little stroma between any two,
and with the same share of epithelium, lumen and stroma. *Even* units are spread over the lesion. *Nested* ones are
crowded in nests, and the stroma saved between them lies in broad bands between the nests. So they differ in where
things are and not in what is there; a field of 128 um, a patch of 20x, holds two units or a piece of a band, and one of
512 um several nests. How crowded a lesion is also varies, the same in both.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

ANGLES = np.linspace(0, 2 * np.pi, 64, endpoint=False)
"""Directions in which the outline of a unit is known."""

_EVEN_SPACING_UM = 103.0
_EVEN_GAP_UM = 23.0
_NESTED_SPACING_UM = 78.0
_NESTED_GAP_UM = 1.0
_NEST_SPACING_UM = 340.0
_BAND_UM = 90.0  # of stroma between nests
_CROWDING = 0.03  # deviation of the logarithm of a lesion's distances
_LESION_HEIGHT_UM = (26.0, 31.0)  # of the epithelium, from wall to lumen
_DUCT_HEIGHT_UM = (19.0, 24.0)


@dataclass(frozen=True, eq=False)
class Glands:
    """Units of epithelium; lengths in um.

    Attributes:
        centres: ``(n, 2)`` x and y.
        outline: ``(n, angles)`` radius of the outer wall in each of ``ANGLES``.
        lumen: ``(n, angles)`` radius of the lumen.
        large_nuclei: ``(n,)`` bool.
        secretion: ``(n,)`` how much the lumen holds, 0 to 1.
    """

    centres: NDArray[np.float64]
    outline: NDArray[np.float64]
    lumen: NDArray[np.float64]
    large_nuclei: NDArray[np.bool_]
    secretion: NDArray[np.float64]

    def wall(self) -> NDArray[np.float64]:
        """``(n, angles, 2)`` points of the outer wall."""
        return _points(self.centres, self.outline)

    def lumen_edge(self) -> NDArray[np.float64]:
        """``(n, angles, 2)`` points of the lumen's edge."""
        return _points(self.centres, self.lumen)


def joined(parts: list[Glands]) -> Glands:
    """Several sets of glands as one."""
    return Glands(*(np.concatenate([getattr(part, name) for part in parts]) for name in Glands.__annotations__))


def pack(rng: np.random.Generator, polygon: NDArray[np.float64], *, large_nuclei: bool, nested: bool) -> Glands:
    """A lesion full of units.

    Args:
        rng: random numbers.
        polygon: ``(m, 2)`` outline of the lesion in um.
        large_nuclei: the kind of nuclei.
        nested: the architecture.
    """
    crowding = float(np.exp(rng.normal(0, _CROWDING)))
    spacing = crowding * (_NESTED_SPACING_UM if nested else _EVEN_SPACING_UM)
    gap = crowding * (_NESTED_GAP_UM if nested else _EVEN_GAP_UM)
    centres = _lattice(rng, polygon, spacing, 0.11, margin=0.5 * spacing)
    nest = np.zeros(len(centres), np.intp)
    if nested:
        nests = _lattice(rng, polygon, _NEST_SPACING_UM, 0.1, margin=-_NEST_SPACING_UM)
        nest = _nearest(centres, nests)
        centres = centres[_clear_of_edges(centres, nests, nest)]
        nest = _nearest(centres, nests)
    outline = _outline(rng, centres, nest, spacing, gap)
    return _with_lumens(rng, centres, outline, _LESION_HEIGHT_UM, large_nuclei)


def ducts(rng: np.random.Generator, centres: NDArray[np.float64]) -> Glands:
    """Single normal glands with wide lumens and small nuclei, far apart."""
    radius = rng.uniform(42, 62, (len(centres), 1))
    outline = radius * (1 + _wobble(rng, len(centres), 0.09))
    return _with_lumens(rng, centres, outline, _DUCT_HEIGHT_UM, False)


def _with_lumens(
    rng: np.random.Generator,
    centres: NDArray[np.float64],
    outline: NDArray[np.float64],
    height_um: tuple[float, float],
    large: bool,
) -> Glands:
    count = len(centres)
    lumen = outline - rng.uniform(*height_um, (count, 1))
    lumen = np.maximum(lumen, 3.0) * (1 + _wobble(rng, count, 0.08))
    secretion = np.where(rng.random(count) < 0.35, rng.uniform(0.3, 1, count), 0)
    return Glands(centres, outline, lumen, np.full(count, large), secretion)


def _lattice(
    rng: np.random.Generator, polygon: NDArray[np.float64], spacing: float, jitter: float, margin: float
) -> NDArray[np.float64]:
    """Points of a hexagonal lattice, turned and shaken, that lie ``margin`` inside the polygon."""
    middle = polygon.mean(0)
    reach = np.linalg.norm(polygon - middle, axis=1).max() + spacing - min(margin, 0)
    steps = np.arange(-np.ceil(reach / spacing * 1.2), np.ceil(reach / spacing * 1.2) + 1)
    row, column = (axis.ravel() for axis in np.meshgrid(steps, steps, indexing="ij"))
    points = spacing * np.stack([column + 0.5 * (row % 2), row * np.sqrt(0.75)], axis=1)
    turn = rng.uniform(0, np.pi)
    points = points @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    shift = spacing * rng.uniform(-0.5, 0.5, 2)  # or there were a nest in the middle of every lesion
    points = middle + shift + points + rng.normal(0, jitter * spacing, points.shape)
    shape = polygon.astype(np.float32)[:, None]
    inside = [cv2.pointPolygonTest(shape, (float(x), float(y)), True) >= margin for x, y in points]
    return points[inside]


def _nearest(centres: NDArray[np.float64], nests: NDArray[np.float64]) -> NDArray[np.intp]:
    return np.argmin(np.linalg.norm(centres[:, None] - nests[None], axis=-1), axis=1)


def _clear_of_edges(
    centres: NDArray[np.float64], nests: NDArray[np.float64], nest: NDArray[np.intp]
) -> NDArray[np.bool_]:
    """Which units stand so far from the border to the next nest that the band leaves them whole."""
    own = nests[nest]
    apart = nests[None] - own[:, None]
    distance = np.linalg.norm(apart, axis=-1)
    along = ((centres[:, None] - own[:, None]) * apart).sum(-1) / np.maximum(distance, 1e-9)
    to_border = np.where(distance > 0, distance / 2 - along, np.inf).min(1)
    return to_border > 0.5 * _BAND_UM


def _outline(
    rng: np.random.Generator,
    centres: NDArray[np.float64],
    nest: NDArray[np.intp],
    spacing: float,
    gap: float,
) -> NDArray[np.float64]:
    """Half of the way to each neighbour, less half a gap, or half a band to another nest; corners are rounded."""
    apart = centres[None] - centres[:, None]
    distance = np.linalg.norm(apart, axis=-1)
    towards = np.arctan2(apart[..., 1], apart[..., 0])
    half = (distance - np.where(nest[None] == nest[:, None], gap, _BAND_UM)) / 2
    half = np.minimum(half, 0.5 * (spacing - gap))  # no unit is larger for standing alone
    neighbour = (distance > 0) & (distance < 1.8 * spacing)
    cosine = np.cos(ANGLES[None, None] - towards[..., None])
    bound = np.where(neighbour[..., None] & (cosine > 0.15), half[..., None] / np.maximum(cosine, 0.15), 1e3)
    bound = np.maximum(bound, 0.3 * spacing)
    free = np.full((len(centres), 1, len(ANGLES)), 0.55 * (spacing - gap))
    sharp = 9.0  # of the smooth minimum
    outline = (np.concatenate([bound, free], axis=1) ** -sharp).sum(1) ** (-1 / sharp)
    return outline * (1 + _wobble(rng, len(centres), 0.03))


def _wobble(rng: np.random.Generator, count: int, size: float) -> NDArray[np.float64]:
    """``(count, angles)`` smooth periodic deviations of about ``size``."""
    orders = np.arange(2, 6)
    amplitude = rng.normal(0, size, (count, len(orders), 1)) / np.sqrt(orders - 1)[None, :, None]
    phase = rng.uniform(0, 2 * np.pi, (count, len(orders), 1))
    return (amplitude * np.cos(orders[None, :, None] * ANGLES[None, None] + phase)).sum(1) / np.sqrt(2)


def _points(centres: NDArray[np.float64], radius: NDArray[np.float64]) -> NDArray[np.float64]:
    return centres[:, None] + radius[..., None] * np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=-1)[None]

"""Nuclei: where they lie, what they look like, and how they are drawn.

Those of a lesion are smooth, or vesicular: pale, with coarse chromatin, a dark rim and a nucleolus. Both are of one
size, as many, and hold the same haematoxylin: what tells them apart is texture, which 20x shows and 5x hardly does,
and not the colour of a patch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.phantom.fields import Field, tile_noise
from benchmarks.phantom.glands import ANGLES, Glands

_TURNS = 16  # orientations that sprites are drawn in
_VARIANTS = 10  # sprites of each orientation


@dataclass(frozen=True)
class NucleusKind:
    """One kind of nucleus.

    Attributes:
        radius_um: mean radius.
        spread: deviation of the radius, a share of it.
        elongation: long axis over short axis.
        density: mean density of haematoxylin.
        coarse_um: grain of the chromatin.
        contrast: of the chromatin.
        rim: extra density of the membrane.
        nucleoli: how many at most.
        ragged: how far the outline is from an ellipse.
    """

    radius_um: float
    spread: float
    elongation: float
    density: float
    coarse_um: float
    contrast: float
    rim: float
    nucleoli: int
    ragged: float


SMOOTH = NucleusKind(4.3, 0.10, 1.30, 1.20, 0.45, 0.08, 0.08, 0, 0.03)
VESICULAR = NucleusKind(4.3, 0.10, 1.30, 0.90, 0.60, 0.45, 0.80, 1, 0.03)
FIBROBLAST = NucleusKind(3.3, 0.12, 4.2, 1.40, 0.5, 0.12, 0.05, 0, 0.03)
LYMPHOCYTE = NucleusKind(2.9, 0.07, 1.08, 1.85, 0.7, 0.16, 0.05, 0, 0.03)

_ROW_SPACING_UM = 9.5  # between neighbours in a row of epithelium
_INNER_ROW_SHARE = 0.9


@dataclass(frozen=True, eq=False)
class Nuclei:
    """Nuclei of one kind: ``(n, 2)`` places in um and ``(n,)`` directions of the long axis in radians."""

    kind: NucleusKind
    places: NDArray[np.float64]
    turns: NDArray[np.float64]


def epithelial(rng: np.random.Generator, glands: Glands, scale: float) -> Nuclei:
    """The nuclei of glands: a row along the wall and those within it that fit, long axes towards the lumen.

    Args:
        rng: random numbers.
        glands: the glands.
        scale: factor on radii and distances.
    """
    found = [np.zeros((0, 3))]
    spacing = _ROW_SPACING_UM * scale
    long_axis = SMOOTH.radius_um * scale * np.sqrt(SMOOTH.elongation)
    for i in range(len(glands.centres)):
        for row in range(3):
            depth = long_axis + 2.0 + row * 1.75 * long_axis
            radius = glands.outline[i] - depth
            count = int(2 * np.pi * radius.mean() / spacing)
            if count < 3:
                continue
            angle = (np.arange(count) + rng.normal(0, 0.16, count) + rng.random()) * (2 * np.pi / count)
            reach = np.interp(angle, ANGLES, radius, period=2 * np.pi) + rng.normal(0, 1.1, count)
            floor = np.interp(angle, ANGLES, glands.lumen[i], period=2 * np.pi) + 0.8 * long_axis
            kept = (reach > floor) & (rng.random(count) < (1 if row == 0 else _INNER_ROW_SHARE))
            points = glands.centres[i] + reach[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
            turn = angle + rng.normal(0, 0.25, count)
            found.append(np.column_stack([points, turn])[kept])
    rows = np.concatenate(found)
    return Nuclei(SMOOTH, rows[:, :2], rows[:, 2])


def paint(rng: np.random.Generator, nuclei: Nuclei, scale: float, mpp: float, cover: Field, density: Field) -> None:
    """Draws nuclei over what is there.

    Args:
        rng: random numbers.
        nuclei: which.
        scale: factor on radii.
        mpp: um/px of the picture.
        cover: share of each pixel that nuclei cover, changed in place.
        density: haematoxylin of nuclei times cover, changed in place.
    """
    if not len(nuclei.places):
        return
    masks, shades = _sprites(rng, nuclei.kind, scale, mpp)
    side = masks.shape[-1]
    height, width = cover.shape
    corner = np.round(nuclei.places / mpp).astype(np.int64) - side // 2
    bins = np.round(nuclei.turns / np.pi * _TURNS).astype(np.int64) % _TURNS
    chosen = bins * _VARIANTS + rng.integers(_VARIANTS, size=len(bins))
    inside = (corner >= 0).all(1) & (corner[:, 0] + side <= width) & (corner[:, 1] + side <= height)
    clear = 1 - masks
    for (x, y), sprite in zip(corner[inside].tolist(), chosen[inside].tolist(), strict=True):
        place = (slice(y, y + side), slice(x, x + side))
        for field, value in ((cover, masks), (density, shades)):
            view = field[place]
            view *= clear[sprite]
            view += value[sprite]


def _sprites(rng: np.random.Generator, kind: NucleusKind, scale: float, mpp: float) -> tuple[Field, Field]:
    """Pictures of single nuclei: ``(turns * variants, side, side)`` cover, and haematoxylin times cover."""
    count = _TURNS * _VARIANTS
    radius = kind.radius_um * scale * np.exp(rng.normal(0, kind.spread, (count, 1, 1)))
    stretch = np.sqrt(kind.elongation * np.exp(rng.normal(0, 0.08, (count, 1, 1))))
    turn = (np.repeat(np.arange(_TURNS), _VARIANTS) * np.pi / _TURNS)[:, None, None]
    reach = int(np.ceil((radius * stretch).max() * 1.12 / mpp)) + 2
    axis = np.arange(-reach, reach + 1) * mpp
    y, x = axis[None, :, None], axis[None, None, :]
    u = (x * np.cos(turn) + y * np.sin(turn)) / (radius * stretch)
    v = (y * np.cos(turn) - x * np.sin(turn)) / (radius / stretch)
    angle = np.arctan2(v, u)
    phase = rng.uniform(0, 2 * np.pi, (3, count, 1, 1))
    size = rng.normal(0, kind.ragged, (3, count, 1, 1))
    outline = 1 + sum(size[i] / (i + 1) * np.cos((i + 2) * angle + phase[i]) for i in range(3))
    depth = 1 - np.hypot(u, v) / outline  # 0 at the membrane, 1 in the middle
    mask = 1 / (1 + np.exp(-depth * radius / stretch / 0.28))
    shade = kind.density * np.exp(rng.normal(0, 0.10, (count, 1, 1)))
    shade = shade * (1 + kind.contrast * _chromatin(rng, count, len(axis), kind.coarse_um / mpp))
    shade = shade + kind.rim * np.exp(-0.5 * ((depth * radius / stretch - 0.45) / 0.4) ** 2)
    for number in range(kind.nucleoli):
        at = rng.uniform(-0.4, 0.4, (2, count, 1, 1))
        size_um = rng.uniform(0.7, 1.15, (count, 1, 1)) * (rng.random((count, 1, 1)) < (0.9, 0.4)[number])
        distance = np.hypot(u - at[0], v - at[1]) * radius
        shade = shade + 1.1 / (1 + np.exp((distance - size_um) / 0.18)) * (size_um > 0)
    mask = mask.astype(np.float32)
    return mask, mask * np.clip(shade, 0.2, 3).astype(np.float32)


def _chromatin(rng: np.random.Generator, count: int, side: int, grain: float) -> Field:
    """``(count, side, side)`` cut-outs of one texture."""
    texture = tile_noise(rng, 256, (max(grain, 0.5), max(grain, 0.5)))
    corner = rng.integers(256, size=(2, count, 1, 1))
    step = np.arange(side)
    return texture[(corner[0] + step[None, :, None]) % 256, (corner[1] + step[None, None, :]) % 256]

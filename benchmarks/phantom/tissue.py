"""The layout of a slide, at 1 um/px: tissue on glass, a lesion, ducts, fat, stroma with its fibres."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.phantom.fields import Field, smooth_noise, tile_noise
from benchmarks.phantom.glands import ducts
from benchmarks.phantom.growth import grow
from benchmarks.phantom.nuclei import FIBROBLAST, LYMPHOCYTE, SMOOTH, VESICULAR, Nuclei, epithelial
from benchmarks.phantom.plan import GROUPS, SlidePlan

# Left, top, right and bottom as shares of the slide, of tissue and lesion, where the lesion lies on the left.
_TISSUE_BOX = (0.004, 0.010, 0.950, 0.860)
_LESION_BOX = (0.010, 0.020, 0.820, 0.848)
_STROMAL_NUCLEI_MM2 = 2000.0
_LYMPHOCYTES_MM2 = 350.0
_FAT_CORNER_UM = 12  # how round the corners of fat cells are


@dataclass(frozen=True, eq=False)
class Lesion:
    """A planted region; ``polygon`` is ``(m, 2)`` in um."""

    polygon: NDArray[np.float64]
    vesicular_nuclei: bool
    broad_cords: bool


@dataclass(frozen=True, eq=False)
class Layout:
    """What lies where. Fields are ``(h, w)`` float32 at 1 um/px, lengths in um.

    Attributes:
        lesion: the planted region.
        tissue: above 0.5 inside the tissue.
        epithelium: share of each pixel that is epithelium, of the lesion or of glands; lumens are cut out.
        cords: of the lesion, -1 where its cells are pale to 1 where they are eosinophilic; 0 outside.
        lumen: share that is lumen.
        secretion: what lies in the lumens, 0 to 1.
        wall: 1 along the outer walls of epithelium.
        fat: share of each pixel that is the inside of a fat cell.
        fibres: density of collagen, about 0 to 1.
        nuclei: of stroma, glands and lesion, in the order in which they are drawn.
    """

    lesion: Lesion
    tissue: Field
    epithelium: Field
    cords: Field
    lumen: Field
    secretion: Field
    wall: Field
    fat: Field
    fibres: Field
    nuclei: list[Nuclei]


def lay_out(rng: np.random.Generator, plan: SlidePlan) -> Layout:
    """Draws up one slide."""
    width, height = (round(side) for side in plan.size_um)
    shape = (height, width)
    flipped = rng.random() < 0.5
    tissue = _tissue(rng, shape, flipped)
    lesion = _lesion(rng, plan, flipped)
    taken = _filled([lesion.polygon], shape) * tissue
    fat = _fat(rng, tissue, taken)
    away = cv2.distanceTransform(((taken < 0.5) & (fat < 0.3)).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)
    room = (away > 85) & (cv2.GaussianBlur(tissue, (0, 0), 40, borderType=cv2.BORDER_CONSTANT) > 0.9)
    glands = ducts(rng, _scattered(rng, room, spacing=230))
    lumen = _filled(glands.lumen_edge(), shape)
    solid = np.maximum(taken, _filled(glands.wall(), shape))
    secretion = _filled(glands.lumen_edge(), shape, np.round(255 * glands.secretion)) * lumen
    epithelium = np.clip(solid - lumen, 0, 1)
    wall = np.clip(cv2.GaussianBlur(solid, (0, 0), 2.2) - solid, 0, 1) * 2
    fibres, direction = _fibres(rng, solid)
    stroma = (tissue > 0.5) & (cv2.dilate(solid, np.ones((7, 7))) < 0.1) & (cv2.dilate(fat, np.ones((5, 5))) < 0.1)
    growth = grow(rng, taken > 0.5, broad=lesion.broad_cords, scale=plan.nuclear_scale)
    turns = rng.uniform(0, np.pi, len(growth.places))
    nuclei = [
        *_stromal(rng, stroma, direction),
        epithelial(rng, glands, plan.nuclear_scale),
        Nuclei(VESICULAR if lesion.vesicular_nuclei else SMOOTH, growth.places, turns),
    ]
    return Layout(lesion, tissue, epithelium, growth.cords, lumen, secretion, wall, fat, fibres, nuclei)


def _tissue(rng: np.random.Generator, shape: tuple[int, int], flipped: bool) -> Field:
    """A core with a ragged edge; a little glass is left around it, and most below, where the words stand."""
    height, width = shape
    middle, half = _box(_TISSUE_BOX, (width, height), flipped)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    u, v = (x - middle[0]) / half[0], (y - middle[1]) / half[1]
    distance = (u**12 + v**12) ** (1 / 12)
    edge = smooth_noise(rng, shape, 260) + 0.4 * smooth_noise(rng, shape, 70) + 0.15 * smooth_noise(rng, shape, 16)
    field: Field = (1 - distance + 0.03 * edge).astype(np.float32)
    return np.clip(0.5 + field * half[1] / 3, 0, 1).astype(np.float32)  # 3 um soft


def _lesion(rng: np.random.Generator, plan: SlidePlan, flipped: bool) -> Lesion:
    """One end of the core, from edge to edge, which fills two patches of 5x (512 um) and about half of the third."""
    middle, half = _box(_LESION_BOX, plan.size_um, flipped)
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    phase = rng.uniform(0, 2 * np.pi, 3)
    wobble = sum(rng.normal(0, 0.006) * np.cos((i + 2) * angle + phase[i]) for i in range(3))
    direction = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    radius = (np.abs(direction) ** 12).sum(1) ** (-1 / 12) * (1 + wobble)
    polygon = middle + rng.uniform(-4, 4, 2) + radius[:, None] * direction * half
    return Lesion(polygon, *GROUPS[plan.group])


def _box(
    shares: tuple[float, float, float, float], size: tuple[float, float], flipped: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Middle and half sides of a box in um."""
    corners = np.array(shares).reshape(2, 2) * size
    if flipped:
        corners[:, 0] = size[0] - corners[::-1, 0]
    return corners.mean(0), (corners[1] - corners[0]) / 2


def _filled(
    polygons: list[NDArray[np.float64]] | NDArray[np.float64],
    shape: tuple[int, int],
    values: NDArray[np.float64] | None = None,
) -> Field:
    """Polygons in um filled with 1, or with ``values / 255``; the edge is a pixel soft."""
    canvas = np.zeros(shape, np.uint8)
    for i, polygon in enumerate(polygons):
        points = np.round((polygon - 0.5) * 16).astype(np.int32)
        cv2.fillPoly(canvas, [points], 255 if values is None else float(values[i]), cv2.LINE_AA, shift=4)
    return _share(canvas)


def _share(canvas: NDArray[np.uint8]) -> Field:
    return np.divide(canvas, 255, dtype=np.float32)


def _scattered(rng: np.random.Generator, room: NDArray[np.bool_], spacing: float) -> NDArray[np.float64]:
    """Places inside ``room``, none nearer to another than ``spacing``."""
    rows, columns = np.nonzero(room)
    chosen: list[NDArray[np.float64]] = []
    for i in rng.integers(len(rows), size=200 if len(rows) else 0):
        point = np.array([columns[i], rows[i]], np.float64)
        if all(np.hypot(*(point - other)) > spacing for other in chosen):
            chosen.append(point)
    return np.array(chosen).reshape(-1, 2)


def _fat(rng: np.random.Generator, tissue: Field, taken: Field) -> Field:
    """Fat cells: the cells of a Voronoi diagram with round corners, in a few places away from lesions."""
    height, width = shape = tissue.shape
    region = smooth_noise(rng, shape, 420) + 0.25 * smooth_noise(rng, shape, 90)
    clear = cv2.distanceTransform((taken < 0.5).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5) > 40
    region = (region > 0.85) & clear & (tissue > 0.5)
    spacing = 68.0
    rows, columns = np.mgrid[0 : height / spacing + 1, 0 : width / spacing + 1]
    seeds = np.stack([columns + 0.5 * (rows % 2), rows], axis=-1).reshape(-1, 2) * spacing
    seeds = seeds + rng.normal(0, 0.16 * spacing, seeds.shape)
    bounds = cv2.Subdiv2D((-300, -300, width + 600, height + 600))
    bounds.insert(seeds.astype(np.float32).tolist())
    facets, centres = bounds.getVoronoiFacetList([])
    held = [region[min(max(int(y), 0), height - 1), min(max(int(x), 0), width - 1)] for x, y in np.asarray(centres)]
    cells = np.zeros(shape, np.uint8)
    for facet in (np.asarray(facet) for facet, inside in zip(facets, held, strict=True) if inside):
        middle = facet.mean(0)
        inset = (_FAT_CORNER_UM + 2.0) / (0.85 * np.linalg.norm(facet - middle, axis=1).mean())
        points = [np.round((middle + (facet - middle) * max(0.2, 1 - inset)) * 16).astype(np.int32)]
        cv2.fillPoly(cells, points, 255, cv2.LINE_AA, shift=4)
        cv2.polylines(cells, points, True, 255, 2 * _FAT_CORNER_UM, cv2.LINE_AA, shift=4)  # its pen is round
    return _share(cells)


def _fibres(rng: np.random.Generator, solid: Field) -> tuple[Field, Field]:
    """Wavy collagen that runs around glands: its density, and its direction in radians."""
    shape = solid.shape
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    turn = rng.uniform(0, np.pi)
    away = cv2.distanceTransform((solid < 0.5).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)
    bend = 75 * (1 - np.exp(-away / 45))
    along = x * np.cos(turn) + y * np.sin(turn) + 60 * smooth_noise(rng, shape, 240)
    across = y * np.cos(turn) - x * np.sin(turn) + 85 * smooth_noise(rng, shape, 280)
    across += 9 * smooth_noise(rng, shape, 60) + cv2.GaussianBlur(bend, (0, 0), 4)
    fine = tile_noise(rng, 1024, (1.3, 28))
    bundles = tile_noise(rng, 1024, (7, 90))
    along, across = along.astype(np.float32), across.astype(np.float32)
    fine, bundles = (
        np.asarray(cv2.remap(tile, along, across, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP), np.float32)
        for tile in (fine, bundles)
    )
    density = 0.5 + 0.19 * fine + 0.16 * bundles
    clefts = np.clip((fine + bundles + 1.9) * 1.6, 0, 1)  # white slits between bundles
    smooth = cv2.GaussianBlur(across, (0, 0), 5)
    down, right = np.gradient(smooth)
    return np.clip(density, 0.05, 1.2) * (0.2 + 0.8 * clefts), np.arctan2(-right, down).astype(np.float32)


def _stromal(rng: np.random.Generator, stroma: NDArray[np.bool_], direction: Field) -> list[Nuclei]:
    rows, columns = np.nonzero(stroma)
    mm2 = len(rows) / 1e6
    found = []
    crowd = np.exp(1.2 * smooth_noise(rng, stroma.shape, 130))[rows, columns]  # lymphocytes keep together
    even = np.ones(len(rows))
    for kind, number, weight in (
        (FIBROBLAST, _STROMAL_NUCLEI_MM2 * mm2, even),
        (LYMPHOCYTE, _LYMPHOCYTES_MM2 * rng.uniform(0.4, 1.8) * mm2, crowd),
    ):
        total = np.cumsum(weight)
        chosen = np.searchsorted(total, rng.random(round(number)) * total[-1])
        places = np.column_stack([columns[chosen], rows[chosen]]) + rng.random((len(chosen), 2))
        turns = direction[rows[chosen], columns[chosen]] + rng.normal(0, 0.15, len(chosen))
        found.append(Nuclei(kind, places, turns.astype(np.float64)))
    return found

"""The aligned multi-scale grid: which patches a slide has, and how to read them with few decodes.

Every box is whole level-0 pixels, so that a tool that reads a bag's ``coords`` and ``patch_size_level0`` gets the
very pixels that were encoded, and nesting is exact: per axis there is one ``unit``, 256 px at the finest step of
the ladder that the slide can serve, rounded to a whole level-0 pixel, and a patch k steps coarser is ``2**k``
units. The rounding costs at most half a pixel in 232, that is 0.22 % of the field of view. The unit depends on
the slide alone, so its 5x patches are the same whether or not 20x is asked for as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from zoomfeat.errors import ConfigurationError, MagnificationError, NoTissueError
from zoomfeat.magnification import PATCH_SIZE, Magnification, resolution
from zoomfeat.slides.reader import Slide
from zoomfeat.slides.tissue import TissueMask

MAX_UPSAMPLING = 1.1
"""A slide is served at a magnification up to this many times finer than its own pixels."""

_ROUNDING = 1e-6  # 0.55 um/px is a tenth coarser than 0.5, whatever floating point makes of it


@dataclass(frozen=True)
class Scale:
    """The patches of one slide at one magnification, sorted by row, then column.

    Attributes:
        magnification: the step of the ladder.
        size: level-0 pixels of a patch along x and y.
        coords: int64 (N, 2), level-0 x and y of the top-left corners.
        tissue: float32 (N,), share of each patch that is tissue, 0 to 1.
    """

    magnification: Magnification
    size: tuple[int, int]
    coords: np.ndarray
    tissue: np.ndarray


@dataclass(frozen=True)
class Grid:
    """The patches of one slide at all magnifications asked.

    Attributes:
        scales: finest first.
        parents: by the name of each coarser magnification, int32 (N,): for each patch of the finest scale the
            row of that coarser scale whose patch contains it.
        dropped: patches of the finest scale that were left out, counted by reason.
    """

    scales: tuple[Scale, ...]
    parents: dict[str, np.ndarray]
    dropped: dict[str, int]


@dataclass(frozen=True)
class RegionPart:
    """The patches of one scale that a region holds.

    Attributes:
        scale: index into ``Grid.scales``.
        rows: int64 (n,), indices into that scale's ``coords``.
        cells: int64 (n, 2), column and row of each patch within the region, in patches.
        per_side: patches of this scale along each side of the region.
    """

    scale: int
    rows: np.ndarray
    cells: np.ndarray
    per_side: int


@dataclass(frozen=True)
class Region:
    """A box that is decoded once and serves the patches of several scales.

    Attributes:
        x: left edge in level-0 pixels.
        y: top edge.
        width: level-0 pixels.
        height: level-0 pixels.
        parts: one for each scale served, finest first.
    """

    x: int
    y: int
    width: int
    height: int
    parts: tuple[RegionPart, ...]


def make_grid(
    slide: Slide, mask: TissueMask, magnifications: tuple[Magnification, ...], min_tissue: float = 0.5
) -> Grid:
    """Lay the grid over a slide and keep what holds tissue.

    The coarsest magnification tiles the slide from its top-left corner; patches may overhang at the right and the
    bottom. A patch of the finest magnification is kept when at least ``min_tissue`` of it is tissue, and with it
    the patch at every coarser magnification that contains it.

    Args:
        slide: an open slide.
        mask: its tissue.
        magnifications: finest first, distinct, of one ladder (`zoomfeat.magnification.parse`).
        min_tissue: share of a patch, 0 to 1.

    Raises:
        ConfigurationError: ``min_tissue`` is not between 0 and 1.
        MagnificationError: the slide's pixels are too coarse for the finest magnification.
        NoTissueError: no patch is kept.
    """
    if not 0 <= min_tissue <= 1:
        raise ConfigurationError(f"min_tissue is {min_tissue}, not between 0 and 1", cure="Use for example 0.5")
    sizes = [patch_size(slide, magnification) for magnification in magnifications]
    width, height = sizes[0]
    corners = np.mgrid[0 : slide.height : height, 0 : slide.width : width].reshape(2, -1).T[:, ::-1]
    fractions = mask.fraction(corners[:, 0], corners[:, 1], width, height)
    kept = fractions >= min_tissue
    if not kept.any():
        raise NoTissueError(
            f"no {magnifications[0]} patch is at least {min_tissue:g} {mask.kind}, the best of {len(kept)} "
            f"is {fractions.max():.3g}",
            cure="Lower min_tissue, or look at the slide's preview",
            path=slide.path,
        )
    coords = np.ascontiguousarray(corners[kept], dtype=np.int64)
    scales = [Scale(magnifications[0], sizes[0], coords, fractions[kept].astype(np.float32))]
    parents = {}
    for magnification, (width, height) in zip(magnifications[1:], sizes[1:], strict=True):
        containing = coords // (width, height) * (width, height)
        # Unique rows of (y, x) come out sorted by row, then column.
        flipped, parent = np.unique(containing[:, ::-1], axis=0, return_inverse=True)
        boxes = np.ascontiguousarray(flipped[:, ::-1])
        tissue = mask.fraction(boxes[:, 0], boxes[:, 1], width, height).astype(np.float32)
        scales.append(Scale(magnification, (width, height), boxes, tissue))
        parents[magnification.name] = parent.reshape(-1).astype(np.int32)
    return Grid(tuple(scales), parents, {mask.kind: int(np.count_nonzero(~kept))})


def regions(grid: Grid, max_ratio: int = 8) -> list[Region]:
    """A reading plan in which each patch of each scale occurs once.

    Scales no more than ``max_ratio`` apart are read together: a region is a patch of the coarsest of them, at
    most ``max_ratio`` x 256 px a side at the finest, which bounds the memory that it takes. Between such groups
    the decode is repeated, since pixels for a far coarser scale come from another level of the pyramid anyway.
    """
    plan: list[Region] = []
    remaining = list(range(len(grid.scales)))
    while remaining:
        reach = grid.scales[remaining[0]].size[0] * max_ratio
        group = [index for index in remaining if grid.scales[index].size[0] <= reach]
        remaining = remaining[len(group) :]
        plan += _regions_of_group(grid, group)
    return plan


def read_region(slide: Slide, region: Region) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Decode a region once and cut the patches of all its scales.

    Returns:
        For each scale served: its index in ``Grid.scales``, the rows int64 (n,) of its patches, and the patches
        uint8 RGB (n, 256, 256, 3) in the same order.

    Raises:
        SlideUnreadableError: the region does not decode.
    """
    sizes = [(part.per_side * PATCH_SIZE, part.per_side * PATCH_SIZE) for part in region.parts]
    canvases = slide.read(region.x, region.y, region.width, region.height, sizes)
    return [(part.scale, part.rows, _cut(canvas, part)) for part, canvas in zip(region.parts, canvases, strict=True)]


def patch_size(slide: Slide, magnification: Magnification) -> tuple[int, int]:
    """Level-0 pixels of a patch along x and y.

    Raises:
        MagnificationError: the slide's pixels are too coarse for it.
    """
    if max(slide.mpp) > magnification.mpp * MAX_UPSAMPLING * (1 + _ROUNDING):
        raise MagnificationError(
            f"its pixels are {resolution(slide.mpp[0])} x {resolution(slide.mpp[1])} (from the {slide.mpp_source}), "
            f"too coarse for {magnification}, which takes at most {resolution(magnification.mpp * MAX_UPSAMPLING)}",
            cure="Ask for a coarser magnification, or give the slide's true um/px as mpp if this one is wrong",
            path=slide.path,
        )
    ladder_start = magnification.mpp / 2**magnification.index
    # How many steps the slide itself is down the ladder: none for a 20x or 40x scan.
    finest = math.ceil(math.log2(max(slide.mpp) / (ladder_start * MAX_UPSAMPLING * (1 + _ROUNDING))))
    finest = max(finest, 0)
    unit = [round(PATCH_SIZE * ladder_start * 2**finest / mpp) for mpp in slide.mpp]
    step = 2 ** (magnification.index - finest)
    return unit[0] * step, unit[1] * step


def _regions_of_group(grid: Grid, group: list[int]) -> list[Region]:
    """The regions of scales that are read together: one for each patch of the coarsest of them."""
    coarsest = grid.scales[group[-1]]
    width, height = coarsest.size
    columns = int(coarsest.coords[:, 0].max()) // width + 1
    keys = coarsest.coords[:, 1] // height * columns + coarsest.coords[:, 0] // width  # ascending, as sorted
    parts: list[list[RegionPart]] = [[] for _ in keys]
    for index in group:
        scale = grid.scales[index]
        inside = scale.coords // coarsest.size
        owner = np.searchsorted(keys, inside[:, 1] * columns + inside[:, 0])
        cells = scale.coords % coarsest.size // scale.size
        order = np.argsort(owner, kind="stable")
        starts = np.searchsorted(owner[order], np.arange(1, len(keys)))
        for served, rows in zip(parts, np.split(order, starts), strict=True):
            served.append(RegionPart(index, rows, cells[rows], width // scale.size[0]))
    return [
        Region(int(x), int(y), width, height, tuple(served))
        for (x, y), served in zip(coarsest.coords, parts, strict=True)
    ]


def _cut(canvas: np.ndarray, part: RegionPart) -> np.ndarray:
    """The patches of a part, uint8 (n, 256, 256, 3), from its canvas of ``per_side`` x 256 px."""
    blocks = canvas.reshape(part.per_side, PATCH_SIZE, part.per_side, PATCH_SIZE, 3).swapaxes(1, 2)
    return blocks[part.cells[:, 1], part.cells[:, 0]]

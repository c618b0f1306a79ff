"""Which patches of one slide a training set gets: on the aligned grid, and on grids laid at further places."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc

from zoomfeat.errors import MagnificationError, NoTissueError
from zoomfeat.magnification import BRCA, Ladder, Magnification
from zoomfeat.slides import Slide, TissueMask, patch_size

BLOCK_LEVEL = 3
"""Ladder index of what is decoded at once, and by which places of the grid differ."""

BLOCK = 2**BLOCK_LEVEL
"""20x patches along a side of it: 8, which are 2048 px."""

Cell = tuple[int, int]
"""Row and column of a patch in the grid of its magnification."""


@dataclass(frozen=True, eq=False)
class PlacedGrid:
    """The grid at one place: which of its patches are made.

    Attributes:
        origin: rows and columns of blocks (2048 px at 20x) by which it begins above and left of the slide's corner.
        kept: by ladder index, bool (rows, columns): the patches to make. All arrays cover the same area, each with
            half the rows and columns of the one before.
        needed: likewise, what holds 20x patches that some kept patch covers and that touch the slide.
    """

    origin: Cell
    kept: tuple[NDArray[np.bool_], ...]
    needed: tuple[NDArray[np.bool_], ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """Which patches of one slide are made.

    Attributes:
        unit: level-0 pixels of a 20x patch along x and y; a patch k steps coarser has ``2**k`` units.
        grids: the aligned grid, and those laid at further places.
        embedded: bool (rows, columns) from the slide's corner: the 20x patches that some kept patch covers.
        dropped: magnification name to patches left out for want of tissue.
        ladder: what the indices stand for.
    """

    unit: tuple[int, int]
    grids: tuple[PlacedGrid, ...]
    embedded: NDArray[np.bool_]
    dropped: dict[str, int]
    ladder: Ladder

    @property
    def counts(self) -> dict[str, int]:
        """Magnification name to patches kept, for magnifications that have any."""
        levels = zip(*(grid.kept for grid in self.grids), strict=True)
        totals = [sum(int(kept.sum()) for kept in places) for places in levels]
        return {str(m): total for m, total in zip(self.ladder.steps, totals, strict=False) if total}


def make_plan(
    slide: Slide,
    mask: TissueMask,
    min_tissue: Mapping[Magnification, float],
    ladder: Ladder = BRCA,
    origins: int = 1,
) -> Plan:
    """Chooses the patches of every magnification by their own share of tissue.

    Args:
        slide: an open slide.
        mask: its tissue.
        min_tissue: for each magnification wanted, the least share of a patch that is tissue, 0 to 1. What lies
            beyond the slide counts as none.
        ladder: that those magnifications are steps of.
        origins: how many places to lay the grid at. Places differ by whole blocks, 8 patches of 20x, so that all
            share their embeddings and only magnifications from index 4 (1.25x) on gain patches. No patch is made twice.

    Raises:
        MagnificationError: the slide's pixels are too coarse for the 20x patches that are embedded.
        NoTissueError: no patch of any magnification is kept.
    """
    unit = _unit(slide, ladder.finest)
    shape = math.ceil(slide.height / unit[1]), math.ceil(slide.width / unit[0])
    top = max(BLOCK_LEVEL, *(m.index for m in min_tissue))
    dropped = {str(m): 0 for m in min_tissue}
    best = 0.0
    grids = []
    embedded = np.zeros(shape, bool)
    made: set[tuple[int, ...]] = set()
    for origin in _origins(origins, top):
        kept = [np.zeros([n << (top - level) for n in _cells(shape, origin, top)], bool) for level in range(top + 1)]
        for magnification, threshold in min_tissue.items():
            level = magnification.index
            place = level, *(blocks % 2 ** max(0, level - BLOCK_LEVEL) for blocks in origin)
            if place in made:
                continue  # the grid of this magnification is the same as at an earlier origin
            made.add(place)
            tissue = _tissue(mask, unit, shape, origin, level)
            enough = tissue >= threshold
            kept[level][: enough.shape[0], : enough.shape[1]] = enough
            dropped[str(magnification)] += int(((tissue >= 0) & ~enough).sum())
            best = max(best, float(tissue.max()))
        needed = _needed(kept, _inside_slide(shape, origin))
        if needed[-1].any():
            grids.append(PlacedGrid(origin, tuple(kept), needed))
            embedded |= needed[0][_inside_slide(shape, origin)]
    if not grids:
        raise NoTissueError(
            f"no patch of any magnification holds enough tissue, the best {best:.3g}",
            cure="Lower min_tissue and min_tissue_coarsest, or leave this slide out",
            path=slide.path,
        )
    return Plan(unit, tuple(grids), embedded, dropped, ladder)


def _needed(kept: Sequence[NDArray[np.bool_]], on_slide: tuple[slice, slice]) -> tuple[NDArray[np.bool_], ...]:
    """``needed`` of a grid, whose part ``on_slide`` (of 20x patches) touches the slide."""
    covered = np.zeros_like(kept[0])
    for level, patches in enumerate(kept):
        covered |= patches.repeat(2**level, 0).repeat(2**level, 1)
    finest = np.zeros_like(covered)
    finest[on_slide] = covered[on_slide]
    needed = [finest]
    for patches in kept[1:]:
        height, width = patches.shape
        needed.append(np.logical_or.reduce(needed[-1].reshape(height, 2, width, 2), axis=(1, 3)))
    return tuple(needed)


def _unit(slide: Slide, finest: Magnification) -> tuple[int, int]:
    try:
        return patch_size(slide, finest)
    except MagnificationError as error:
        raise MagnificationError(
            f"{error.problem}; every magnification needs the embeddings of its {finest} patches",
            cure="Leave this slide out, or give its true um/px as mpp if this one is wrong",
        ) from error


def _origins(count: int, top: int) -> list[Cell]:
    """Places of the grid in blocks, the slide's corner first, spread evenly over the coarsest patch."""
    per_side = 2 ** (top - BLOCK_LEVEL)
    return [(int(row), int(column)) for row, column in qmc.Halton(2, scramble=False).random(count) * per_side]


def _cells(shape: Cell, origin: Cell, level: int) -> Cell:
    """Rows and columns of patches of a level from the grid's origin to the slide's far edges."""
    rows, columns = (math.ceil((n + BLOCK * o) / 2**level) for n, o in zip(shape, origin, strict=True))
    return rows, columns


def _inside_slide(shape: Cell, origin: Cell) -> tuple[slice, slice]:
    """The 20x patches of a grid that touch the slide."""
    rows, columns = (slice(BLOCK * o, BLOCK * o + n) for n, o in zip(shape, origin, strict=True))
    return rows, columns


def _tissue(mask: TissueMask, unit: tuple[int, int], shape: Cell, origin: Cell, level: int) -> NDArray[np.float32]:
    """Share of tissue of every patch of a level; -1 where one lies wholly above or left of the slide."""
    cells = _cells(shape, origin, level)
    rows, columns = np.indices(cells).reshape(2, -1)
    width, height = (length << level for length in unit)
    x = columns * width - BLOCK * origin[1] * unit[0]
    y = rows * height - BLOCK * origin[0] * unit[1]
    tissue = mask.fraction(x, y, width, height).astype(np.float32)
    tissue[(x + width <= 0) | (y + height <= 0)] = -1
    return tissue.reshape(cells)

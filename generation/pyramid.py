"""All magnifications of a slide in one pass: each 20x patch is read once and embedded once.

A patch k steps up the ladder covers ``2**k x 2**k`` patches of 20x. The slide is walked as a quadtree: four areas
are joined into the one that contains them as soon as they are done, so that memory holds a few areas a level,
whatever the size of the slide (about 130 MB at 0.15625x with 1280 features; a quarter of it at each step finer).
Pixels are joined as sums of whole numbers (255 * 4**7 fits into 32 bits), so that a coarse image is the exact area
mean of the 20x images under it, rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from zoomfeat.encoders import PatchEncoder
from zoomfeat.errors import ConfigurationError, MagnificationError, NoTissueError
from zoomfeat.magnification import BRCA, PATCH_SIZE, Ladder, Magnification
from zoomfeat.slides import Slide, TissueMask, make_grid

_BLOCK_LEVEL = 3  # what is decoded at once: 8 x 8 patches of 20x, 2048 px a side
_BLOCK = 2**_BLOCK_LEVEL
_AHEAD = 4  # blocks a thread that are decoded while the encoder runs, 12 MB each

Cell = tuple[int, int]
"""Row and column of a patch in the grid of its magnification."""


@dataclass(frozen=True, eq=False)
class Patch:
    """One patch of one magnification, with the embeddings of the 20x patches that it covers.

    Attributes:
        magnification: the step of the ladder, index k.
        x: left edge in level-0 pixels.
        y: top edge.
        width: level-0 pixels.
        height: level-0 pixels.
        image: uint8 RGB (256, 256, 3).
        grid: float16 (C, 2**k, 2**k), raw embeddings, rows downwards.
        orientation: 0 as on the slide; else what :meth:`turned` made of it.
    """

    magnification: Magnification
    x: int
    y: int
    width: int
    height: int
    image: NDArray[np.uint8]
    grid: NDArray[np.float16]
    orientation: int = 0

    def turned(self, orientation: int) -> Patch:
        """The patch as a slide laid differently under the microscope would show it.

        The embeddings change places with their patches and keep their values: those of a turned 20x patch would
        differ a little.

        Args:
            orientation: 0 to 3 quarter turns counter-clockwise; 4 more is mirrored left to right after them.
        """
        image = np.rot90(self.image, orientation % 4)
        grid = np.rot90(self.grid, orientation % 4, axes=(1, 2))
        if orientation >= 4:
            image, grid = image[:, ::-1], grid[..., ::-1]
        return replace(
            self, image=np.ascontiguousarray(image), grid=np.ascontiguousarray(grid), orientation=orientation
        )


@dataclass(frozen=True, eq=False)
class Plan:
    """Which patches of one slide are made, on the aligned grid.

    Attributes:
        unit: level-0 pixels of a 20x patch along x and y; a patch k steps coarser has ``2**k`` units.
        kept: by ladder index, bool (rows, columns): the patches to make. All arrays cover the same area, each with
            half the rows and columns of the one before.
        needed: likewise, what holds 20x patches that some kept patch covers and that touch the slide.
        dropped: magnification name to patches left out for want of tissue.
        ladder: what the indices stand for.
    """

    unit: tuple[int, int]
    kept: tuple[NDArray[np.bool_], ...]
    needed: tuple[NDArray[np.bool_], ...]
    dropped: dict[str, int]
    ladder: Ladder

    @property
    def counts(self) -> dict[str, int]:
        """Magnification name to patches kept, for magnifications that have any."""
        return {str(m): int(k.sum()) for m, k in zip(self.ladder.steps, self.kept, strict=False) if k.any()}


def make_plan(slide: Slide, mask: TissueMask, min_tissue: Mapping[Magnification, float], ladder: Ladder = BRCA) -> Plan:
    """Chooses the patches of every magnification by their own share of tissue.

    Args:
        slide: an open slide.
        mask: its tissue.
        min_tissue: for each magnification wanted, the least share of a patch that is tissue, 0 to 1. What lies
            beyond the slide counts as none.
        ladder: that those magnifications are steps of.

    Raises:
        MagnificationError: the slide's pixels are too coarse for the 20x patches that are embedded.
        NoTissueError: no patch of any magnification is kept.
    """
    finest = ladder.finest
    try:
        grid = make_grid(slide, mask, tuple(sorted({finest, *min_tissue})), min_tissue=0)  # all that touch the slide
    except MagnificationError as error:
        raise MagnificationError(
            f"{error.problem}; every magnification needs the embeddings of its {finest} patches",
            cure="Leave this slide out, or give its true um/px as mpp if this one is wrong",
        ) from error
    unit = grid.scales[0].size
    columns, rows = (grid.scales[0].coords // unit).max(axis=0) + 1
    top = max(_BLOCK_LEVEL, *(m.index for m in min_tissue))
    roots = math.ceil(rows / 2**top), math.ceil(columns / 2**top)
    kept = [np.zeros([n << (top - level) for n in roots], bool) for level in range(top + 1)]
    covered = np.zeros_like(kept[0])
    dropped = {}
    for scale in grid.scales:
        magnification = scale.magnification
        if magnification not in min_tissue:
            continue
        cells = (scale.coords // scale.size)[scale.tissue >= min_tissue[magnification]]
        kept[magnification.index][cells[:, 1], cells[:, 0]] = True
        covered |= kept[magnification.index].repeat(magnification.grid, 0).repeat(magnification.grid, 1)
        dropped[str(magnification)] = len(scale.coords) - len(cells)
    if not covered.any():
        best = max(float(scale.tissue.max()) for scale in grid.scales)
        raise NoTissueError(
            f"no patch of any magnification holds enough tissue, the best {best:.3g}",
            cure="Lower min_tissue and min_tissue_coarsest, or leave this slide out",
            path=slide.path,
        )
    covered[rows:] = covered[:, columns:] = False
    needed = [covered]
    for level in kept[1:]:
        height, width = level.shape
        needed.append(np.logical_or.reduce(needed[-1].reshape(height, 2, width, 2), axis=(1, 3)))
    return Plan(unit, tuple(kept), tuple(needed), dropped, ladder)


def read_patches(slide: Slide, plan: Plan, encoder: PatchEncoder, batch_size: int, workers: int) -> Iterator[Patch]:
    """The kept patches of all magnifications, in the order in which they become complete.

    Args:
        slide: where the pixels are.
        plan: which patches.
        encoder: embeds the 20x patches.
        batch_size: 20x patches a call of the encoder.
        workers: threads that decode ahead of it.

    Raises:
        SlideUnreadableError: part of the slide does not decode.
        ConfigurationError: embeddings that float16 does not hold.
    """
    with ThreadPoolExecutor(workers, thread_name_prefix="read") as pool:
        walk = _Walk(slide, plan, encoder, batch_size, pool, _AHEAD * workers)
        for root in np.ndindex(*plan.kept[-1].shape):
            yield from walk.area(len(plan.kept) - 1, root)


@dataclass(frozen=True, eq=False)
class _Area:
    """A finished square of the slide.

    Attributes:
        sums: uint32 (256, 256, 3), sums of the 20x pixels (all of one area have the same number) under each pixel.
        grid: float16 (2**k, 2**k, C), the embeddings.
    """

    sums: NDArray[np.uint32]
    grid: NDArray[np.float16]


class _Walk:
    """The quadtree walk: each area gives its kept patches and then itself to the area that contains it."""

    def __init__(
        self, slide: Slide, plan: Plan, encoder: PatchEncoder, batch_size: int, pool: ThreadPoolExecutor, ahead: int
    ) -> None:
        self._slide = slide
        self._plan = plan
        self._encoder = encoder.at(plan.ladder.finest)
        self._batch_size = batch_size
        self._plain: dict[tuple[int, ...], NDArray[np.float16]] = {}
        self._white = self._embedding_of((255, 255, 255))
        self._canvases = self._decoded(pool, ahead)

    def area(self, level: int, cell: Cell) -> Generator[Patch, None, _Area]:
        """Yields the kept patches of an area and below it; returns the area."""
        if not self._plan.needed[level][cell]:
            return self._blank(level)  # beyond the slide; or under no kept patch, and then nobody looks at it
        if level == _BLOCK_LEVEL:
            return (yield from self._block(cell))
        quarters = []
        for quarter in _quarters(cell):
            finished = yield from self.area(level - 1, quarter)
            quarters.append(finished)
        sums, grid = (_join([getattr(q, name) for q in quarters]) for name in ("sums", "grid"))
        area = _Area(_halve(sums), grid)
        if self._plan.kept[level][cell]:
            yield self._patch(level, cell, area.sums, area.grid)
        return area

    def _block(self, cell: Cell) -> Generator[Patch, None, _Area]:
        """The levels that one decoded canvas holds."""
        canvas = next(self._canvases)
        grid = self._embeddings(canvas, self._plan.needed[0][_inside(cell, _BLOCK)])
        sums = canvas.astype(np.uint32)
        for level in range(_BLOCK_LEVEL + 1):
            if level:
                sums = _halve(sums)
            per_side = _BLOCK >> level
            for inner in map(tuple, np.argwhere(self._plan.kept[level][_inside(cell, per_side)])):
                place = cell[0] * per_side + inner[0], cell[1] * per_side + inner[1]
                yield self._patch(level, place, sums[_inside(inner, PATCH_SIZE)], grid[_inside(inner, 2**level)])
        return _Area(sums, grid)

    def _patch(self, level: int, cell: Cell, sums: NDArray[np.uint32], grid: NDArray[np.float16]) -> Patch:
        width, height = (length << level for length in self._plan.unit)
        row, column = map(int, cell)
        image = ((sums + (4**level // 2)) >> (2 * level)).astype(np.uint8)  # the mean, rounded
        embeddings = np.ascontiguousarray(grid.transpose(2, 0, 1))
        return Patch(self._plan.ladder.steps[level], column * width, row * height, width, height, image, embeddings)

    def _embeddings(self, canvas: NDArray[np.uint8], needed: NDArray[np.bool_]) -> NDArray[np.float16]:
        """Embeddings (8, 8, C) of a canvas's 20x patches; those that nothing needs count as white."""
        patches = canvas.reshape(_BLOCK, PATCH_SIZE, _BLOCK, PATCH_SIZE, 3).swapaxes(1, 2)
        grid = np.tile(self._white, (_BLOCK, _BLOCK, 1))
        plain = (patches == patches[:, :, :1, :1]).all((2, 3, 4))  # beyond the edge, and glass that a scanner evened
        for row, column in np.argwhere(needed & plain):
            grid[row, column] = self._embedding_of(tuple(patches[row, column, 0, 0].tolist()))
        places = np.argwhere(needed & ~plain)
        for start in range(0, len(places), self._batch_size):
            rows, columns = places[start : start + self._batch_size].T
            grid[rows, columns] = self._embed(patches[rows, columns])
        return grid

    def _embedding_of(self, colour: tuple[int, ...]) -> NDArray[np.float16]:
        """The embedding (C,) of a patch of one colour, made once."""
        if colour not in self._plain:
            self._plain[colour] = self._embed(np.full((1, PATCH_SIZE, PATCH_SIZE, 3), colour, np.uint8))[0]
        return self._plain[colour]

    def _embed(self, patches: NDArray[np.uint8]) -> NDArray[np.float16]:
        embeddings = self._encoder(patches)
        if not np.abs(embeddings).max() <= np.finfo(np.float16).max:  # NaN is caught as well
            raise ConfigurationError(
                f"an embedding by {self._encoder.name} exceeds what float16 holds, or is no number",
                cure="Use another ssl_encoder",
                path=self._slide.path,
            )
        return embeddings.astype(np.float16)

    def _blank(self, level: int) -> _Area:
        shape = (2**level, 2**level, len(self._white))
        white = np.full((PATCH_SIZE, PATCH_SIZE, 3), 255 * 4**level, np.uint32)
        return _Area(white, np.broadcast_to(self._white, shape))

    def _decoded(self, pool: ThreadPoolExecutor, ahead: int) -> Iterator[NDArray[np.uint8]]:
        """The canvases of the needed blocks in the order of the walk; at most ``ahead`` are in memory."""
        top = len(self._plan.kept) - 1
        cells = [cell for root in np.ndindex(*self._plan.kept[top].shape) for cell in self._blocks(top, root)]
        for start in range(0, len(cells), ahead):
            yield from pool.map(self._decode, cells[start : start + ahead])

    def _blocks(self, level: int, cell: Cell) -> Iterator[Cell]:
        if not self._plan.needed[level][cell]:
            return
        if level == _BLOCK_LEVEL:
            yield cell
            return
        for quarter in _quarters(cell):
            yield from self._blocks(level - 1, quarter)

    def _decode(self, cell: Cell) -> NDArray[np.uint8]:
        width, height = (length * _BLOCK for length in self._plan.unit)
        side = _BLOCK * PATCH_SIZE
        return self._slide.read(cell[1] * width, cell[0] * height, width, height, [(side, side)])[0]


def _quarters(cell: Cell) -> list[Cell]:
    """The cells under a cell, one level finer, row by row."""
    return [(2 * cell[0] + row, 2 * cell[1] + column) for row in (0, 1) for column in (0, 1)]


def _inside(cell: Cell, per_side: int) -> tuple[slice, slice]:
    """What a cell covers in an array that has ``per_side`` entries along each side of a cell."""
    return (
        slice(cell[0] * per_side, (cell[0] + 1) * per_side),
        slice(cell[1] * per_side, (cell[1] + 1) * per_side),
    )


def _join(quarters: list[np.ndarray]) -> np.ndarray:
    """Four ``(h, w, C)`` arrays, row by row, as one of ``(2 h, 2 w, C)``."""
    return np.concatenate([np.concatenate(quarters[:2], axis=1), np.concatenate(quarters[2:], axis=1)])


def _halve(sums: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Sums of 2 x 2 pixels, ``(h, w, C)`` to ``(h / 2, w / 2, C)``."""
    rows = sums[0::2] + sums[1::2]
    return rows[:, 0::2] + rows[:, 1::2]

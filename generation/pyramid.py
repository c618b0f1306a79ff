"""All magnifications of a slide in one pass: each 20x patch is read once and embedded once.

A patch k steps up the ladder covers ``2**k x 2**k`` patches of 20x. The slide is walked as a quadtree: four areas
are joined into the one that contains them as soon as they are done, so that memory holds a few areas a level,
whatever the size of the slide (about 130 MB at 0.15625x with 1280 features; a quarter of it at each step finer).
Pixels are joined as sums of whole numbers (255 * 4**7 fits into 32 bits), so that a coarse image is the exact area
mean of the 20x images under it, rounded once. Where the grid is laid at several places, blocks of 8 x 8 patches stay in
memory and are joined once for each (about 1 MB for 1 mm2 of tissue, with 1280 features).
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from generation.plan import BLOCK, BLOCK_LEVEL, Cell, PlacedGrid, Plan
from zoomfeat.encoders import PatchEncoder
from zoomfeat.errors import ConfigurationError
from zoomfeat.magnification import PATCH_SIZE, Magnification
from zoomfeat.slides import Slide

_AHEAD = 4  # blocks a thread that are decoded while the encoder runs, 12 MB each


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
        for grid in plan.grids:
            for root in np.ndindex(*grid.kept[-1].shape):
                yield from walk.area(grid, len(grid.kept) - 1, root)


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
        self._blocks: dict[Cell, _Area] = {}  # by place on the slide; kept where another grid may ask for them again

    def area(self, grid: PlacedGrid, level: int, cell: Cell) -> Generator[Patch, None, _Area]:
        """Yields the kept patches of an area and below it; returns the area."""
        if not grid.needed[level][cell]:
            return self._blank(level)  # beyond the slide; or under no kept patch, and then nobody looks at it
        if level == BLOCK_LEVEL:
            return (yield from self._block(grid, cell))
        quarters = []
        for quarter in _quarters(cell):
            finished = yield from self.area(grid, level - 1, quarter)
            quarters.append(finished)
        area = _Area(_halve(_join([q.sums for q in quarters])), _join([q.grid for q in quarters]))
        if grid.kept[level][cell]:
            yield self._patch(grid.origin, level, cell, area)
        return area

    def _block(self, grid: PlacedGrid, cell: Cell) -> Generator[Patch, None, _Area]:
        """The levels that one decoded canvas holds."""
        place = _on_slide(grid, cell)
        if place in self._blocks:
            return self._blocks[place]
        canvas = next(self._canvases)
        embeddings = self._embeddings(canvas, self._plan.embedded[_inside(place, BLOCK)])
        sums = canvas.astype(np.uint32)
        for level in range(BLOCK_LEVEL + 1):
            if level:
                sums = _halve(sums)
            per_side = BLOCK >> level
            for inner in map(tuple, np.argwhere(grid.kept[level][_inside(cell, per_side)])):
                at = cell[0] * per_side + inner[0], cell[1] * per_side + inner[1]
                area = _Area(sums[_inside(inner, PATCH_SIZE)], embeddings[_inside(inner, 2**level)])
                yield self._patch(grid.origin, level, at, area)
        area = _Area(sums, embeddings)
        if len(self._plan.grids) > 1:
            self._blocks[place] = area
        return area

    def _patch(self, origin: Cell, level: int, cell: Cell, area: _Area) -> Patch:
        unit = self._plan.unit
        y, x = (int((cell[i] * 2**level - BLOCK * origin[i]) * unit[1 - i]) for i in (0, 1))
        width, height = (length << level for length in unit)
        image = ((area.sums + (4**level // 2)) >> (2 * level)).astype(np.uint8)  # the mean, rounded
        embeddings = np.ascontiguousarray(area.grid.transpose(2, 0, 1))
        return Patch(self._plan.ladder.steps[level], x, y, width, height, image, embeddings)

    def _embeddings(self, canvas: NDArray[np.uint8], needed: NDArray[np.bool_]) -> NDArray[np.float16]:
        """Embeddings (8, 8, C) of a canvas's 20x patches; those that nothing needs count as white.

        ``needed`` has fewer rows or columns than a block at the slide's far edges.
        """
        patches = canvas.reshape(BLOCK, PATCH_SIZE, BLOCK, PATCH_SIZE, 3).swapaxes(1, 2)
        grid = np.tile(self._white, (BLOCK, BLOCK, 1))
        needed = np.pad(needed, [(0, BLOCK - side) for side in needed.shape])
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
        places = list(dict.fromkeys(_on_slide(grid, cell) for grid in self._plan.grids for cell in _block_cells(grid)))
        for start in range(0, len(places), ahead):
            yield from pool.map(self._decode, places[start : start + ahead])

    def _decode(self, cell: Cell) -> NDArray[np.uint8]:
        width, height = (length * BLOCK for length in self._plan.unit)
        side = BLOCK * PATCH_SIZE
        return self._slide.read(cell[1] * width, cell[0] * height, width, height, [(side, side)])[0]


def _block_cells(grid: PlacedGrid) -> Iterator[Cell]:
    """The needed blocks of a grid in the order of the walk."""

    def below(level: int, cell: Cell) -> Iterator[Cell]:
        if not grid.needed[level][cell]:
            return
        if level == BLOCK_LEVEL:
            yield cell
            return
        for quarter in _quarters(cell):
            yield from below(level - 1, quarter)

    for root in np.ndindex(*grid.kept[-1].shape):
        yield from below(len(grid.kept) - 1, root)


def _on_slide(grid: PlacedGrid, cell: Cell) -> Cell:
    """Where a block of a grid lies, counted in blocks from the slide's corner."""
    return cell[0] - grid.origin[0], cell[1] - grid.origin[1]


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

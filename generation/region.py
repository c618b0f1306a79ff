"""Any region of a slide as a condition: the embeddings of all finest patches under it.

`zoomfeat prepare` embeds whole slides on the aligned grid (:mod:`generation.pyramid`); here a region may lie anywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from zoomfeat.encoders import PatchEncoder
from zoomfeat.errors import ConfigurationError, MagnificationError
from zoomfeat.magnification import BRCA, PATCH_SIZE, Ladder, Magnification
from zoomfeat.slides import Slide, patch_size

_BLOCK = 8  # what is decoded at once: 8 x 8 of the finest patches, 2048 px a side


def region_image(
    slide: Slide, x: int, y: int, magnification: Magnification, ladder: Ladder = BRCA
) -> NDArray[np.uint8]:
    """The region itself as a patch, uint8 RGB ``(256, 256, 3)``; arguments and errors as :func:`region_embeddings`."""
    width, height = _region_size(slide, x, y, magnification, ladder.finest)
    return slide.read(x, y, width, height, [(PATCH_SIZE, PATCH_SIZE)])[0]


def region_embeddings(
    slide: Slide,
    x: int,
    y: int,
    magnification: Magnification,
    encoder: PatchEncoder,
    ladder: Ladder = BRCA,
    *,
    batch_size: int = 16,
    on_patches: Callable[[int, int], object] | None = None,
) -> NDArray[np.float32]:
    """Embeddings of the finest patches (20x of histology) under one patch of a coarser magnification.

    Args:
        slide: an open slide.
        x: left edge of the region in level-0 pixels. It may overhang the slide: what lies beyond is white.
        y: top edge.
        magnification: of the region, a step of the ladder with index k.
        encoder: embeds the finest patches; patches of one colour are embedded once.
        ladder: the magnifications of the slide's domain.
        batch_size: patches a call of the encoder.
        on_patches: called with the patches done and their number, after every batch.

    Returns:
        ``(C, 2**k, 2**k)`` float32, rows downwards.

    Raises:
        MagnificationError: the slide's pixels are too coarse for the finest magnification.
        ConfigurationError: the region lies beside the slide.
        SlideUnreadableError: part of it does not decode.
    """
    _region_size(slide, x, y, magnification, ladder.finest)
    finest = encoder.at(ladder.finest)
    side = magnification.grid
    grid = np.empty((finest.dim, side, side), np.float32)
    plain: dict[tuple[int, ...], NDArray[np.float32]] = {}
    done = 0
    for row, column, patches in _blocks(slide, x, y, side, ladder.finest):
        per_side = len(patches)
        block = np.empty((per_side, per_side, finest.dim), np.float32)
        even = (patches == patches[:, :, :1, :1]).all((2, 3, 4))  # beyond the edge, and glass that a scanner evened
        for place in map(tuple, np.argwhere(even)):
            colour = tuple(patches[place][0, 0].tolist())
            if colour not in plain:
                plain[colour] = finest(patches[place][None])[0]
            block[place] = plain[colour]
        done += int(even.sum())
        places = np.argwhere(~even)
        for start in range(0, len(places), batch_size):
            rows, columns = places[start : start + batch_size].T
            block[rows, columns] = finest(patches[rows, columns])
            done += len(rows)
            if on_patches is not None:
                on_patches(done, side**2)
        grid[:, row : row + per_side, column : column + per_side] = block.transpose(2, 0, 1)
    if on_patches is not None:
        on_patches(side**2, side**2)
    return grid


def _blocks(
    slide: Slide, x: int, y: int, side: int, finest: Magnification
) -> Iterator[tuple[int, int, NDArray[np.uint8]]]:
    """Row, column and patches ``(n, n, 256, 256, 3)`` of the parts of a region that are decoded at once."""
    width, height = patch_size(slide, finest)
    n = min(side, _BLOCK)
    for row, column in np.ndindex(side // n, side // n):
        left, top = x + column * n * width, y + row * n * height
        canvas = slide.read(left, top, n * width, n * height, [(n * PATCH_SIZE, n * PATCH_SIZE)])[0]
        yield row * n, column * n, canvas.reshape(n, PATCH_SIZE, n, PATCH_SIZE, 3).swapaxes(1, 2)


def _region_size(slide: Slide, x: int, y: int, magnification: Magnification, finest: Magnification) -> tuple[int, int]:
    """Level-0 pixels of the region along x and y."""
    try:
        unit = patch_size(slide, finest)
    except MagnificationError as error:
        raise MagnificationError(
            f"{error.problem}; a region is known by the embeddings of its {finest} patches",
            cure="Use a finer scan, or give the slide's true um/px as mpp if this one is wrong",
        ) from error
    width, height = (length * magnification.grid for length in unit)
    if x >= slide.width or y >= slide.height or x + width <= 0 or y + height <= 0:
        raise ConfigurationError(
            f"{slide.path}: the region x={x}, y={y} of {width} x {height} px lies beside the slide "
            f"({slide.width} x {slide.height} px)",
            cure="Give x and y, its top-left corner, in level-0 pixels",
        )
    return width, height

"""Where the JPEG tiles of a TIFF or SVS lie in the file, and whether they are of the ordinary kind.

tifffile reads the directories; `zoomfeat.slides.tiles` reads and decodes what they point to.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openslide
import tifffile

from zoomfeat.errors import SlideUnreadableError
from zoomfeat.slides.sources import COPY_CURE

SHRINKS = (4, 2)
"""How many times smaller a JPEG can be decoded; libjpeg does it with a smaller inverse DCT."""

SAMPLES = 3
"""Colours of a pixel."""

START_OF_IMAGE = b"\xff\xd8"
"""The marker that every JPEG begins with."""

_VENDORS = ("aperio", "generic-tiff")  # formats whose tiles lie side by side, in one plane
# The segment by which Adobe tells libjpeg the colour space; its last byte is 0 for RGB, 1 for YCbCr.
_ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"
_TRANSFORMS = {tifffile.PHOTOMETRIC.RGB: b"\x00", tifffile.PHOTOMETRIC.YCBCR: b"\x01"}

OF_TIFFFILE = (
    OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, MemoryError,
    struct.error,
)  # fmt: skip
"""What tifffile raises for damaged files, depending on where the damage lies; the fuzzing of tests/ found these."""


class UnusualError(Exception):
    """Why a file is left to OpenSlide."""


@dataclass(frozen=True, eq=False)
class TiledLevel:
    """One level of the pyramid.

    Attributes:
        width: pixels along x.
        height: pixels along y.
        tile: width and height of a tile in pixels.
        across: tiles along x.
        offsets: where each tile begins in the file, row by row.
        lengths: bytes of each tile; 0 for one that the scanner left out.
        head: what stands before the bytes of each tile to make them a JPEG: its colour space and tables.
    """

    width: int
    height: int
    tile: tuple[int, int]
    across: int
    offsets: np.ndarray
    lengths: np.ndarray
    head: bytes


def tiled_levels(path: Path, slide: openslide.OpenSlide) -> dict[int, TiledLevel]:
    """The levels that can be read tile by tile.

    Raises:
        UnusualError: level 0 is not among them.
        SlideUnreadableError: a tile is said to be longer than the file.
        Exception: of `OF_TIFFFILE`, where tifffile does not make sense of the file.
    """
    vendor = slide.properties[openslide.PROPERTY_NAME_VENDOR]
    if vendor not in _VENDORS:
        raise UnusualError(f"its format is {vendor}")
    if not hasattr(os, "pread"):
        raise UnusualError("this system does not read by position")
    levels = {}
    length = path.stat().st_size
    with tifffile.TiffFile(path) as tiff:
        pages = {(page.imagewidth, page.imagelength): page for page in reversed(list(tiff.pages)) if page.is_tiled}
        for level, dimensions in enumerate(slide.level_dimensions):
            if dimensions in pages and max(pages[dimensions].databytecounts, default=0) > length:
                # OpenSlide would take memory for it, and end the process where there is not so much.
                problem = f"a tile of level {level} is said to be longer than the file"
                raise SlideUnreadableError(problem, cure=COPY_CURE, path=path)
            try:
                layout = _layout(pages[dimensions])
            except UnusualError:
                if level == 0:
                    raise
                break
            complete = layout.lengths.all()
            # Between the pixels of other levels OpenSlide interpolates, since it counts in those of level 0.
            if slide.level_downsamples[level].is_integer() and (complete or level == 0):
                levels[level] = layout
            # Where one lacks a tile, OpenSlide makes the coarser levels there from finer pixels.
            if not complete:
                break
    return levels


def _layout(page: tifffile.TiffPage) -> TiledLevel:
    """Where the tiles of one level lie.

    Raises:
        UnusualError: they are not 8-bit RGB or YCbCr JPEGs of one plane.
    """
    photometric = page.photometric
    usual = {
        "compression": page.compression == tifffile.COMPRESSION.JPEG,
        "colours": photometric in _TRANSFORMS and page.samplesperpixel == SAMPLES,
        "bits": page.bitspersample == 8,
        "planes": page.planarconfig == tifffile.PLANARCONFIG.CONTIG and page.imagedepth == 1,
        "tiles": all(side % max(SHRINKS) == 0 for side in (page.tilewidth, page.tilelength)),
    }
    if not all(usual.values()):
        raise UnusualError(f"its {', '.join(name for name, holds in usual.items() if not holds)} are not the usual")
    across, down = -(-page.imagewidth // page.tilewidth), -(-page.imagelength // page.tilelength)
    offsets, lengths = np.array(page.dataoffsets, np.int64), np.array(page.databytecounts, np.int64)
    if not len(offsets) == len(lengths) == across * down:
        raise UnusualError(f"it lists {len(offsets)} tiles, expected {across * down}")
    tables = (page.jpegtables or b"")[len(START_OF_IMAGE) : -2]  # without the marks of beginning and end
    return TiledLevel(
        page.imagewidth,
        page.imagelength,
        (page.tilewidth, page.tilelength),
        across,
        offsets,
        lengths,
        START_OF_IMAGE + _ADOBE + _TRANSFORMS[photometric] + tables,
    )

"""Large slides for measuring: the texture of a real one, mirrored over and over, in the layout of a scanner's file.

They are SYNTHETIC as slides and say so in their description: the pixels of the scan are taken for finer ones than
they are, and there is no glass but what lies between the pieces. What costs time is as in a scan: size, pyramid, tiles,
the JPEG's own statistics, and how much of a slide is tissue.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import openslide
import tifffile

from zoomfeat.files import replacing

TILE = 256
MARK = "SYNTHETIC: texture of one scan, mirrored"
_STEP = 4  # between two levels of the pyramid
_COLOUR_CODES = {"ycbcr": 3, "rgb": 2}  # of libjpeg


@dataclass(frozen=True)
class JpegLayout:
    """How the tiles of a file are coded.

    Attributes:
        name: what a table calls it.
        aperio: whether the file says that it is an Aperio SVS; otherwise it is a generic tiled TIFF.
        colours: ``"ycbcr"`` or ``"rgb"``, what the three components of the JPEG are.
        subsampling: of chroma along x and y.
        quality: of the JPEG, 1 to 100.
    """

    name: str
    aperio: bool
    colours: str
    subsampling: tuple[int, int]
    quality: int = 70


SVS = JpegLayout("SVS, YCbCr 4:2:2", aperio=True, colours="ycbcr", subsampling=(2, 1))
TIFF_420 = JpegLayout("TIFF, YCbCr 4:2:0", aperio=False, colours="ycbcr", subsampling=(2, 2))
SVS_RGB = JpegLayout("SVS, RGB", aperio=True, colours="rgb", subsampling=(1, 1))


def scan_texture(path: Path) -> np.ndarray:
    """The pixels of a small scan, cropped to whole tiles so that its mirrored copies repeat by tiles.

    Args:
        path: a slide that OpenSlide opens and that fits in memory.

    Returns:
        uint8 RGB (H, W, 3).
    """
    with openslide.OpenSlide(path) as slide:
        width, height = (side // TILE * TILE for side in slide.dimensions)
        return np.ascontiguousarray(np.asarray(slide.read_region((0, 0), 0, (width, height)))[..., :3])


def write_textured_slide(
    path: Path, texture: np.ndarray, side: int, mpp: float, layout: JpegLayout = SVS, levels: int = 3
) -> None:
    """Writes a square pyramid.

    Args:
        path: the file; ``.svs`` for an Aperio layout.
        texture: uint8 RGB (H, W, 3), both sides multiples of 256.
        side: of level 0 in px.
        mpp: um/px that the file claims.
        layout: of its tiles.
        levels: of the pyramid, each 4 times coarser than the one before.
    """
    objective = round(10 / mpp)
    description = f"{MARK}|AppMag = {objective}|MPP = {mpp}"
    if layout.aperio:
        description = f"Aperio Image Library v0\n{side}x{side} [0,0 {side}x{side}] (256x256)|{description}"
    with replacing(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=True) as tiff:
        for level in range(levels):
            pixels = _STEP**level
            across = -(-side // pixels)
            tiff.write(
                _tiles(texture, across, layout),
                shape=(across, across, 3),
                dtype=np.uint8,
                tile=(TILE, TILE),
                compression="jpeg",
                photometric="rgb",
                subsampling=layout.subsampling,
                compressionargs={"outcolorspace": layout.colours},
                jpegtables=_split(_encode(texture[:TILE, :TILE], layout))[0],
                subfiletype=int(level > 0),
                description=description if layout.aperio or level == 0 else None,
                resolution=(1e4 / (mpp * pixels),) * 2,
                resolutionunit="CENTIMETER",
                metadata=None,
            )
            height, width = texture.shape[:2]
            texture = cv2.resize(texture, (width // _STEP, height // _STEP), interpolation=cv2.INTER_AREA)


def _tiles(texture: np.ndarray, side: int, layout: JpegLayout) -> Iterator[bytes]:
    """The compressed tiles of one level, row by row; each that recurs is encoded once."""
    mirrored = np.concatenate([texture, texture[::-1]])
    mirrored = np.concatenate([mirrored, mirrored[:, ::-1]], axis=1)
    height, width = mirrored.shape[:2]
    encoded: dict[tuple[int, int], bytes] = {}
    for top in range(0, side, TILE):
        for left in range(0, side, TILE):
            corner = top % height, left % width
            if corner not in encoded:
                rows, columns = (np.arange(start, start + TILE) for start in corner)
                tile = mirrored[np.ix_(rows % height, columns % width)]
                encoded[corner] = _split(_encode(tile, layout))[1]
            yield encoded[corner]


def _encode(tile: np.ndarray, layout: JpegLayout) -> bytes:
    return bytes(
        imagecodecs.jpeg8_encode(
            np.ascontiguousarray(tile),
            level=layout.quality,
            colorspace=_COLOUR_CODES["rgb"],
            outcolorspace=_COLOUR_CODES[layout.colours],
            subsampling=layout.subsampling,
        )
    )


def _split(jpeg: bytes) -> tuple[bytes, bytes]:
    """A JPEG as scanners store it: the tables that all tiles share, and the tile without them.

    Segments are those of ITU-T T.81, annex B: a marker of two bytes, then its length.
    """
    tables, tile = b"\xff\xd8", b"\xff\xd8"
    at = 2
    while (marker := jpeg[at + 1]) != 0xDA:  # start of scan
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if marker in (0xDB, 0xC4):  # quantisation and Huffman tables
            tables += jpeg[at:end]
        elif not 0xE0 <= marker <= 0xEF:  # not what an application left, such as its colour space
            tile += jpeg[at:end]
        at = end
    return tables + b"\xff\xd9", tile + jpeg[at:]

"""Large slides for measuring: the texture of a real one, mirrored over and over, in the layout of a scanner's file.

They are SYNTHETIC as slides and say so in their description: one small piece of tissue repeats, and its pixels may be
taken for finer ones than they are. What costs time is as in a scan: size, pyramid, tiles, the statistics of the JPEGs,
and a large piece of tissue with glass around it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import tifffile

from zoomfeat.files import replacing
from zoomfeat.slides import Slide, find_tissue
from zoomfeat.slides.synthetic import draw_tissue

SCAN = Path(__file__).parents[3] / "shared" / "data" / "slides" / "CMU-1-Small-Region.svs"
"""A small scan of OpenSlide's test data (CC0), where the checkout has it."""
TEXTURE = (1024, 1536)
"""Width and height of the texture in px."""
MARK = "SYNTHETIC: texture of one scan, mirrored"
_GLASS = (244, 243, 244)
_STEP = 4  # between two levels of the pyramid
_BLOCK = 16  # tiles a side that are tissue or glass as a whole: one tile of the third level
_RADIUS = 0.4
_COLOUR_CODES = {"ycbcr": 3, "rgb": 2}  # of libjpeg


@dataclass(frozen=True)
class JpegLayout:
    """How the tiles of a file are coded.

    Attributes:
        name: what a table calls it.
        aperio: whether the file says that it is an Aperio SVS; otherwise it is a generic tiled TIFF.
        colours: ``"ycbcr"`` or ``"rgb"``, what the three components of the JPEG are.
        subsampling: of chroma along x and y.
        tile: px a side; Aperio's older scanners make 240, its newer ones and most converters 256.
        quality: of the JPEG, 1 to 100.
    """

    name: str
    aperio: bool
    colours: str
    subsampling: tuple[int, int]
    tile: int = 256
    quality: int = 70


SVS = JpegLayout("SVS, YCbCr 4:2:2", aperio=True, colours="ycbcr", subsampling=(2, 1), tile=240)
SVS_256 = JpegLayout("SVS, YCbCr 4:2:2, tiles of 256", aperio=True, colours="ycbcr", subsampling=(2, 1))
TIFF_420 = JpegLayout("TIFF, YCbCr 4:2:0", aperio=False, colours="ycbcr", subsampling=(2, 2))
SVS_RGB = JpegLayout("SVS, RGB", aperio=True, colours="rgb", subsampling=(1, 1), tile=240, quality=30)


def scan_texture(path: Path) -> np.ndarray:
    """The part of a small scan that holds most tissue.

    Args:
        path: a slide.

    Returns:
        uint8 RGB, as large as ``TEXTURE``.
    """
    width, height = TEXTURE
    with Slide.open(path) as slide:
        mask = find_tissue(slide)
        y, x = np.mgrid[0 : slide.height - height : 64, 0 : slide.width - width : 64].reshape(2, -1)
        best = mask.fraction(x, y, width, height).argmax()
        return slide.read(int(x[best]), int(y[best]), width, height, [TEXTURE])[0]


def usual_texture(scan: Path | None = None) -> tuple[np.ndarray, str]:
    """A texture, and what it is of: the scan, else `SCAN`, else drawn tissue, whose JPEGs are smaller than a scan's.

    Args:
        scan: a small H&E slide at about 0.5 um/px.
    """
    if scan is None and not SCAN.is_file():
        return draw_tissue(TEXTURE, 0.5, seed=0), "drawn tissue"
    scan = scan or SCAN
    return scan_texture(scan), scan.name


def write_textured_slide(
    path: Path,
    texture: np.ndarray,
    side: int,
    mpp: float,
    layout: JpegLayout = SVS,
    levels: int = 3,
    radius: float = _RADIUS,
) -> None:
    """Writes a square pyramid.

    Args:
        path: the file; ``.svs`` for an Aperio layout.
        texture: uint8 RGB (H, W, 3); cropped to whole tiles, so that its mirrored copies repeat by tiles.
        side: of level 0 in px.
        mpp: um/px that the file claims.
        layout: of its tiles.
        levels: of the pyramid, each 4 times coarser than the one before.
        radius: of the tissue, in sides of the slide.
    """
    objective = round(10 / mpp)
    rows, columns = (length // layout.tile * layout.tile for length in texture.shape[:2])
    texture = texture[:rows, :columns]
    description = f"{MARK}|AppMag = {objective}|MPP = {mpp}"
    if layout.aperio:
        description = f"Aperio Image Library v0\n{side}x{side} ({layout.tile}x{layout.tile})|{description}"
    with replacing(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=True) as tiff:
        for level in range(levels):
            pixels = _STEP**level
            across = -(-side // pixels)
            tiff.write(
                _tiles(texture, level, side, layout, radius),
                shape=(across, across, 3),
                dtype=np.uint8,
                tile=(layout.tile, layout.tile),
                compression="jpeg",
                photometric="rgb",
                subsampling=layout.subsampling,
                compressionargs={"outcolorspace": layout.colours},
                jpegtables=_split(_encode(texture[: layout.tile, : layout.tile], layout))[0],
                subfiletype=int(level > 0),
                description=description if layout.aperio or level == 0 else None,
                resolution=(1e4 / (mpp * pixels),) * 2,
                resolutionunit="CENTIMETER",
                metadata=None,
            )
            height, width = texture.shape[:2]
            texture = cv2.resize(texture, (width // _STEP, height // _STEP), interpolation=cv2.INTER_AREA)


def _tiles(texture: np.ndarray, level: int, side: int, layout: JpegLayout, radius: float) -> Iterator[bytes]:
    """The compressed tiles of one level, row by row; each that recurs is encoded once."""
    mirrored = np.concatenate([texture, texture[::-1]])
    mirrored = np.concatenate([mirrored, mirrored[:, ::-1]], axis=1)
    height, width = mirrored.shape[:2]
    glass = _split(_encode(np.full((layout.tile, layout.tile, 3), _GLASS, np.uint8), layout))[1]
    encoded: dict[tuple[int, int], bytes] = {}
    across = -(-side // _STEP**level)
    for top in range(0, across, layout.tile):
        for left in range(0, across, layout.tile):
            if not _is_tissue(left * _STEP**level, top * _STEP**level, side, _BLOCK * layout.tile, radius):
                yield glass
                continue
            corner = top % height, left % width
            if corner not in encoded:
                rows, columns = (np.arange(start, start + layout.tile) for start in corner)
                tile = mirrored[np.ix_(rows % height, columns % width)]
                encoded[corner] = _split(_encode(tile, layout))[1]
            yield encoded[corner]


def _is_tissue(x: int, y: int, side: int, block: int, radius: float) -> bool:
    """Whether the block around a level-0 position lies in the disc of tissue."""
    starts = (place // block * block for place in (x, y))
    centre = ((start + min(start + block, side)) / 2 - side / 2 for start in starts)
    return math.hypot(*centre) < radius * side


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

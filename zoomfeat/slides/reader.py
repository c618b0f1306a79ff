"""Open a slide and read boxes of it at any size.

Pixels come from what opens the file (`zoomfeat.slides.sources`): OpenSlide, Pillow where it is a plain image, or GDAL
for images on the map; or straight from the JPEG tiles of a TIFF or SVS where that gives the same ones
(`zoomfeat.slides.tiles`). Coordinates are level-0 pixels of the file throughout; OpenSlide's ``bounds`` properties
are not used, so positions mean the same in any viewer.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import openslide

from zoomfeat.errors import ConfigurationError, MagnificationError, SlideUnreadableError
from zoomfeat.georeference import Georeference
from zoomfeat.slides.resample import area_resize, resize_into
from zoomfeat.slides.sources import COPY_CURE, READERS, check_sizes, on_white, one_line
from zoomfeat.slides.tile_layout import SHRINKS
from zoomfeat.slides.tiles import JpegTiles

DECODERS = ("exact", "dct", "openslide")
"""How JPEG tiles are decoded: in the fastest way that is exact, shrunk within the JPEG, or by OpenSlide alone."""

FINEST_PLAUSIBLE_MPP = 0.02
"""No scanner resolves less; a smaller value is a unit mixed up (mm, or pixels per micron)."""

LONGEST_THUMBNAIL = 8192
"""Longest side of a thumbnail in pixels."""

_LONGEST_DECODE = 3072  # px a side decoded at once: a larger box is read in parts, so that memory stays bounded
_LEVEL_TOLERANCE = 1.01  # a level of downsample 4.0003 serves a ratio of 4
_ALIGNED = 1e-6  # edges this close to a whole pixel lie on it
_MPP_CURE = "Give it as an mpp column of a manifest, or for slides without one as mpp=0.25"


@dataclass(frozen=True, eq=False)
class Slide:
    """An open slide; a context manager. Several threads may read from one slide at the same time.

    Attributes:
        path: the file.
        mpp: um/px at level 0 along x and y.
        mpp_source: where ``mpp`` is from: ``"manifest"``, ``"metadata"`` or ``"configuration"``.
        metadata_mpp: what the file itself says, or None.
        reader: library and version that decode it, for example ``"openslide 4.0.1"``, and how if not exactly.
        vendor: the format, for example ``"aperio"``, or ``"png"`` for a plain image.
        source: the OpenSlide object behind it.
        georeference: where it lies on the map, of images that do.
        tiles: its JPEG tiles, where they are read without OpenSlide.
        shrinks: how many times smaller tiles may be decoded, largest first.
    """

    path: Path
    mpp: tuple[float, float]
    mpp_source: str
    metadata_mpp: tuple[float, float] | None
    reader: str
    vendor: str
    source: openslide.AbstractSlide = field(repr=False)
    georeference: Georeference | None = None
    tiles: JpegTiles | None = field(default=None, repr=False)
    shrinks: tuple[int, ...] = ()

    @classmethod
    def open(
        cls,
        path: str | Path,
        mpp: tuple[float, float] | float | None = None,
        default_mpp: float | None = None,
        reader: str = "openslide",
        decode: str = "exact",
    ) -> Self:
        """Open a slide, or any file of a DICOM series, and settle how large its pixels are.

        Args:
            path: the file.
            mpp: um/px of this very slide, one number or (x, y); wins over what the file says.
            default_mpp: um/px for slides whose file does not say.
            reader: what opens it, of `READERS`; a domain says which (`zoomfeat.domains`).
            decode: ``"exact"``; ``"dct"`` to decode JPEG tiles at a half or a quarter of their size where no more
                pixels are needed, which is faster and changes them a little; ``"openslide"`` to read through
                OpenSlide alone, which gives the same pixels as ``"exact"``, more slowly.

        Raises:
            ConfigurationError: no such reader, or one whose package is not installed; another word for ``decode``.
            SlideUnreadableError: the file is missing, damaged, or of a kind that the reader does not know.
            MagnificationError: nobody says how large the pixels are, or the number is implausible.
        """
        path = Path(path)
        if reader not in READERS:
            raise ConfigurationError(f"no reader {reader!r}", cure=f"Use one of {', '.join(READERS)}")
        if decode not in DECODERS:
            raise ConfigurationError(f"decode={decode!r}", cure=f"Use one of {', '.join(DECODERS)}")
        if not _is_file(path):
            raise SlideUnreadableError("no such file", cure="Check the path", path=path)
        source, library, vendor = READERS[reader](path)
        try:
            check_sizes(source, path)
            metadata_mpp = _metadata_mpp(source)
            unknown = getattr(source, "unlocated", None) or ("the file does not say how many um a pixel is", _MPP_CURE)
            resolved, mpp_source = _resolve_mpp(path, mpp, metadata_mpp, default_mpp, unknown)
        except (MagnificationError, SlideUnreadableError):
            source.close()
            raise
        where = getattr(source, "georeference", None)
        tiles = None
        if decode != "openslide" and isinstance(source, openslide.OpenSlide):
            try:
                tiles = JpegTiles.open(path, source)
            except SlideUnreadableError:
                source.close()
                raise
        shrinks = SHRINKS if tiles is not None and decode == "dct" else ()
        if tiles is not None:
            library = f"{tiles.reader}{' at 1/2 and 1/4 size' if shrinks else ''}, checked against {library}"
        return cls(path, resolved, mpp_source, metadata_mpp, library, vendor, source, where, tiles, shrinks)

    @property
    def width(self) -> int:
        """Level-0 pixels along x."""
        return self.source.dimensions[0]

    @property
    def height(self) -> int:
        """Level-0 pixels along y."""
        return self.source.dimensions[1]

    def read(self, x: int, y: int, width: int, height: int, sizes: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        """One box at several sizes, decoded once.

        The pixels come from the coarsest pyramid level that is no coarser than the largest size needs, and
        each size is an exact area mean of them. What lies beyond the slide, and what is transparent, is white.
        A size larger than the box is interpolated linearly.

        Args:
            x: left edge in level-0 pixels; may be outside the slide, as may every edge.
            y: top edge.
            width: level-0 pixels.
            height: level-0 pixels.
            sizes: (width, height) of each result in pixels.

        Returns:
            uint8 RGB arrays of shape (height, width, 3), one for each of ``sizes``.

        Raises:
            SlideUnreadableError: part of the box does not decode.
        """
        ratio = (width / max(w for w, _ in sizes), height / max(h for _, h in sizes))
        level = self._level_for(*ratio)
        shrink = self._shrink_for(level, *ratio)
        per_pixel = self._pixel_size(level, shrink)
        columns = _parts(width / per_pixel[0], [w for w, _ in sizes])
        rows = _parts(height / per_pixel[1], [h for _, h in sizes])
        inside = x >= 0 and y >= 0 and x + width <= self.width and y + height <= self.height
        results = [np.empty((h, w, 3), np.uint8) for w, h in sizes]
        for result in () if inside else results:
            result[:] = 255
        for top, bottom in rows:
            for left, right in columns:
                box = (x + left * width, y + top * height, x + right * width, y + bottom * height)
                if box[0] >= self.width or box[1] >= self.height or box[2] <= 0 or box[3] <= 0:
                    continue
                areas = [
                    result[
                        round(top * result.shape[0]) : round(bottom * result.shape[0]),
                        round(left * result.shape[1]) : round(right * result.shape[1]),
                    ]
                    for result in results
                ]
                self._read_part(level, shrink, box, areas)
        return results

    def thumbnail(self, mpp: float) -> np.ndarray:
        """The whole slide at about this um/px, never finer than level 0 or larger than 8192 px a side.

        Returns:
            uint8 RGB of shape (H, W, 3).

        Raises:
            SlideUnreadableError: part of the slide does not decode.
        """
        width, height = self.width * self.mpp[0] / mpp, self.height * self.mpp[1] / mpp
        shrink = min(1.0, LONGEST_THUMBNAIL / max(width, height))
        size = (
            min(self.width, max(1, round(width * shrink))),
            min(self.height, max(1, round(height * shrink))),
        )
        return self.read(0, 0, self.width, self.height, [size])[0]

    def close(self) -> None:
        """Let go of the file."""
        self.source.close()
        if self.tiles is not None:
            self.tiles.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @cached_property
    def _downsamples(self) -> list[tuple[float, float]]:
        """Level-0 pixels per pixel of each level along x and y; OpenSlide itself gives only their mean."""
        return [(self.width / width, self.height / height) for width, height in self.source.level_dimensions]

    def _level_for(self, *ratio: float) -> int:
        """The coarsest level no coarser than ``ratio`` level-0 pixels per pixel (x, y), but for a hundredth."""
        fitting = [
            level
            for level, downsample in enumerate(self._downsamples)
            if all(have <= want * _LEVEL_TOLERANCE for have, want in zip(downsample, ratio, strict=True))
        ]
        return max(fitting, default=0)

    def _shrink_for(self, level: int, *ratio: float) -> int:
        """How many times smaller to decode the tiles of a level, so that ``ratio`` level-0 pixels are still a pixel."""
        if self.tiles is None or level not in self.tiles.levels:
            return 1
        for shrink in self.shrinks:
            have = self._pixel_size(level, shrink)
            if all(each <= want * _LEVEL_TOLERANCE for each, want in zip(have, ratio, strict=True)):
                return shrink
        return 1

    def _pixel_size(self, level: int, shrink: int) -> tuple[float, float]:
        """Level-0 pixels per pixel of a level whose tiles are shrunk, along x and y."""
        x, y = self._downsamples[level]
        return x * shrink, y * shrink

    def _read_part(
        self, level: int, shrink: int, box: tuple[float, float, float, float], areas: list[np.ndarray]
    ) -> None:
        """Fill each of ``areas``, uint8 (h, w, 3), with ``box``: left, top, right, bottom in level-0 pixels."""
        per_pixel = self._pixel_size(level, shrink) * 2
        edges = [edge / each for edge, each in zip(box, per_pixel, strict=True)]
        if self.tiles is not None and level in self.tiles.levels:
            corner = (math.floor(edges[0] + _ALIGNED), math.floor(edges[1] + _ALIGNED))
            origin = [float(position) for position in corner] * 2
        else:
            # OpenSlide takes whole level-0 positions and divides them by one downsample for both axes; between two
            # pixels of the level it interpolates. So ask for a position, and work out where that really is.
            divisor = self.source.level_downsamples[level]
            corner = (
                math.floor(math.floor(edges[0] + _ALIGNED) * divisor),
                math.floor(math.floor(edges[1] + _ALIGNED) * divisor),
            )
            origin = [position / divisor for position in corner] * 2
        left, top, right, bottom = (edge - start for edge, start in zip(edges, origin, strict=True))
        size = (math.ceil(right - _ALIGNED), math.ceil(bottom - _ALIGNED))
        aligned = all(abs(edge - round(edge)) <= _ALIGNED for edge in (left, top, right, bottom))
        if self.tiles is not None and level in self.tiles.levels:
            if aligned and self.tiles.read_means(level, corner, size, areas, shrink):
                return
            as_it_is = (area for area in areas if aligned and area.shape == (size[1], size[0], 3))
            canvas = self.tiles.read(level, corner, size, shrink, out=next(as_it_is, None))
        else:
            canvas = self._decode(corner, level, size)
        if aligned:
            canvas = canvas[round(top) : round(bottom), round(left) : round(right)]
            for area in areas:
                if area.ctypes.data != canvas.ctypes.data:
                    resize_into(canvas, area)
        else:
            for area in areas:
                area[:] = area_resize(canvas, (left, top, right, bottom), (area.shape[1], area.shape[0]))

    def _decode(self, corner: tuple[int, int], level: int, size: tuple[int, int]) -> np.ndarray:
        """Pixels of one level as OpenSlide gives them, uint8 RGB on white, from a corner given in level-0 pixels."""
        try:
            pixels = self.source.read_region(corner, level, size)
        except (openslide.OpenSlideError, OSError) as error:
            region = f"x={corner[0]}, y={corner[1]}, {size[0]}x{size[1]} px of level {level}"
            raise SlideUnreadableError(
                f"the region {region} does not decode ({one_line(error)})", cure=COPY_CURE, path=self.path
            ) from error
        return on_white(pixels)


def _parts(length: float, sizes: Sequence[int]) -> list[tuple[float, float]]:
    """Cut an axis where every size has a whole pixel: (start, end) as shares of it, each short enough to decode.

    Args:
        length: level pixels along the axis.
        sizes: pixels along it of each result.
    """
    cells = math.gcd(*sizes)
    count = min(cells, math.ceil(length / _LONGEST_DECODE))
    cuts = [part * cells // count / cells for part in range(count + 1)]
    return list(itertools.pairwise(cuts))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name longer than the file system takes, or a folder that may not be entered
        return False


def _metadata_mpp(source: openslide.AbstractSlide) -> tuple[float, float] | None:
    """The um/px that the file states, if it states both as positive numbers."""
    names = (openslide.PROPERTY_NAME_MPP_X, openslide.PROPERTY_NAME_MPP_Y)
    try:
        x, y = (float(source.properties[name]) for name in names)
    except (KeyError, ValueError):
        return None
    return (x, y) if 0 < x < math.inf and 0 < y < math.inf else None


def _resolve_mpp(
    path: Path,
    given: tuple[float, float] | float | None,
    metadata: tuple[float, float] | None,
    default: float | None,
    unknown: tuple[str, str],
) -> tuple[tuple[float, float], str]:
    """The um/px to believe, and whose word it is."""
    for value, source in ((given, "manifest"), (metadata, "metadata"), (default, "configuration")):
        if value is None:
            continue
        x, y = value if isinstance(value, tuple) else (value, value)
        if not (FINEST_PLAUSIBLE_MPP <= x < math.inf and FINEST_PLAUSIBLE_MPP <= y < math.inf):
            raise MagnificationError(
                f"{x:g} x {y:g} um/px (from the {source}) is implausible; slides have {FINEST_PLAUSIBLE_MPP} or more",
                cure=_MPP_CURE,
                path=path,
            )
        return (float(x), float(y)), source
    raise MagnificationError(unknown[0], cure=unknown[1], path=path)

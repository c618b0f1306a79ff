"""The JPEG tiles of a TIFF or SVS, straight from the file: what OpenSlide decodes, several times faster.

tifffile says where each tile lies (`zoomfeat.slides.tile_layout`), a read by position brings its bytes, and
libjpeg-turbo, the library that OpenSlide uses as well, decodes them with the same settings: so the pixels are the same,
and that is checked on some tiles of every slide. Whatever is out of the ordinary is left to OpenSlide.
"""

from __future__ import annotations

import logging
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openslide
import simplejpeg

from zoomfeat.errors import SlideUnreadableError
from zoomfeat.slides.resample import halve_into, resize_into
from zoomfeat.slides.sources import COPY_CURE
from zoomfeat.slides.tile_layout import OF_TIFFFILE, SAMPLES, START_OF_IMAGE, TiledLevel, UnusualError, tiled_levels

_CHECKED_TILES = 4  # of level 0; one of each other level
_CACHED_BYTES = 64 * 2**20

_log = logging.getLogger(__name__)


class JpegTiles:
    """The tiles of an open slide. Several threads may read at the same time.

    Attributes:
        path: the file.
        levels: by number of the level; those that are missing are OpenSlide's to read.
    """

    def __init__(self, path: Path, levels: dict[int, TiledLevel]) -> None:
        self.path = path
        self.levels = levels
        self._file = path.open("rb", buffering=0)
        self._cut_tiles = _CutTiles()
        self._scratch = threading.local()

    @classmethod
    def open(cls, path: Path, slide: openslide.OpenSlide) -> JpegTiles | None:
        """The tiles of a slide, after some of them were compared with what OpenSlide makes of them.

        Args:
            path: the file.
            slide: the same, open.

        Returns:
            None where the file is not made of ordinary JPEG tiles, or a single pixel differs.

        Raises:
            SlideUnreadableError: a tile is said to be longer than the file, or OpenSlide does not decode one, and
                thereafter reads nothing of the file at all.
        """
        try:
            tiles = cls(path, tiled_levels(path, slide))
        except (UnusualError, *OF_TIFFFILE) as reason:
            _log.debug("%s is left to OpenSlide: %s", path, reason)
            return None
        try:
            tiles._check(slide)
        except UnusualError as reason:
            _log.debug("%s is left to OpenSlide: %s", path, reason)
            tiles.close()
            return None
        except openslide.OpenSlideError as error:
            tiles.close()
            problem = f"OpenSlide does not decode a tile of it ({' '.join(str(error).split())})"
            raise SlideUnreadableError(problem, cure=COPY_CURE, path=path) from error
        return tiles

    @property
    def reader(self) -> str:
        """Library and version."""
        return f"simplejpeg {simplejpeg.__version__}"

    def read(
        self,
        level: int,
        corner: tuple[int, int],
        size: tuple[int, int],
        shrink: int = 1,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """A box of one level; white where it lies beyond the level or where a tile is missing.

        Args:
            level: one of ``levels``.
            corner: left and top in pixels, of the level shrunk so many times; may be outside.
            size: width and height in the same pixels.
            shrink: 1, or one of ``SHRINKS`` to decode every tile that many times smaller.
            out: where to write, uint8 (height, width, 3).

        Returns:
            ``out``, or where it is None an array of that kind, good until the same thread reads from this slide again.

        Raises:
            SlideUnreadableError: a tile does not decode, or lies beyond the end of the file.
        """
        width, height = size
        canvas = self._memory("canvas", (height, width, SAMPLES)) if out is None else out
        if not self._covers(level, corner, size, shrink):
            canvas[:] = 255
        for row, column, pixels in self._pieces(level, corner, size, shrink):
            canvas[row.start : row.stop, column.start : column.stop] = 255 if pixels is None else pixels
        return canvas

    def read_means(
        self, level: int, corner: tuple[int, int], size: tuple[int, int], outs: Sequence[np.ndarray], shrink: int = 1
    ) -> bool:
        """A box of one level at several sizes, each tile averaged as soon as it is decoded; the box is never whole.

        It is an exact area mean, as of `read` it would be, where a whole number of pixels goes into each of the
        results and none of those lies in two tiles. Of shrunk tiles, whose pixels are not exact either, only the finest
        result is made so; the others are made from it in steps (`zoomfeat.slides.resample.halve_into`).

        Args:
            level: one of ``levels``.
            corner: left and top in pixels, of the level shrunk so many times.
            size: width and height in the same pixels.
            outs: where to write, each uint8 (h, w, 3).
            shrink: as in `read`.

        Returns:
            False where it is not so, and nothing was written.

        Raises:
            SlideUnreadableError: a tile does not decode, or lies beyond the end of the file.
        """
        finest = max(outs, key=lambda out: out.size)
        direct = outs if shrink == 1 else [finest]
        factors = [(size[0] // out.shape[1], size[1] // out.shape[0]) for out in direct]
        tile = [side // shrink for side in self.levels[level].tile]
        whole = all(
            side == factor * count and place % factor == 0 and step % factor == 0
            for out, factors_of_out in zip(direct, factors, strict=True)
            for side, factor, count, place, step in zip(
                size, factors_of_out, (out.shape[1], out.shape[0]), corner, tile, strict=True
            )
        )
        if not whole or not self._covers(level, corner, size, shrink):
            return False
        for row, column, pixels in self._pieces(level, corner, size, shrink):
            for out, (across, down) in zip(direct, factors, strict=True):
                part = out[row.start // down : row.stop // down, column.start // across : column.stop // across]
                if pixels is None:
                    part[:] = 255
                else:
                    resize_into(pixels, part)
        if shrink > 1:
            for out in outs:
                if out is not finest:
                    halve_into(finest, out)
        return True

    def _covers(self, level: int, corner: tuple[int, int], size: tuple[int, int], shrink: int) -> bool:
        """Whether a box lies within the level."""
        layout = self.levels[level]
        sides = (layout.width // shrink, layout.height // shrink)
        return all(
            start >= 0 and start + length <= side for start, length, side in zip(corner, size, sides, strict=True)
        )

    def _pieces(
        self, level: int, corner: tuple[int, int], size: tuple[int, int], shrink: int
    ) -> Iterator[tuple[_Cut, _Cut, np.ndarray | None]]:
        """What the tiles hold of a box: where in the box, and the pixels, None for a missing tile.

        Pixels are good until the next piece.
        """
        layout = self.levels[level]
        columns, rows = (
            _cuts(start, length, step // shrink, side // shrink)
            for start, length, step, side in zip(corner, size, layout.tile, (layout.width, layout.height), strict=True)
        )
        for row in rows:
            for column in columns:
                # Regions come row by row: a tile that goes on to the right or below is asked for again.
                tile = self._tile(level, column.tile, row.tile, shrink, keep=row.goes_on or column.goes_on)
                yield row, column, None if tile is None else tile[row.of_tile, column.of_tile]

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _memory(self, name: str, shape: tuple[int, int, int]) -> np.ndarray:
        """Bytes that this thread uses again and again: fresh ones cost more, page by page, than filling them."""
        size = math.prod(shape)
        memory: np.ndarray | None = getattr(self._scratch, name, None)
        if memory is None or memory.size < size:
            memory = np.empty(size, np.uint8)
            setattr(self._scratch, name, memory)
        return memory[:size].reshape(shape)

    def _tile(self, level: int, column: int, row: int, shrink: int, *, keep: bool) -> np.ndarray | None:
        """The pixels of a tile, uint8 RGB, good until this thread asks for another; None for a missing one."""
        layout = self.levels[level]
        index = row * layout.across + column
        length = int(layout.lengths[index])
        if length == 0:
            return None
        key = (level, shrink, index)
        pixels = self._cut_tiles.take(key)
        if pixels is None:
            data = os.pread(self._file.fileno(), length, int(layout.offsets[index]))
            if len(data) < length:
                raise self._unreadable(level, column, row, f"the file ends {length - len(data)} bytes before it does")
            if not data.startswith(START_OF_IMAGE):
                raise self._unreadable(level, column, row, f"it starts with {data[:2].hex(' ')}, a JPEG with ff d8")
            width, height = (side // shrink for side in layout.tile)
            shape = (height, width, SAMPLES)
            jpeg = b"".join((layout.head, memoryview(data)[_end_of_applications(data) :]))
            try:
                pixels = simplejpeg.decode_jpeg(
                    jpeg,
                    min_width=width if shrink > 1 else 0,
                    min_height=height if shrink > 1 else 0,
                    buffer=np.empty(shape, np.uint8) if keep else self._memory("tile", shape),
                )
            except ValueError as error:
                raise self._unreadable(level, column, row, str(error)) from error
            if pixels.shape != shape:
                found = f"its JPEG is {pixels.shape[1]}x{pixels.shape[0]} px, expected {width}x{height}"
                raise self._unreadable(level, column, row, found)
        if keep:
            self._cut_tiles.put(key, pixels)
        return pixels

    def _unreadable(self, level: int, column: int, row: int, problem: str) -> SlideUnreadableError:
        layout = self.levels[level]
        x, y = column * layout.tile[0], row * layout.tile[1]
        return SlideUnreadableError(
            f"the tile in column {column}, row {row} of level {level} (from x={x}, y={y} of that level) "
            f"does not decode ({problem})",
            cure=COPY_CURE,
            path=self.path,
        )

    def _check(self, slide: openslide.OpenSlide) -> None:
        """Compares random tiles with OpenSlide's; those of many bytes, which hold tissue rather than glass.

        A tile that does not decode is no reason to leave the file to OpenSlide, which notices fewer kinds of damage,
        unless it is so with every one: then it is the way this file was written.

        Raises:
            UnusualError: a pixel differs, or no tile decodes.
            openslide.OpenSlideError: OpenSlide does not decode one that decodes here.
        """
        random = np.random.default_rng(0)
        equal, damaged = 0, 0
        for level, layout in self.levels.items():
            full = np.flatnonzero(layout.lengths >= max(1, np.median(layout.lengths)))
            for index in random.permutation(full)[: 1 if level else _CHECKED_TILES]:
                row, column = divmod(int(index), layout.across)
                x, y = column * layout.tile[0], row * layout.tile[1]
                size = (min(layout.tile[0], layout.width - x), min(layout.tile[1], layout.height - y))
                try:
                    found = self.read(level, (x, y), size)
                except SlideUnreadableError:
                    damaged += 1
                    continue
                scale = round(slide.level_downsamples[level])
                expected = np.asarray(slide.read_region((x * scale, y * scale), level, size))
                if (expected[..., 3] != 255).any() or not np.array_equal(found, expected[..., :3]):
                    raise UnusualError(f"the tile in column {column}, row {row} of level {level} differs")
                equal += 1
        if damaged and not equal:
            raise UnusualError(f"none of {damaged} tiles decodes")


@dataclass(frozen=True, slots=True)
class _Cut:
    """What a row or a column of tiles holds of a box along one axis.

    Attributes:
        tile: number of the row or column.
        of_tile: its pixels.
        start: the first of them in the box.
        stop: where they end in the box.
        goes_on: whether the level has more of it behind the box.
    """

    tile: int
    of_tile: slice
    start: int
    stop: int
    goes_on: bool


def _cuts(start: int, length: int, step: int, side: int) -> list[_Cut]:
    """Along one axis, the tiles of a box that begins at ``start``, of ``step`` px each, of a level of ``side`` px."""
    stop = min(start + length, side)
    cuts = []
    for number in range(max(start, 0) // step, -(-stop // step)):
        begin = number * step
        first, last = max(start, begin), min(stop, begin + step)
        goes_on = min(begin + step, side) > stop
        cuts.append(_Cut(number, slice(first - begin, last - begin), first - start, last - start, goes_on))
    return cuts


class _CutTiles:
    """Tiles that lie only partly in the box they were decoded for, until a neighbouring box takes them."""

    def __init__(self) -> None:
        self._tiles: OrderedDict[tuple[int, int, int], np.ndarray] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def take(self, key: tuple[int, int, int]) -> np.ndarray | None:
        with self._lock:
            pixels = self._tiles.pop(key, None)
            if pixels is not None:
                self._bytes -= pixels.nbytes
            return pixels

    def put(self, key: tuple[int, int, int], pixels: np.ndarray) -> None:
        with self._lock:
            if key not in self._tiles:
                self._tiles[key] = pixels
                self._bytes += pixels.nbytes
            while self._bytes > _CACHED_BYTES:
                self._bytes -= self._tiles.popitem(last=False)[1].nbytes


def _end_of_applications(jpeg: bytes) -> int:
    """Bytes of a JPEG's start and its segments of applications: the TIFF's word on colours holds, not theirs.

    Segments are those of ITU-T T.81, annex B: a marker of two bytes, then a length.
    """
    at = len(START_OF_IMAGE)
    while b"\xff\xe0" <= jpeg[at : at + 2] <= b"\xff\xef":
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return at

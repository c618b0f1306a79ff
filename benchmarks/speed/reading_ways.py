"""The rows of a slide that the reading benchmark reads, and the ways in which it does.

All ways read the same plan, that of ``zoomfeat extract``. The other libraries read as their users do, each patch by
itself and 5x from the level that is made for it; zoomfeat reads each 5x patch's region once, at level 0, for both.
OpenSlide's patches are resized by Pillow, and in a way of its own by OpenCV, which is faster. The limit is what the
JPEG decoder takes for the tiles that the regions need, each decoded once and nothing done with its pixels.

zoomfeat keeps a tile that goes on below its region until the row of regions below takes it. For rows in the middle to
stand for a slide, it reads the row above them before the clock runs, and several rows, so that they are about a whole
number of tiles high; the limit leaves out the tiles that came with the row above. OpenSlide's cache forgets a row
before the next one comes, so it reads fewer rows, and rates are compared.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openslide
import simplejpeg
from PIL import Image

from zoomfeat.magnification import PATCH_SIZE, parse
from zoomfeat.slides import Grid, Region, Slide, find_tissue, make_grid, read_region, regions
from zoomfeat.slides.tile_layout import TiledLevel

PER_PATCH = "OpenSlide, patch by patch"
PER_PATCH_CV2 = "the same, resized by OpenCV"
PER_REGION = "OpenSlide, region by region"
EXACT, DCT = "zoomfeat, exact", "zoomfeat, DCT"
LIMIT, HALF_LIMIT = "limit: decoding alone", "limit: decoding at half size"
STEADY_PX = 4096
"""Height of the rows that zoomfeat reads: two of regions at 0.25 um/px, and 17.07 of tiles of 240 px, 16 of 256."""


@dataclass(frozen=True)
class Rows:
    """Rows of regions in the middle of a slide.

    Attributes:
        plan: their regions.
        above: those of the row above them.
    """

    plan: list[Region]
    above: list[Region]

    @property
    def patches(self) -> int:
        """Patches of the finest scale in them."""
        return sum(len(region.parts[0].rows) for region in self.plan)


def read_plan(path: Path) -> tuple[list[Region], Grid]:
    """The regions of a slide that `zoomfeat extract` reads at 20x and 5x, and the grid they are of."""
    with Slide.open(path) as slide:
        grid = make_grid(slide, find_tissue(slide), parse(["20x", "5x"]))
    return regions(grid), grid


def steady(plan: list[Region], height: int = STEADY_PX) -> Rows:
    """Rows in the middle, at least so many level-0 pixels high where there are so many, and the one above them."""
    rows = sorted({region.y for region in plan})
    count = -(-height // plan[0].height)
    first = max(0, (len(rows) - count) // 2)
    chosen, above = rows[first : first + count], rows[max(first - 1, 0) : first]
    return Rows([region for region in plan if region.y in chosen], [region for region in plan if region.y in above])


def middle(plan: list[Region], grid: Grid, patches: int) -> tuple[list[Region], Grid]:
    """Rows of regions in the middle of a slide that hold at least so many of the finest patches, and their grid."""
    rows = sorted({region.y for region in plan}, key=lambda y: abs(y - grid.scales[0].coords[:, 1].mean()))
    chosen: list[Region] = []
    while rows and sum(len(region.parts[0].rows) for region in chosen) < patches:
        row = rows.pop(0)
        chosen += [region for region in plan if region.y == row]
    kept = [
        np.sort(np.concatenate([region.parts[scale].rows for region in chosen])) for scale in range(len(grid.scales))
    ]
    scales = tuple(
        replace(scale, coords=scale.coords[rows], tissue=scale.tissue[rows])
        for scale, rows in zip(grid.scales, kept, strict=True)
    )
    return sorted(chosen, key=lambda region: (region.y, region.x)), replace(grid, scales=scales, parents={})


Way = tuple[int, Callable[[ExitStack], Callable[[], None]]]
"""20x patches, and what opens a slide, untimed since a whole one has many times as many patches, and gives a reader."""


def all_ways(path: Path, own: Rows, plan: list[Region], grid: Grid) -> dict[str, Way]:
    """By name, every way whose library is installed.

    Args:
        path: the slide.
        own: what zoomfeat and the limit read.
        plan: the regions that the others read.
        grid: their patches.
    """
    boxes = list(_boxes(path, grid))
    patches = len(grid.scales[0].coords)

    def by_region(decode: str, above: list[Region], plan: list[Region]) -> Way:
        def prepare(opened: ExitStack) -> Callable[[], None]:
            slide = opened.enter_context(Slide.open(path, decode=decode))
            for region in above:
                read_region(slide, region)

            def read() -> None:
                for region in plan:
                    read_region(slide, region)

            return read

        return sum(len(region.parts[0].rows) for region in plan), prepare

    def patch_by_patch(reader: Callable[[Path, ExitStack], ReadBox], finish: Callable[[Any], object]) -> Way:
        def prepare(opened: ExitStack) -> Callable[[], None]:
            read = reader(path, opened)

            def read_all() -> None:
                for box in boxes:
                    finish(read(*box))

            return read_all

        return patches, prepare

    level, tiles = needed_tiles(path, own)
    ways: dict[str, Way] = {
        PER_PATCH: patch_by_patch(_openslide_reader, _resized_by_pillow),
        PER_PATCH_CV2: patch_by_patch(_openslide_reader, _resized_by_opencv),
        PER_REGION: by_region("openslide", [], plan),
        EXACT: by_region("exact", own.above, own.plan),
        DCT: by_region("dct", own.above, own.plan),
        LIMIT: (own.patches, lambda opened: lambda: decode(path, level, tiles, 1)),
        HALF_LIMIT: (own.patches, lambda opened: lambda: decode(path, level, tiles, 2)),
    }
    if importlib.util.find_spec("tiffslide"):
        ways["tiffslide, patch by patch"] = patch_by_patch(_tiffslide_reader, _resized_by_opencv)
    if importlib.util.find_spec("pyvips"):
        ways["pyvips, patch by patch"] = patch_by_patch(_pyvips_reader, _resized_by_opencv)
    return ways


ReadBox = Callable[[int, int, int, int, int], Any]
"""Reads (left, top, level, width, height), the corner in level-0 px, the size in those of the level: RGB."""


def _boxes(path: Path, grid: Grid) -> Iterator[tuple[int, int, int, int, int]]:
    """Left, top, level, width and height of each patch of each scale, from the coarsest level that is fine enough."""
    with openslide.OpenSlide(path) as slide:
        downsamples = [round(downsample) for downsample in slide.level_downsamples]
    for scale in grid.scales:
        fine_enough = [level for level, each in enumerate(downsamples) if each * PATCH_SIZE <= scale.size[0] * 1.01]
        level = fine_enough[-1]
        width, height = (round(side / downsamples[level]) for side in scale.size)
        for x, y in scale.coords.tolist():
            yield x, y, level, width, height


def _resized_by_pillow(patch: Image.Image) -> np.ndarray:
    return np.asarray(patch.resize((PATCH_SIZE, PATCH_SIZE)))


def _resized_by_opencv(patch: Image.Image | np.ndarray) -> np.ndarray:
    pixels = np.asarray(patch)
    if pixels.shape[:2] == (PATCH_SIZE, PATCH_SIZE):
        return pixels
    return cv2.resize(pixels, (PATCH_SIZE, PATCH_SIZE), interpolation=cv2.INTER_AREA)


def _openslide_reader(path: Path, opened: ExitStack) -> ReadBox:
    slide = opened.enter_context(openslide.OpenSlide(path))
    return lambda x, y, level, width, height: slide.read_region((x, y), level, (width, height)).convert("RGB")


def _tiffslide_reader(path: Path, opened: ExitStack) -> ReadBox:
    import tiffslide

    slide = opened.enter_context(tiffslide.TiffSlide(path))
    return lambda x, y, level, width, height: slide.read_region((x, y), level, (width, height), as_array=True)


def _pyvips_reader(path: Path, opened: ExitStack) -> ReadBox:
    import pyvips

    levels = [pyvips.Image.tiffload(str(path), page=page) for page in range(3)]
    fetch = [pyvips.Region.new(level) for level in levels]
    steps = [levels[0].width / level.width for level in levels]

    def read(x: int, y: int, level: int, width: int, height: int) -> np.ndarray:
        left, top = round(x / steps[level]), round(y / steps[level])
        # Unlike the others it refuses what lies beyond the slide.
        width, height = min(width, levels[level].width - left), min(height, levels[level].height - top)
        return np.frombuffer(fetch[level].fetch(left, top, width, height), np.uint8).reshape(height, width, 3)

    return read


def needed_tiles(path: Path, rows: Rows) -> tuple[TiledLevel, list[int]]:
    """Level 0, and the numbers of its tiles that some region covers, but none of the row above."""
    with Slide.open(path) as slide:
        if slide.tiles is None:
            raise SystemExit(f"{path} is not read tile by tile; there is no limit to compare with")
        level = slide.tiles.levels[0]
    return level, sorted(_covered(level, rows.plan) - _covered(level, rows.above))


def _covered(level: TiledLevel, plan: list[Region]) -> set[int]:
    found = set()
    for region in plan:
        right, bottom = min(region.x + region.width, level.width), min(region.y + region.height, level.height)
        for row in range(region.y // level.tile[1], -(-bottom // level.tile[1])):
            for column in range(region.x // level.tile[0], -(-right // level.tile[0])):
                found.add(row * level.across + column)
    return found


def decode(path: Path, level: TiledLevel, tiles: list[int], shrink: int) -> None:
    """Decodes tiles of a level by number, each so many times smaller, and does nothing with them."""
    width, height = (side // shrink for side in level.tile)
    pixels = np.empty((height, width, 3), np.uint8)
    with path.open("rb", buffering=0) as file:
        for index in tiles:
            jpeg = level.head + os.pread(file.fileno(), int(level.lengths[index]), int(level.offsets[index]))[2:]
            simplejpeg.decode_jpeg(jpeg, min_width=width, min_height=height, buffer=pixels)

"""Reading the patches of a slide at 20x and 5x, one way against another: ``python -m benchmarks.speed.reading SCAN``.

All ways read the same plan, that of ``zoomfeat extract``, from the same synthetic slides (`textured_slide`), in turns
and on one thread. What counts is CPU time. The other libraries read as their users do, each patch by itself and 5x from
the level that is made for it; zoomfeat reads each 5x patch's region once, at level 0, for both. OpenSlide's patches are
resized by Pillow, and in a way of its own by OpenCV, which is faster. The limit is what the JPEG decoder takes for the
tiles that the regions need, each decoded once and nothing done with its pixels.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openslide
import simplejpeg
from rich.console import Console
from rich.table import Table

from benchmarks.runner import hardware
from benchmarks.speed.textured_slide import (
    SVS,
    SVS_256,
    SVS_RGB,
    TIFF_420,
    JpegLayout,
    scan_texture,
    write_textured_slide,
)
from zoomfeat.files import make_folder, replacing
from zoomfeat.magnification import PATCH_SIZE, parse
from zoomfeat.slides import Grid, Region, Slide, find_tissue, make_grid, read_region, regions
from zoomfeat.slides.tiles import TiledLevel

RESULTS = Path(__file__).parent / "results"
PER_PATCH = "OpenSlide, patch by patch"
PER_PATCH_CV2 = "the same, resized by OpenCV"
PER_REGION = "OpenSlide, region by region"
EXACT, DCT = "zoomfeat, exact", "zoomfeat, DCT"
LIMIT, HALF_LIMIT = "limit: decoding alone", "limit: decoding at half size"


@dataclass(frozen=True)
class Case:
    """A slide to read.

    Attributes:
        layout: how its tiles are coded.
        mpp: um/px of level 0.
        share: of the side that the benchmark was asked for.
    """

    layout: JpegLayout
    mpp: float
    share: float

    @property
    def name(self) -> str:
        """What a table calls it."""
        return f"{self.layout.name}, {self.mpp:g} um/px"


CASES = (
    Case(SVS, 0.25, 1),
    Case(SVS_256, 0.25, 0.5),
    Case(TIFF_420, 0.25, 0.5),
    Case(SVS_RGB, 0.25, 0.5),
    Case(SVS, 0.2527, 0.5),
    Case(SVS, 0.5, 0.5),
)
"""The first one gives the ratios; at 0.2527 um/px a patch is no whole number of slide pixels."""


@dataclass(frozen=True)
class Run:
    """One way of reading one slide.

    Attributes:
        case: the slide.
        way: of reading.
        patches: 20x patches read.
        cpu_seconds: median of the repeats.
    """

    case: str
    way: str
    patches: int
    cpu_seconds: float

    @property
    def rate(self) -> float:
        """20x patches a CPU-second, the 5x ones read as well."""
        return self.patches / self.cpu_seconds


def measure(path: Path, repeats: int) -> tuple[int, dict[str, float]]:
    """Reads a slide in every way.

    Returns:
        The number of 20x patches, and way to CPU-seconds, the median of the repeats.
    """
    plan, grid = _plan(path)
    ways = _ways(path, plan, grid)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, read in ways.items():
            start = time.process_time()
            read()
            seconds[way].append(time.process_time() - start)
    return len(grid.scales[0].coords), {way: statistics.median(found) for way, found in seconds.items()}


def thread_scaling(path: Path, repeats: int) -> float:
    """How many times faster two threads read than one, by the clock, the median of the repeats."""
    plan, _ = _plan(path)
    ratios = []
    for _ in range(repeats):
        seconds = []
        for threads in (1, 2):
            with Slide.open(path) as slide, ThreadPoolExecutor(threads) as pool:
                start = time.perf_counter()
                for _ in pool.map(lambda region, slide=slide: read_region(slide, region) and None, plan):
                    pass
                seconds.append(time.perf_counter() - start)
        ratios.append(seconds[0] / seconds[1])
    return statistics.median(ratios)


def _plan(path: Path) -> tuple[list[Region], Grid]:
    with Slide.open(path) as slide:
        grid = make_grid(slide, find_tissue(slide), parse(["20x", "5x"]))
    return regions(grid), grid


def _ways(path: Path, plan: list[Region], grid: Grid) -> dict[str, Callable[[], None]]:
    def through_slide(decode: str) -> None:
        with Slide.open(path, decode=decode) as slide:
            for region in plan:
                read_region(slide, region)

    level, tiles = _needed_tiles(path, plan)
    ways: dict[str, Callable[[], None]] = {
        PER_PATCH: lambda: _per_patch_as_peers(path, grid),
        PER_PATCH_CV2: lambda: _per_patch(_openslide_reader(path), path, grid),
        PER_REGION: lambda: through_slide("openslide"),
        EXACT: lambda: through_slide("exact"),
        DCT: lambda: through_slide("dct"),
        LIMIT: lambda: _decode(path, level, tiles, 1),
        HALF_LIMIT: lambda: _decode(path, level, tiles, 2),
    }
    if importlib.util.find_spec("tiffslide"):
        ways["tiffslide, patch by patch"] = lambda: _per_patch(_tiffslide_reader(path), path, grid)
    if importlib.util.find_spec("pyvips"):
        ways["pyvips, patch by patch"] = lambda: _per_patch(_pyvips_reader(path), path, grid)
    return ways


ReadBox = Callable[[int, int, int, int, int], np.ndarray]
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


def _per_patch_as_peers(path: Path, grid: Grid) -> None:
    with openslide.OpenSlide(path) as slide:
        for x, y, level, width, height in _boxes(path, grid):
            patch = slide.read_region((x, y), level, (width, height)).convert("RGB")
            np.asarray(patch.resize((PATCH_SIZE, PATCH_SIZE)))


def _per_patch(read: ReadBox, path: Path, grid: Grid) -> None:
    for box in _boxes(path, grid):
        pixels = read(*box)
        if pixels.shape[:2] != (PATCH_SIZE, PATCH_SIZE):
            cv2.resize(pixels, (PATCH_SIZE, PATCH_SIZE), interpolation=cv2.INTER_AREA)


def _openslide_reader(path: Path) -> ReadBox:
    slide = openslide.OpenSlide(path)
    return lambda x, y, level, width, height: np.asarray(
        slide.read_region((x, y), level, (width, height)).convert("RGB")
    )


def _tiffslide_reader(path: Path) -> ReadBox:
    import tiffslide

    slide = tiffslide.TiffSlide(path)
    return lambda x, y, level, width, height: slide.read_region((x, y), level, (width, height), as_array=True)


def _pyvips_reader(path: Path) -> ReadBox:
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


def _needed_tiles(path: Path, plan: list[Region]) -> tuple[TiledLevel, list[int]]:
    """Level 0, and the numbers of its tiles that some region of the plan covers."""
    with Slide.open(path) as slide:
        if slide.tiles is None:
            raise SystemExit(f"{path} is not read tile by tile; there is no limit to compare with")
        level = slide.tiles.levels[0]
        needed = set()
        for region in plan:
            right, bottom = min(region.x + region.width, level.width), min(region.y + region.height, level.height)
            for row in range(region.y // level.tile[1], -(-bottom // level.tile[1])):
                for column in range(region.x // level.tile[0], -(-right // level.tile[0])):
                    needed.add(row * level.across + column)
    return level, sorted(needed)


def _decode(path: Path, level: TiledLevel, tiles: list[int], shrink: int) -> None:
    width, height = (side // shrink for side in level.tile)
    pixels = np.empty((height, width, 3), np.uint8)
    with path.open("rb", buffering=0) as file:
        for index in tiles:
            jpeg = level.head + os.pread(file.fileno(), int(level.lengths[index]), int(level.offsets[index]))[2:]
            simplejpeg.decode_jpeg(jpeg, min_width=width, min_height=height, buffer=pixels)


def ratios(runs: list[Run], scaling: float | None) -> dict[str, float]:
    """The figures that are tracked, from the first case."""
    seconds = {run.way: run.cpu_seconds for run in runs if run.case == runs[0].case}
    found = {
        "reading_vs_per_patch": seconds[PER_PATCH] / seconds[EXACT],
        "reading_dct_vs_per_patch": seconds[PER_PATCH] / seconds[DCT],
        "reading_vs_jpeg_limit": seconds[EXACT] / seconds[LIMIT],
        "reading_dct_vs_jpeg_limit": seconds[DCT] / seconds[LIMIT],
    }
    return found if scaling is None else found | {"reading_two_threads": scaling}


def table_rows(runs: list[Run]) -> list[tuple[str, ...]]:
    """Slide, way, 20x patches a CPU-second, times the per-patch rate, CPU over that of the limit."""
    by_key = {(run.case, run.way): run for run in runs}
    return [
        (
            run.case,
            run.way,
            f"{run.rate:.0f}",
            f"{run.rate / by_key[run.case, PER_PATCH].rate:.2f}",
            f"{run.cpu_seconds / by_key[run.case, LIMIT].cpu_seconds:.2f}",
        )
        for run in runs
    ]


HEADINGS = ("slide", "way", "20x patches / CPU-s", "x per patch", "CPU / limit")


def markdown(record: dict[str, Any], runs: list[Run]) -> str:
    """The table as a page of its own."""
    machine = record["machine"]
    lines = [
        f"Reading 20x + 5x, slides of up to {record['side']} px a side, one thread, median of {record['repeats']}; "
        f"{machine['cores']} cores of {machine['processor']}.",
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "|---|---|---|---|---|",
        *("| " + " | ".join(row) + " |" for row in table_rows(runs)),
        "",
        *(f"- `{name}`: {value:.2f}" for name, value in record["ratios"].items()),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Prints the table and writes results/reading.json and reading.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path, help="a small H&E slide at about 0.5 um/px, for its texture")
    parser.add_argument("--quick", action="store_true", help="slides of 8192 px or less, once")
    parser.add_argument("--side", type=int, default=40960, help="of the largest slide in px")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    if options.quick:
        options.side, options.repeats = 8192, 1
    console = Console()
    cv2.setNumThreads(1)
    texture = scan_texture(options.scan)
    runs: list[Run] = []
    scaling = None
    with tempfile.TemporaryDirectory() as folder:
        for number, case in enumerate(CASES):
            path = Path(folder) / ("slide.svs" if case.layout.aperio else "slide.tiff")
            with console.status(case.name):
                write_textured_slide(path, texture, round(options.side * case.share), case.mpp, case.layout)
                patches, seconds = measure(path, options.repeats)
                if number == 0 and len(os.sched_getaffinity(0)) > 1:
                    scaling = thread_scaling(path, options.repeats)
            runs += [Run(case.name, way, patches, each) for way, each in seconds.items()]
            path.unlink()
    record = {
        "machine": hardware(),
        "size": "quick" if options.quick else "full",
        "side": options.side,
        "repeats": options.repeats,
        "versions": {"openslide": openslide.__library_version__, "simplejpeg": simplejpeg.__version__},
        "runs": [asdict(run) | {"rate": run.rate} for run in runs],
        "ratios": ratios(runs, scaling),
    }
    table = Table(title=f"20x + 5x, one thread, median of {options.repeats}")
    for heading in HEADINGS:
        table.add_column(heading, justify="left" if heading in ("slide", "way") else "right")
    for row in table_rows(runs):
        table.add_row(*row)
    console.print(table)
    console.print(", ".join(f"{name} {value:.2f}" for name, value in record["ratios"].items()))
    folder_of_results = make_folder(RESULTS)
    with replacing(folder_of_results / "reading.json") as out:
        out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    with replacing(folder_of_results / "reading.md") as out:
        out.write_text(markdown(record, runs), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Reading the patches of a slide at 20x and 5x, one way against another: ``python -m benchmarks.speed.reading``.

All ways read the same plan, that of ``zoomfeat extract``, from the same synthetic slides (`textured_slide`), in turns
and on one thread. What counts is CPU time. The slides are as large as scans: the cache of OpenSlide then no longer
holds a row of patches; to save time only some rows in their middle are read. The other libraries read as their users
do, each patch by itself and 5x from the level that is made for it; zoomfeat reads each 5x patch's region once, at level
0, for both. OpenSlide's patches are resized by Pillow, and in a way of its own by OpenCV, which is faster. The limit is
what the JPEG decoder takes for the tiles that the regions need, each decoded once and nothing done with its pixels.

zoomfeat keeps a tile that goes on below its region until the row of regions below takes it. For rows in the middle to
stand for a slide, it reads the row above them before the clock runs, and several rows, so that they are about a whole
number of tiles high; the limit leaves out the tiles that came with the row above. OpenSlide's cache forgets a row
before the next one comes, so it reads fewer rows, and rates are compared.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import openslide
import simplejpeg
from PIL import Image
from rich.console import Console

from benchmarks.speed import report
from benchmarks.speed.textured_slide import (
    SVS,
    SVS_256,
    SVS_RGB,
    TIFF_420,
    JpegLayout,
    usual_texture,
    write_textured_slide,
)
from zoomfeat.magnification import PATCH_SIZE, parse
from zoomfeat.slides import Grid, Region, Slide, find_tissue, make_grid, read_region, regions
from zoomfeat.slides import grid as grid_module
from zoomfeat.slides import tiles as tiles_module
from zoomfeat.slides.tiles import TiledLevel

RESULTS = Path(__file__).parent / "results"
PER_PATCH = "OpenSlide, patch by patch"
PER_PATCH_CV2 = "the same, resized by OpenCV"
PER_REGION = "OpenSlide, region by region"
EXACT, DCT = "zoomfeat, exact", "zoomfeat, DCT"
LIMIT, HALF_LIMIT = "limit: decoding alone", "limit: decoding at half size"
STEADY_PX = 4096
"""Height of the rows that zoomfeat reads: two of regions at 0.25 um/px, and 17.07 of tiles of 240 px, 16 of 256."""


@dataclass(frozen=True)
class Case:
    """A slide to read.

    Attributes:
        layout: how its tiles are coded.
        mpp: um/px of level 0.
    """

    layout: JpegLayout
    mpp: float

    @property
    def name(self) -> str:
        """What a table calls it."""
        return f"{self.layout.name}, {self.mpp:g} um/px"


CASES = (
    Case(SVS, 0.25),
    Case(SVS_256, 0.25),
    Case(TIFF_420, 0.25),
    Case(SVS_RGB, 0.25),
    Case(SVS, 0.2527),
    Case(SVS, 0.5),
)
"""The first one gives the ratios; at 0.2527 um/px a patch is no whole number of slide pixels."""


EARLIER = {
    "decoding": "1.01",
    "area means": "0.37",
    "copies into a canvas": "0.11",
    "the rest": "0.06",
    "in all": "1.55",
}
"""The stages before tiles were averaged as they are decoded (commit d2900ab), in the same units."""


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


def measure(path: Path, patches: int, repeats: int) -> dict[str, tuple[int, float]]:
    """Reads the middle of a slide in every way.

    Args:
        path: the slide.
        patches: how many 20x patches the ways of others read at least; as many rows of regions as hold them.
        repeats: of each way.

    Returns:
        Way to the number of 20x patches that it read, and CPU-seconds, the median of the repeats.
    """
    whole, grid = _plan(path)
    own = steady(whole)
    ways = _ways(path, own, *middle(whole, grid, patches))
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, (_, prepare) in ways.items():
            with ExitStack() as opened:
                read = prepare(opened)
                start = time.process_time()
                read()
                seconds[way].append(time.process_time() - start)
    return {way: (count, statistics.median(seconds[way])) for way, (count, _) in ways.items()}


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


def thread_scaling(path: Path, patches: int, repeats: int) -> float:
    """How many times faster two threads read than one, by the clock, the median of the repeats."""
    plan, _ = middle(*_plan(path), patches)
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


def stages(path: Path) -> dict[str, float]:
    """CPU time of the stages of an exact read, in units of the limit; taking the time adds a little to each."""
    rows = steady(_plan(path)[0])
    level, tiles = _needed_tiles(path, rows)
    found: dict[str, float] = {}

    def timed(stage: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            start = time.thread_time()
            try:
                return call(*args, **options)
            finally:
                found[stage] = found.get(stage, 0.0) + time.thread_time() - start

        return run

    with Slide.open(path) as slide:
        for region in rows.above:
            read_region(slide, region)
        start = time.thread_time()
        with (
            mock.patch.object(simplejpeg, "decode_jpeg", timed("decoding", simplejpeg.decode_jpeg)),
            mock.patch.object(os, "pread", timed("bytes from the file", os.pread)),
            mock.patch.object(tiles_module, "resize_into", timed("area means", tiles_module.resize_into)),
            mock.patch.object(grid_module, "_cut", timed("patches cut out", grid_module._cut)),
        ):
            for region in rows.plan:
                read_region(slide, region)
        total = time.thread_time() - start
    found["the rest"] = total - sum(found.values())
    start = time.thread_time()
    _decode(path, level, tiles, 1)
    limit = time.thread_time() - start
    return {stage: seconds / limit for stage, seconds in found.items()} | {"in all": total / limit}


def _plan(path: Path) -> tuple[list[Region], Grid]:
    with Slide.open(path) as slide:
        grid = make_grid(slide, find_tissue(slide), parse(["20x", "5x"]))
    return regions(grid), grid


Way = tuple[int, Callable[[ExitStack], Callable[[], None]]]
"""20x patches, and what opens a slide, untimed since a whole one has many times as many patches, and gives a reader."""


def _ways(path: Path, own: Rows, plan: list[Region], grid: Grid) -> dict[str, Way]:
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

    level, tiles = _needed_tiles(path, own)
    ways: dict[str, Way] = {
        PER_PATCH: patch_by_patch(_openslide_reader, _resized_by_pillow),
        PER_PATCH_CV2: patch_by_patch(_openslide_reader, _resized_by_opencv),
        PER_REGION: by_region("openslide", [], plan),
        EXACT: by_region("exact", own.above, own.plan),
        DCT: by_region("dct", own.above, own.plan),
        LIMIT: (own.patches, lambda opened: lambda: _decode(path, level, tiles, 1)),
        HALF_LIMIT: (own.patches, lambda opened: lambda: _decode(path, level, tiles, 2)),
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


def _needed_tiles(path: Path, rows: Rows) -> tuple[TiledLevel, list[int]]:
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


def _decode(path: Path, level: TiledLevel, tiles: list[int], shrink: int) -> None:
    width, height = (side // shrink for side in level.tile)
    pixels = np.empty((height, width, 3), np.uint8)
    with path.open("rb", buffering=0) as file:
        for index in tiles:
            jpeg = level.head + os.pread(file.fileno(), int(level.lengths[index]), int(level.offsets[index]))[2:]
            simplejpeg.decode_jpeg(jpeg, min_width=width, min_height=height, buffer=pixels)


def ratios(runs: list[Run], scaling: float | None) -> dict[str, float]:
    """The figures that are tracked, from the first case; of a 20x slide and of other layouts, their own."""
    rate = {(run.case, run.way): run.rate for run in runs}
    first = runs[0].case
    found = {
        "reading_vs_per_patch": rate[first, EXACT] / rate[first, PER_PATCH],
        "reading_dct_vs_per_patch": rate[first, DCT] / rate[first, PER_PATCH],
        "reading_vs_jpeg_limit": rate[first, LIMIT] / rate[first, EXACT],
        "reading_dct_vs_jpeg_limit": rate[first, LIMIT] / rate[first, DCT],
    }
    for case in {run.case: None for run in runs}:
        found[f"reading_vs_per_patch: {case}"] = rate[case, EXACT] / rate[case, PER_PATCH]
        found[f"reading_dct_vs_per_patch: {case}"] = rate[case, DCT] / rate[case, PER_PATCH]
        found[f"reading_vs_openslide_by_region: {case}"] = rate[case, EXACT] / rate[case, PER_REGION]
    return found if scaling is None else found | {"reading_two_threads": scaling}


def page(record: dict[str, Any], runs: list[Run]) -> str:
    """A row a slide: the rate of the per-patch way, and how many times that rate the others reach."""
    cases, others = (dict.fromkeys(names) for names in zip(*((run.case, run.way) for run in runs), strict=True))
    del others[PER_PATCH]
    by_key = {(run.case, run.way): run for run in runs}
    rows = []
    for case in cases:
        base, limit = by_key[case, PER_PATCH], by_key[case, LIMIT]
        times = [f"{by_key[case, way].rate / base.rate:.2f}" for way in others]
        over = [f"{limit.rate / by_key[case, way].rate:.2f}" for way in (EXACT, DCT)]
        rows.append((case, f"{base.rate:.0f}", *times, *over))
    headings = ("slide", f"{PER_PATCH}: 20x / CPU-s", *others, "exact: CPU / limit", "DCT: CPU / limit")
    scaling = record["ratios"].get("reading_two_threads")
    lines = [
        f"Slides of {record['side']} px a side with the texture of {record['texture']}, at least {record['patches']} "
        f"20x patches of each, one thread, CPU time, median of {record['repeats']} runs in turns; "
        f"{report.described(record['machine'])}. Columns after the first are times that rate.",
        "",
        report.markdown(headings, rows),
        *([] if scaling is None else [f"Two threads read {scaling:.2f} times as fast as one, by the clock."]),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Prints the ratios and writes results/reading.json and reading.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path, nargs="?", help="a small H&E slide at about 0.5 um/px, for its texture")
    parser.add_argument("--quick", action="store_true", help="fewer patches and slides")
    parser.add_argument("--side", type=int, default=40960, help="of the slides in px")
    parser.add_argument("--patches", type=int, default=160, help="20x patches read of each at least")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    cases: tuple[Case, ...] = CASES
    if options.quick:
        options.patches, cases = (
            100,
            tuple(case for case in CASES if case.layout != SVS_256 and case.mpp in (0.25, 0.5)),
        )
    cv2.setNumThreads(1)
    machine = report.conditions()
    texture, source = usual_texture(options.scan)
    runs: list[Run] = []
    scaling, spent = None, {}
    with tempfile.TemporaryDirectory() as folder:
        for number, case in enumerate(cases):
            path = Path(folder) / ("slide.svs" if case.layout.aperio else "slide.tiff")
            with Console().status(case.name):
                write_textured_slide(path, texture, options.side, case.mpp, case.layout)
                measured = measure(path, options.patches, options.repeats)
                if number == 0:
                    spent = stages(path)
                if number == 0 and machine["cores_used"] > 1:
                    scaling = thread_scaling(path, options.patches, options.repeats)
            runs += [Run(case.name, way, patches, seconds) for way, (patches, seconds) in measured.items()]
            path.unlink()
    record = {
        "machine": machine,
        "side": options.side,
        "texture": source,
        "patches": options.patches,
        "repeats": options.repeats,
        "stages": spent,
        "runs": [asdict(run) | {"rate": run.rate} for run in runs],
        "ratios": ratios(runs, scaling),
    }
    report.save(RESULTS, "reading", record, page(record, runs))
    rows = [(stage, EARLIER.get(stage, ""), f"{spent.get(stage, 0):.2f}") for stage in {**EARLIER, **spent}]
    headings = (f"stage ({cases[0].name})", "before", "now")
    report.save(RESULTS, "reading-stages", spent, report.markdown(headings, rows))
    report.show("reading", ("ratio", "value"), [(name, f"{value:.2f}") for name, value in record["ratios"].items()])


if __name__ == "__main__":
    main()

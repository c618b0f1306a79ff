"""Reading the patches of a slide at 20x and 5x, one way against another: ``python -m benchmarks.speed.reading``.

The ways (:mod:`benchmarks.speed.reading_ways`) read the same plan from the same synthetic slides (`textured_slide`),
in turns and on one thread. What counts is CPU time. The slides are as large as scans: the cache of OpenSlide then no
longer holds a row of patches; to save time only some rows in their middle are read.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import simplejpeg
from rich.console import Console

from benchmarks.speed import report
from benchmarks.speed.reading_ways import (
    DCT,
    EXACT,
    LIMIT,
    PER_PATCH,
    PER_REGION,
    all_ways,
    decode,
    middle,
    needed_tiles,
    read_plan,
    steady,
)
from benchmarks.speed.textured_slide import (
    SVS,
    SVS_256,
    SVS_RGB,
    TIFF_420,
    JpegLayout,
    usual_texture,
    write_textured_slide,
)
from zoomfeat.slides import Slide, read_region
from zoomfeat.slides import grid as grid_module
from zoomfeat.slides import tiles as tiles_module

RESULTS = Path(__file__).parent / "results"


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


def measure(path: Path, patches: int, repeats: int) -> dict[str, tuple[int, float]]:
    """Reads the middle of a slide in every way.

    Args:
        path: the slide.
        patches: how many 20x patches the ways of others read at least; as many rows of regions as hold them.
        repeats: of each way.

    Returns:
        Way to the number of 20x patches that it read, and CPU-seconds, the median of the repeats.
    """
    whole, grid = read_plan(path)
    own = steady(whole)
    ways = all_ways(path, own, *middle(whole, grid, patches))
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, (_, prepare) in ways.items():
            with ExitStack() as opened:
                read = prepare(opened)
                start = time.process_time()
                read()
                seconds[way].append(time.process_time() - start)
    return {way: (count, statistics.median(seconds[way])) for way, (count, _) in ways.items()}


def thread_scaling(path: Path, patches: int, repeats: int) -> float:
    """How many times faster two threads read than one, by the clock, the median of the repeats."""
    plan, _ = middle(*read_plan(path), patches)
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
    rows = steady(read_plan(path)[0])
    level, tiles = needed_tiles(path, rows)
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
    decode(path, level, tiles, 1)
    limit = time.thread_time() - start
    return {stage: seconds / limit for stage, seconds in found.items()} | {"in all": total / limit}


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

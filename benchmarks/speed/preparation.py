"""What one pass over a slide saves: all magnifications together against each one read and embedded by itself.

Both ways are ``zoomfeat prepare``'s own code on one synthetic slide and write the same rows; the second calls it once a
magnification. Run with ``python -m benchmarks.speed.preparation``.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before PyTorch is imported

import torch

from benchmarks.speed import report
from generation.prepare import Tools, prepare_slide, tissue_thresholds
from zoomfeat.conf.schema import PrepareConfig
from zoomfeat.files import make_folder
from zoomfeat.slides import SlideEntry
from zoomfeat.slides.synthetic import make_slide

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Run:
    """The preparation of one slide.

    Attributes:
        way: what was run.
        patches: rows written, over all magnifications.
        seconds: all passes together.
    """

    way: str
    patches: int
    seconds: float

    @property
    def rate(self) -> float:
        """Patches a second, over all magnifications."""
        return self.patches / self.seconds


def measure(slide: SlideEntry, config: PrepareConfig, tools: Tools) -> tuple[Run, Run]:
    """One pass for all magnifications, and one for each.

    Args:
        slide: what is prepared.
        config: the one pass; ``out`` is a folder that exists.
        tools: encoder and first stage.
    """
    alone = [replace(config, magnifications=[str(step)]) for step in tissue_thresholds(config)]
    together = _timed("one pass", slide, [config], tools)
    separate = _timed("one pass a magnification", slide, alone, tools)
    if together.patches != separate.patches:
        raise AssertionError(f"{together.patches} patches together, {separate.patches} one by one")
    return together, separate


def _timed(way: str, slide: SlideEntry, configs: list[PrepareConfig], tools: Tools) -> Run:
    start = time.perf_counter()
    reports = [prepare_slide(slide, config, tools)[0] for config in configs]
    seconds = time.perf_counter() - start
    return Run(way, sum(sum(report.patches.values()) for report in reports), seconds)


def main() -> None:
    """Prints the table and writes results/preparation.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the same: it is small as it is")
    parser.add_argument("--side", type=int, default=2048, help="of the slide in px")
    parser.add_argument("--first-stage", help="as the key of `zoomfeat prepare`, for example zoomldm-tiny")
    options = parser.parse_args()
    side = options.side
    machine = report.conditions()
    with tempfile.TemporaryDirectory() as folder:
        slide = SlideEntry("synthetic", Path(folder) / "synthetic.tiff")
        make_slide(slide.path, seed=0, size=(side, side), mpp=0.5)
        config = PrepareConfig(
            slides=str(slide.path),
            out=str(make_folder(Path(folder) / "set")),
            ssl_encoder="efficientnet-lite0",
            first_stage=options.first_stage,
            min_tissue_coarsest=1e-3,  # the slide is smaller than a patch at 0.15625x
        )
        tools = Tools.load(config)
        runs = measure(slide, config, tools)
    together, separate = runs
    ratio = together.rate / separate.rate
    headings = ("way", "patches", "seconds", "patches/s")
    rows = [(run.way, str(run.patches), f"{run.seconds:.1f}", f"{run.rate:.1f}") for run in runs]
    report.show("preparation", headings, rows)
    latents = f"latents by {options.first_stage}" if options.first_stage else "no latents"
    lead = (
        f"A synthetic slide of {side} px a side at 20x, {config.ssl_encoder}, {latents}, {torch.get_num_threads()} "
        f"threads, once; {report.described(machine)}.\n\n"
    )
    record = {
        "machine": machine,
        "side": side,
        "first_stage": options.first_stage,
        "runs": [asdict(run) for run in runs],
        "ratio": ratio,
        "ratios": {"preparation_one_pass_vs_one_a_magnification": ratio},
    }
    report.save(RESULTS, "preparation", record, lead + report.markdown(headings, rows))


if __name__ == "__main__":
    main()

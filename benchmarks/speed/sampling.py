"""Joint sampling by forward passes alone against backpropagation: ``python -m benchmarks.speed.sampling``.

``zoomldm-tiny``, a 10x guide and its four 20x patches under random embeddings (cost does not depend on them), no pass
against seams. At equal pulls both pull every patch equally often; at equal calls of the denoiser backpropagation pulls
twice as often. What the ways reach is another question: ``benchmarks.generation.consistency``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before PyTorch is imported

import torch

from benchmarks.generation.consistency import Way, ways
from benchmarks.generation.regions import load
from benchmarks.speed import report
from generation.pipelines.joint import JointMultiScalePipeline
from zoomfeat.magnification import BRCA

RESULTS = Path(__file__).parent / "results"
PULLS = 2
GUIDE = "10x"


def cpu_seconds(pipe: JointMultiScalePipeline, way: Way, steps: int) -> float:
    """CPU time of one sampling."""
    side = BRCA[GUIDE].grid
    embeddings = torch.randn(pipe.summarizer.config.input_dim, side, side, generator=torch.Generator().manual_seed(1))
    start = time.process_time()
    pipe.sample(
        embeddings,
        GUIDE,
        num_inference_steps=steps,
        seam_start=0,
        generator=torch.Generator().manual_seed(0),
        **way.options,
    )
    return time.process_time() - start


def main() -> None:
    """Prints the table and writes results/sampling.json and sampling.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two noise levels instead of four")
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    steps = 2 if options.quick else 4
    machine = report.conditions()
    pipe = JointMultiScalePipeline.over(load("zoomldm-tiny"))
    pipe.set_progress_bar_config(disable=True)
    _, forward, equal_pulls, equal_calls = ways(PULLS)
    compared = (forward, equal_pulls, equal_calls)
    times: dict[str, list[float]] = {way.name: [] for way in compared}
    cpu_seconds(pipe, forward, 1)
    for _ in range(options.repeats):
        for way in compared:
            times[way.name].append(cpu_seconds(pipe, way, steps))
    seconds = {name: statistics.median(found) for name, found in times.items()}
    rows = [
        (way.name, str(way.calls), str(way.backward), f"{seconds[way.name]:.2f}",
         f"{seconds[way.name] / seconds[forward.name]:.2f}")
        for way in compared
    ]  # fmt: skip
    headings = ("way", "denoiser calls", "of them backward", "CPU s", "x forward passes only")
    lead = (
        f"`zoomldm-tiny`, {GUIDE} guide, {steps} noise levels, {PULLS} pulls, median of {options.repeats} runs in "
        f"turns; {report.described(machine)}.\n\n"
    )
    report.show("joint sampling", headings, rows)
    ratios = {
        "guidance_vs_backprop": seconds[equal_calls.name] / seconds[forward.name],
        "guidance_vs_backprop_at_equal_pulls": seconds[equal_pulls.name] / seconds[forward.name],
    }
    record = {"machine": machine, "steps": steps, "cpu_seconds": seconds, "ratios": ratios}
    report.save(RESULTS, "sampling", record, lead + report.markdown(headings, rows))


if __name__ == "__main__":
    main()

"""How well large images agree with their guide, and what that costs: ``python -m benchmarks.generation.consistency``.

Images of the same regions and seeds, by the same model: unguided, by finite differences (forward passes only), by
backpropagation with as many pulls, and by backpropagation with as many calls of the denoiser. Every way has a process
of its own. Reported are the mean squared difference between the guide's patch and the mosaic seen from afar (of values
in [-1, 1]), CPU time of the joint pass, and the peak of memory above the loaded model.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.generation.regions import DATA, TissueRegion, load, regions_at
from benchmarks.generation.results import FOLDER, Results, facts
from generation.joint_sampling import SEAM_STRIDE, Sampled
from generation.large_image import merge
from generation.pipelines.joint import JointMultiScalePipeline
from generation.resize import downscale
from zoomfeat.magnification import BRCA, Magnification


@dataclass(frozen=True)
class Way:
    """A way of sampling.

    Attributes:
        name: shown.
        options: of the pipeline.
        calls: of the denoiser, for each patch and noise level; with guidance, both passes are one.
        backward: calls through which it backpropagates.
    """

    name: str
    options: dict[str, Any]
    calls: int
    backward: int = 0


def ways(pulls: int) -> list[Way]:
    """Unguided; ``pulls`` by finite differences; as many by backpropagation; and those of equally many calls."""
    return [
        Way("unguided", {"pulls": 0}, 1),
        Way("forward passes only", {"pulls": pulls}, 1 + 2 * pulls),
        Way("backpropagation, equal pulls", {"pulls": pulls, "by": "gradient"}, 1 + pulls, pulls),
        Way("backpropagation, equal calls", {"pulls": 2 * pulls, "by": "gradient"}, 1 + 2 * pulls, 2 * pulls),
    ]


@dataclass(frozen=True)
class Outcome:
    """What one way gave on one region.

    Attributes:
        way: its name.
        region: where.
        difference: mean squared difference from the guide before the pass against seams.
        after_seams: the same after it.
        cpu: seconds of the joint pass.
        memory: peak above the loaded model, MB, of this region and those before it.
    """

    way: str
    region: str
    difference: float
    after_seams: float
    cpu: float
    memory: float


@dataclass(frozen=True)
class Job:
    """What every way is measured with."""

    model: str
    step: Magnification
    steps: int
    guidance: float
    rate: float
    seams: int
    threads: int


def measure(job: Job, way: Way, regions: list[TissueRegion]) -> list[Outcome]:
    """One way on several regions; for a process of its own, whose peak memory is read."""
    torch.set_num_threads(job.threads)
    pipe = JointMultiScalePipeline.over(load(job.model))
    pipe.set_progress_bar_config(disable=True)
    loaded = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forgets the peak of loading (Linux, proc(5))
    outcomes = []
    for seed, region in enumerate(regions):
        watch = _JointPass(way.calls * job.step.grid**2 * job.steps + job.steps)
        with tempfile.TemporaryDirectory() as folder:
            state = Path(folder) / "state"
            sampled = pipe.sample(
                region.embeddings,
                job.step,
                num_inference_steps=job.steps,
                guidance_scale=job.guidance,
                rate=job.rate,
                seam_start=job.seams * SEAM_STRIDE,
                generator=torch.Generator().manual_seed(seed),
                state=state,
                save_every=1000,  # at the end only
                progress=watch,
                **way.options,
            )
            patches = load_file(state)[pipe.ladder.steps[0].name]  # as the joint pass left them
        memory = _memory("VmHWM") - loaded
        before = _difference(pipe, sampled, merge(patches, job.step.grid))
        after = _difference(pipe, sampled, sampled.latent)
        outcomes.append(Outcome(way.name, region.name, before, after, watch.seconds, memory))
    return outcomes


class _JointPass:
    """CPU seconds until so many forward passes of the denoiser are done."""

    def __init__(self, passes: int) -> None:
        self._passes, self._began, self.seconds = passes, time.process_time(), 0.0

    def __call__(self, done: int, total: int) -> None:
        if done == self._passes:
            self.seconds = time.process_time() - self._began


def _difference(pipe: JointMultiScalePipeline, sampled: Sampled, latent: Tensor) -> float:
    (guide,) = sampled.coarser.values()
    seen, wanted = (2 * pipe.picture(part, "pt") - 1 for part in (latent, guide))
    return float((downscale(seen, seen.shape[-1] // wanted.shape[-1]) - wanted).square().mean())


def _memory(field: str) -> float:
    """MB of this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", default=DATA, help="folder of the test data")
    parser.add_argument("--model", default="zoomldm-tiny")
    parser.add_argument("--guide", default="10x", help="above 10x the held-out pictures are continued by mirroring")
    parser.add_argument("--regions", type=int, default=3)
    parser.add_argument("--compared", type=int, default=1, help="regions of them that backpropagation is measured on")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pulls", type=int, default=2)
    parser.add_argument("--rate", type=float, default=0.5)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--seams", type=int, default=6, help="steps of the pass against seams")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=FOLDER / "consistency.json")
    options = parser.parse_args()
    pipe = load(options.model)
    step = BRCA[options.guide]
    numbers = ("regions", "compared", "steps", "pulls", "rate", "guidance", "seams", "threads")
    chosen = {"guide": step.name} | {name: getattr(options, name) for name in numbers}
    results = Results.open(options.out, facts(pipe, options.model) | chosen)
    job = Job(options.model, step, options.steps, options.guidance, options.rate, options.seams, options.threads)
    regions = regions_at(pipe, options.data, step, options.regions)
    for way in ways(options.pulls):
        if not results.find(way=way.name):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                outcomes = pool.apply(measure, (job, way, regions[: options.compared] if way.backward else regions))
            for outcome in outcomes:
                results.add(asdict(outcome))
    show(results, options.pulls)


def show(results: Results, pulls: int) -> None:
    """A row a way: means over its regions; and what is relative to forward passes only, on the same regions."""
    columns = ("way", "regions", "denoiser calls", "of them backward", "difference", "after seams", "CPU s", "peak MB")
    unguided, base, *others = ways(pulls)
    rows = []
    for way in ways(pulls):
        count = len(results.find(way=way.name))
        numbers = [f"{_mean(results, way, name):.4f}" for name in ("difference", "after_seams")]
        cost = [f"{_mean(results, way, 'cpu'):.1f}", f"{_mean(results, way, 'memory'):.0f}"]
        rows.append((way.name, str(count), str(way.calls), str(way.backward), *numbers, *cost))
    factors = [
        _mean(results, unguided, "difference", [row["region"]]) / row["difference"]
        for row in results.find(way=base.name)
    ]
    lowered = _mean(results, unguided, "difference") / _mean(results, base, "difference")
    smoothed = _mean(results, unguided, "after_seams") / _mean(results, base, "after_seams")
    notes = [
        f"{base.name} lowers the difference {lowered:.1f} times ({min(factors):.1f} to {max(factors):.1f} on single "
        f"regions), {smoothed:.1f} times after the pass against seams"
    ]
    for way in others:
        seen = [row["region"] for row in results.find(way=way.name)]
        ratios = [
            _mean(results, way, name, seen) / _mean(results, base, name, seen)
            for name in ("cpu", "memory", "difference")
        ]
        notes.append(
            f"{way.name} / {base.name}, on the same regions: CPU time {ratios[0]:.2f}, peak memory {ratios[1]:.2f}, "
            f"difference {ratios[2]:.2f}"
        )
    results.report(columns, rows, notes)


def _mean(results: Results, way: Way, name: str, regions: list[str] | None = None) -> float:
    found = results.find(way=way.name)
    return float(np.mean([row[name] for row in found if regions is None or row["region"] in regions]))


if __name__ == "__main__":
    main()

"""How well large images agree with their guide, and what that costs.

Three images a region from one seed, all by the same model: unguided, by finite differences (forward passes only), by
backpropagation at an equal number of forward passes of the denoiser. Reported are the mean squared difference between
the guide's patch and the mosaic seen from afar, time, and the peak memory of a fresh process beyond what loading took.

``python -m benchmarks.generation.consistency SLIDE... --guide 5x --regions 2``
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.generation.regions import TissueRegion, load, tissue_regions
from generation.joint_sampling import SEAM_STRIDE
from generation.pipelines.joint import JointMultiScalePipeline
from generation.resize import downscale

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Way:
    """A way of sampling.

    Attributes:
        name: shown.
        options: of the pipeline.
        passes: forward passes of the denoiser, for each patch and noise level.
        backward: the same through which it backpropagates.
    """

    name: str
    options: dict[str, Any]
    passes: int
    backward: int = 0


def ways(pulls: int) -> list[Way]:
    """Unguided; ``pulls`` by finite differences; as many by backpropagation; and those of an equal number of passes."""
    return [
        Way("unguided", {"pulls": 0}, 1),
        Way("differences", {"pulls": pulls}, 1 + 2 * pulls),
        Way("gradient, equal pulls", {"pulls": pulls, "by": "gradient"}, 1 + pulls, pulls),
        Way("gradient, equal passes", {"pulls": 2 * pulls, "by": "gradient"}, 1 + 2 * pulls, 2 * pulls),
    ]


@dataclass(frozen=True)
class Outcome:
    """What one way gave on one region.

    Attributes:
        way: its name.
        region: where.
        difference: mean squared difference from the guide, of values in [-1, 1], before the pass against seams.
        after_seams: the same after it.
        seconds: of the joint pass.
        memory: peak beyond what the loaded model took, MB.
    """

    way: str
    region: str
    difference: float
    after_seams: float
    seconds: float
    memory: float


def measure(model: str, way: Way, region: TissueRegion, guide: str, steps: int, threads: int) -> Outcome:
    """One image, in a process of its own: a process's peak memory never falls."""
    torch.set_num_threads(threads)
    pipe = JointMultiScalePipeline.over(load(model))
    pipe.set_progress_bar_config(disable=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    began = time.perf_counter()
    options = {"num_inference_steps": steps, **way.options}
    sampled = pipe.sample(region.embeddings, guide, seam_start=0, generator=torch.Generator().manual_seed(0), **options)
    seconds = time.perf_counter() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    difference = _difference(pipe, sampled)
    smoothed = pipe.sample(
        region.embeddings, guide, seam_start=6 * SEAM_STRIDE, generator=torch.Generator().manual_seed(0), **options
    )
    return Outcome(way.name, region.name, difference, _difference(pipe, smoothed), seconds, memory)


def _difference(pipe: JointMultiScalePipeline, sampled: Any) -> float:
    (guide,) = sampled.coarser.values()
    seen, wanted = (2 * pipe.picture(latent, "pt") - 1 for latent in (sampled.latent, guide))
    return float((downscale(seen, seen.shape[-1] // wanted.shape[-1]) - wanted).square().mean())


def main() -> None:
    """Measures and writes a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slides", type=Path, nargs="+")
    parser.add_argument("--model", default="zoomldm-tiny")
    parser.add_argument("--guide", default="5x")
    parser.add_argument("--regions", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pulls", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS / "consistency.json")
    arguments = parser.parse_args()
    regions = tissue_regions(load(arguments.model), arguments.slides, arguments.guide, arguments.regions)
    outcomes = []
    console = Console()
    context = multiprocessing.get_context("spawn")
    for region in regions:
        for way in ways(arguments.pulls):
            with context.Pool(1) as pool:
                job = (arguments.model, way, region, arguments.guide, arguments.steps, arguments.threads)
                outcomes.append(pool.apply(measure, job))
            console.print(outcomes[-1])
    show(outcomes, arguments.pulls, console)
    arguments.out.parent.mkdir(exist_ok=True)
    facts = {name: str(value) for name, value in vars(arguments).items() if name not in ("out", "slides")}
    arguments.out.write_text(json.dumps({"settings": facts, "outcomes": [asdict(o) for o in outcomes]}, indent=1))


def show(outcomes: list[Outcome], pulls: int, console: Console) -> None:
    """A row a way: means over the regions, and ratios to finite differences."""
    table = Table(title="agreement with the guide")
    for column in ("way", "passes", "backward", "difference", "after seams", "s", "peak MB", "time x", "memory x"):
        table.add_column(column, justify="left" if column == "way" else "right")
    means = {}
    for way in ways(pulls):
        chosen = [o for o in outcomes if o.way == way.name]
        means[way.name] = [
            float(np.mean([getattr(o, name) for o in chosen]))
            for name in ("difference", "after_seams", "seconds", "memory")
        ]
    base = means["differences"]
    for way in ways(pulls):
        difference, after, seconds, memory = means[way.name]
        table.add_row(
            way.name,
            str(way.passes),
            str(way.backward),
            f"{difference:.5f}",
            f"{after:.5f}",
            f"{seconds:.1f}",
            f"{memory:.0f}",
            f"{seconds / base[2]:.2f}",
            f"{memory / base[3]:.2f}",
        )
    console.print(table)
    console.print(
        f"difference from the guide, unguided / differences: {means['unguided'][0] / base[0]:.1f} before the pass "
        f"against seams, {means['unguided'][1] / base[1]:.1f} after it"
    )


if __name__ == "__main__":
    main()

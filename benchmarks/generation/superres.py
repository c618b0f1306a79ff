"""Super-resolution on held-out tissue, as in ZoomLDM's Table 3: ``python -m benchmarks.generation.superres``.

Regions at 20x are seen at 5x by an area mean and brought back: by bicubic interpolation, and by the model without a
condition, under the true embeddings of the region's 20x patches, and under embeddings inferred from the coarse image.
Each is held against the truth by the metrics of ``benchmarks.metrics``; similarity is that of the embeddings of 20x
patches, by the encoder that conditions the model.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from rich.console import Console

from benchmarks.generation.methods import METHODS
from benchmarks.generation.regions import DATA, load, whole_pictures
from benchmarks.generation.results import FOLDER, Results, facts
from benchmarks.metrics.compare import as_pixels
from benchmarks.metrics.registry import PairMetric, find_pair_metric
from generation.inversion import STEPS
from generation.pipelines.baselines import BicubicUpscaler
from generation.pipelines.superres import SuperResolutionPipeline
from zoomfeat.magnification import BRCA
from zoomfeat.progress import progress_bar
from zoomfeat.slides.resample import resize

ST_LPIPS = Path("weights") / "stlpips_alex_shift_tolerant.pth"
"""Below the folder of test data."""


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", default=DATA, help="folder of the test data")
    parser.add_argument("--model", default="zoomldm-tiny")
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--regions", type=int, default=8, help="four held-out pictures, then test patches")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--pulls", type=int, default=2)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--inversion-steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=FOLDER / "superres.json")
    options = parser.parse_args()
    pipe = SuperResolutionPipeline.over(load(options.model))
    pipe.set_progress_bar_config(disable=True)
    pipe.magnification_of(options.scale)
    chosen = {
        name: getattr(options, name) for name in ("scale", "regions", "steps", "pulls", "guidance", "inversion_steps")
    }
    results = Results.open(options.out, facts(pipe, options.model) | chosen)
    metrics = [
        find_pair_metric("ssim")(),
        find_pair_metric("psnr")(),
        find_pair_metric("st-lpips")(weights=options.data / ST_LPIPS),
        find_pair_metric("embedding-similarity")(encoder=pipe.embedding_encoder().at(BRCA.steps[0])),
    ]
    regions = whole_pictures(pipe, options.data, options.regions)
    with progress_bar(Console(stderr=True)) as progress:
        task = progress.add_task("drawing", total=len(regions) * len(METHODS), unit="images")
        for number, region in enumerate(regions):
            coarse = resize(region.image, tuple(side // options.scale for side in region.image.shape[1::-1]))
            truth = as_pixels(region.image)
            for method in METHODS:
                progress.advance(task)
                if results.find(method=method, region=region.name):
                    continue
                began = time.process_time()
                if method == "bicubic":
                    made = BicubicUpscaler()(coarse, options.scale, output_type="pt", return_dict=False)[0]
                else:
                    made = pipe(
                        coarse,
                        options.scale,
                        method,
                        region.embeddings if method == "given" else None,
                        num_inference_steps=options.steps,
                        pulls=options.pulls,
                        guidance_scale=options.guidance,
                        inversion_steps=options.inversion_steps,
                        generator=torch.Generator().manual_seed(number),
                        output_type="pt",
                        return_dict=False,
                    )[0]
                row = {"method": method, "region": region.name, "cpu": time.process_time() - began}
                made = (made.clamp(0, 1) * 255).round() / 255  # what a file would hold
                results.add(row | {metric.name: float(metric.score(made, truth)) for metric in metrics})
    show(results, metrics)


def show(results: Results, metrics: list[PairMetric]) -> None:
    """A row a method, means over the regions."""
    names = [metric.name for metric in metrics] + ["cpu"]
    means = {
        method: {name: float(np.mean([row[name] for row in results.find(method=method)])) for name in names}
        for method in METHODS
    }
    rows = [(method, *(f"{means[method][name]:.4g}" for name in names)) for method in METHODS]
    similarity = metrics[-1].name
    gains = [
        mine[similarity] - results.find(method="uncond", region=mine["region"])[0][similarity]
        for mine in results.find(method="inferred")
    ]
    error = f" ± {np.std(gains, ddof=1) / len(gains) ** 0.5:.4f}" if len(gains) > 1 else ""
    notes = [
        f"inferred - uncond, {similarity}: {np.mean(gains):+.4f}{error} (mean and standard error over "
        f"{len(gains)} regions), higher on {sum(gain > 0 for gain in gains)}"
    ]
    arrows = [" ↑" if metric.higher_is_better else " ↓" for metric in metrics] + [""]
    titles = [*(metric.name for metric in metrics), "CPU s a region"]
    results.report(("condition", *(t + a for t, a in zip(titles, arrows, strict=True))), rows, notes)


if __name__ == "__main__":
    main()

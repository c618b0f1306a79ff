"""Super-resolution on real tissue, in the shape of ZoomLDM's Table 3: bicubic, uncond, given and inferred conditions.

Regions are read at 20x, seen at 5x by an area mean, and brought back by each method. SSIM and PSNR, a perceptual
distance in the form of LPIPS on EfficientNet-Lite0 features, and the cosine similarity between the model's own
embeddings of true and drawn 20x patches.

``python -m benchmarks.generation.superres SLIDE... --regions 8``
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from benchmarks.generation.regions import TissueRegion, as_pixels, load, tissue_regions
from generation.perceptual import EfficientNetDistance
from generation.pipelines.baselines import BicubicUpscaler
from generation.pipelines.superres import SuperResolutionPipeline
from zoomfeat.encoders import PatchEncoder
from zoomfeat.magnification import BRCA, PATCH_SIZE
from zoomfeat.slides.resample import resize

RESULTS = Path(__file__).parent / "results"
METHODS = ("bicubic", "uncond", "given", "inferred")


@dataclass(frozen=True)
class Score:
    """One result against the truth.

    Attributes:
        method: of :data:`METHODS`.
        region: where.
        ssim: structural similarity.
        psnr: dB.
        perceptual: distance, less is better.
        embedding: mean cosine similarity of the embeddings of 20x patches.
        seconds: taken.
    """

    method: str
    region: str
    ssim: float
    psnr: float
    perceptual: float
    embedding: float
    seconds: float


def main() -> None:
    """Measures and writes a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slides", type=Path, nargs="+")
    parser.add_argument("--model", default="zoomldm-tiny")
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--regions", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pulls", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS / "superres.json")
    arguments = parser.parse_args()
    pipe = SuperResolutionPipeline.over(load(arguments.model))
    pipe.set_progress_bar_config(disable=True)
    step = pipe.magnification_of(arguments.scale)
    regions = tissue_regions(pipe, arguments.slides, step.name, arguments.regions)
    encoder = pipe.embedding_encoder().at(BRCA.steps[0])
    distance = EfficientNetDistance(1.0)
    scores = []
    for region in regions:
        side = region.image.shape[0] // arguments.scale
        coarse = resize(region.image, (side, side))
        for method in METHODS:
            began = time.perf_counter()
            if method == "bicubic":
                found = BicubicUpscaler()(coarse, arguments.scale, output_type="pt", return_dict=False)[0]
            else:
                found = pipe(
                    coarse,
                    arguments.scale,
                    method,  # type: ignore[arg-type]
                    region.embeddings if method == "given" else None,
                    num_inference_steps=arguments.steps,
                    pulls=arguments.pulls,
                    generator=torch.Generator().manual_seed(0),
                    output_type="pt",
                    return_dict=False,
                )[0]
            seconds = time.perf_counter() - began
            scores.append(score(method, region, found.clamp(0, 1), encoder, distance, seconds))
    show(scores, Console())
    arguments.out.parent.mkdir(exist_ok=True)
    facts = {name: str(value) for name, value in vars(arguments).items() if name not in ("out", "slides")}
    arguments.out.write_text(json.dumps({"settings": facts, "scores": [asdict(s) for s in scores]}, indent=1))


@torch.no_grad()
def score(
    method: str,
    region: TissueRegion,
    found: torch.Tensor,
    encoder: PatchEncoder,
    distance: EfficientNetDistance,
    seconds: float,
) -> Score:
    """Holds ``(1, 3, H, W)`` in [0, 1] against a region."""
    truth = as_pixels(region.image)
    pixels = (found[0].permute(1, 2, 0) * 255).round().byte().numpy()
    grid = len(pixels) // PATCH_SIZE
    patches = (
        pixels.reshape(grid, PATCH_SIZE, grid, PATCH_SIZE, 3).swapaxes(1, 2).reshape(-1, PATCH_SIZE, PATCH_SIZE, 3)
    )
    embeddings = torch.from_numpy(encoder(np.ascontiguousarray(patches)))
    similarity = functional.cosine_similarity(embeddings, region.embeddings.flatten(1).T, dim=1).mean()
    return Score(
        method,
        region.name,
        float(structural_similarity_index_measure(found, truth, data_range=1.0)),  # type: ignore[arg-type]
        float(peak_signal_noise_ratio(found, truth, data_range=1.0)),
        float(distance(2 * found - 1, 2 * truth - 1)),
        float(similarity),
        seconds,
    )


def show(scores: list[Score], console: Console) -> None:
    """A row a method, means over the regions."""
    table = Table(title="super-resolution")
    names = ("ssim", "psnr", "perceptual", "embedding", "seconds")
    table.add_column("method")
    for name in names:
        table.add_column(name, justify="right")
    for method in METHODS:
        chosen = [score for score in scores if score.method == method]
        table.add_row(method, *(f"{np.mean([getattr(s, name) for s in chosen]):.4g}" for name in names))
    console.print(table)


if __name__ == "__main__":
    main()

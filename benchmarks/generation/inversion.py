"""Does condition inversion recover what embeddings tell? The denoising loss under true, inferred and random embeddings.

On real 5x regions, the loss of training (mean squared error of the noise) at timesteps and noises that the inversion
did not see.

``python -m benchmarks.generation.inversion SLIDE... --regions 20``
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.generation.regions import as_pixels, load, tissue_regions
from generation.batches import seeded_normal
from generation.inversion import STEPS, infer_embeddings
from generation.losses import predict
from zoomfeat.magnification import BRCA, PATCH_SIZE
from zoomfeat.models.zoomldm import ZoomLDM
from zoomfeat.slides.resample import resize

RESULTS = Path(__file__).parent / "results"
TIMESTEPS = (100, 300, 500, 700, 900)
NOISES = 4


@torch.no_grad()
def loss(bundle: ZoomLDM, latents: Tensor, embeddings: Tensor, magnification: int) -> float:
    """Mean squared error of the predicted noise, over timesteps and noises that are the same for all embeddings."""
    errors = []
    for t in TIMESTEPS:
        noise = torch.stack([seeded_normal(latents.shape[1:], 77, t, draw) for draw in range(NOISES)])
        found = predict(
            bundle.unet,
            bundle.summarizer,
            latents.expand_as(noise),
            [embeddings] * NOISES,
            torch.full((NOISES,), magnification),
            torch.full((NOISES,), t),
            bundle.scheduler.alphas_cumprod[torch.full((NOISES,), t)],
            noise,
        )
        errors.append(float(found.squared_error.mean()))
    return float(np.mean(errors))


def main() -> None:
    """Measures and writes a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slides", type=Path, nargs="+")
    parser.add_argument("--model", default="zoomldm-tiny")
    parser.add_argument("--magnification", default="5x")
    parser.add_argument("--regions", type=int, default=20)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=RESULTS / "inversion.json")
    arguments = parser.parse_args()
    pipe = load(arguments.model)
    step = BRCA[arguments.magnification]
    regions = tissue_regions(pipe, arguments.slides, step.name, arguments.regions)
    names: list[str] = []
    rows: list[dict[str, float]] = []
    for number, region in enumerate(regions):
        pixels = 2 * as_pixels(resize(region.image, (PATCH_SIZE, PATCH_SIZE)))[0] - 1
        latents = pipe.encode(pixels[None])
        inferred = infer_embeddings(pipe, pixels, step, seed=number, steps=arguments.steps)
        random = seeded_normal(inferred.shape, 5, number)
        other = regions[(number + 1) % len(regions)].embeddings
        losses = {
            name: loss(pipe, latents, embeddings, step.index)
            for name, embeddings in (
                ("true", region.embeddings),
                ("inferred", inferred),
                ("another region's", other),
                ("random", random),
            )
        }
        names.append(region.name)
        rows.append(losses)
    table = Table(title=f"denoising loss on {len(rows)} regions at {step}")
    for column in ("embeddings", "loss", "against true"):
        table.add_column(column, justify="left" if column == "embeddings" else "right")
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    for name, mean in means.items():
        table.add_row(name, f"{mean:.5f}", f"{mean / means['true']:.3f}")
    console = Console()
    console.print(table)
    better = sum(row["inferred"] < row["random"] for row in rows)
    console.print(f"inferred is below random on {better} of {len(rows)} regions")
    arguments.out.parent.mkdir(exist_ok=True)
    facts = {name: str(value) for name, value in vars(arguments).items() if name not in ("out", "slides")}
    arguments.out.write_text(json.dumps({"settings": facts, "regions": names, "losses": rows}, indent=1))


if __name__ == "__main__":
    main()

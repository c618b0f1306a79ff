"""Does condition inversion recover what embeddings tell? ``python -m benchmarks.generation.inversion``.

The denoising loss (mean squared error of the noise, as in training) of real patches under true, inferred, random and
another patch's embeddings, at timesteps and noises that the inversion did not see. Patches at 20x are test patches
of LUAD and LUSC; at 5x they are held-out pictures, continued by their mirror image.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from benchmarks.generation.regions import DATA, load, regions_at
from benchmarks.generation.results import FOLDER, Results, facts
from benchmarks.metrics.compare import as_pixels
from generation.batches import seeded_normal
from generation.inversion import STEPS, infer_embeddings
from generation.losses import predict
from zoomfeat.magnification import BRCA, PATCH_SIZE
from zoomfeat.models.zoomldm import ZoomLDM
from zoomfeat.progress import progress_bar
from zoomfeat.slides.resample import resize

KINDS = ("true", "inferred", "random", "another's", "none")


@torch.no_grad()
def loss(
    bundle: ZoomLDM, latents: Tensor, embeddings: Tensor | None, magnification: int, timesteps: int, noises: int
) -> float:
    """Mean squared error of the predicted noise, over timesteps and noises that are the same for all embeddings.

    None for embeddings is the null condition.
    """
    grid = torch.zeros(bundle.summarizer.config.input_dim, 1, 1) if embeddings is None else embeddings
    errors = []
    for t in torch.linspace(50, 950, timesteps).long().tolist():
        noise = torch.stack([seeded_normal(latents.shape[1:], 77, t, draw) for draw in range(noises)])
        found = predict(
            bundle.unet,
            bundle.summarizer,
            latents.expand_as(noise),
            [grid] * noises,
            torch.full((noises,), magnification),
            torch.full((noises,), t),
            bundle.scheduler.alphas_cumprod[torch.full((noises,), t)],
            noise,
            torch.full((noises,), embeddings is None),
        )
        errors.append(float(found.squared_error.mean()))
    return float(np.mean(errors))


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", default=DATA, help="folder of the test data")
    parser.add_argument("--model", default="zoomldm-tiny")
    parser.add_argument("--patches", type=int, default=20, help="at 20x")
    parser.add_argument("--coarse", type=int, default=4, help="patches at 5x")
    parser.add_argument("--steps", type=int, default=STEPS, help="of Adam")
    parser.add_argument("--timesteps", type=int, default=7, help="at which the loss is measured")
    parser.add_argument("--noises", type=int, default=2, help="at each of them")
    parser.add_argument("--out", type=Path, default=FOLDER / "inversion.json")
    options = parser.parse_args()
    pipe = load(options.model)
    chosen = {name: getattr(options, name) for name in ("patches", "coarse", "steps", "timesteps", "noises")}
    results = Results.open(options.out, facts(pipe, options.model) | chosen)
    with progress_bar(Console(stderr=True)) as progress:
        task = progress.add_task("inverting", total=options.patches + options.coarse, unit="patches")
        for step, count in ((BRCA["20x"], options.patches), (BRCA["5x"], options.coarse)):
            regions = regions_at(pipe, options.data, step, count)
            for number, region in enumerate(regions):
                progress.advance(task)
                if results.find(magnification=step.name, patch=region.name):
                    continue
                pixels = 2 * as_pixels(resize(region.image, (PATCH_SIZE, PATCH_SIZE)))[0] - 1
                latents = pipe.encode(pixels[None])
                inferred = infer_embeddings(pipe, pixels, step, seed=number, steps=options.steps)
                random = seeded_normal(inferred.shape, 5, number)
                others = regions[(number + 1) % count].embeddings
                tried = zip(KINDS, (region.embeddings, inferred, random, others, None), strict=True)
                sizes = (step.index, options.timesteps, options.noises)
                losses = {kind: loss(pipe, latents, embeddings, *sizes) for kind, embeddings in tried}
                results.add({"magnification": step.name, "patch": region.name} | losses)
    show(results)


def show(results: Results) -> None:
    """A row for each kind of embeddings."""
    rows: list[tuple[str, ...]] = []
    notes = []
    for step in ("20x", "5x"):
        found = results.find(magnification=step)
        if not found:
            continue
        means = {kind: float(np.mean([row[kind] for row in found])) for kind in KINDS}
        rows += [
            (f"{step}, {kind}", str(len(found)), f"{means[kind]:.4f}", f"{means[kind] / means['true']:.3f}")
            for kind in KINDS
        ]
        lower = sum(row["inferred"] < row["random"] for row in found)
        near = sum(row["inferred"] < 1.1 * row["true"] for row in found)
        notes.append(
            f"{step}: with inferred embeddings the loss is below that with random ones on {lower} of {len(found)} "
            f"patches, and less than 10 % above that with true ones on {near}"
        )
    results.report(("embeddings", "patches", "denoising loss", "against true"), rows, notes)


if __name__ == "__main__":
    main()

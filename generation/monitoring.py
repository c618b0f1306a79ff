"""What a model under training can do by now: held-out loss per magnification and noise level, and sampled images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers import DDIMScheduler
from PIL import Image
from torch import Tensor

from generation.batches import Batch, Levels, TrainingData, read_batch, seeded_normal
from generation.losses import predict
from generation.pipelines.patch import ZoomLDMPipeline
from zoomfeat.files import replacing
from zoomfeat.models.summarizer import embedding_grid
from zoomfeat.models.zoomldm import ZoomLDM

TIMESTEP_BINS = 4
"""Validation losses are kept apart in this many equal parts of the noise schedule."""


HELD_OUT_COLUMNS = ["magnification", "timestep_bin", "loss", "null_loss", "items"]
"""Of a row of :func:`validate`."""


@torch.no_grad()
def validate(
    bundle: ZoomLDM, data: TrainingData, levels: Levels, accelerator: Accelerator, *, items: int, seed: int
) -> list[dict[str, Any]]:
    """Held-out losses, on the same items, timesteps and noise whenever it is called.

    Args:
        bundle: the model.
        data: where the items lie.
        levels: held-out items of each magnification.
        accelerator: the items are shared out among its processes.
        items: how many of each magnification.
        seed: decides which, and their noise.

    Returns:
        A row each magnification and timestep bin (0 is the least noise): the mean squared error with the items'
        conditions, the same with the null condition (the difference is what the conditions tell), and their number.
    """
    rng = np.random.default_rng(seed)
    chosen = [int(item) for places in levels.values() for item in rng.permutation(places)[:items]]
    rows: list[tuple[int, int, float, float]] = []
    for item in chosen[accelerator.process_index :: accelerator.num_processes]:
        batch = read_batch(data, [item]).to(accelerator.device)
        with accelerator.autocast():
            rows += _item_losses(bundle, batch, seed, item)
    table = pd.DataFrame(gather_object(rows), columns=["level", "timestep_bin", "loss", "null_loss"])
    groups = table.groupby(["level", "timestep_bin"])
    means = groups[["loss", "null_loss"]].mean().assign(items=groups.size()).reset_index()
    means.insert(0, "magnification", [str(data.ladder.steps[level]) for level in means.pop("level")])
    return [dict(zip(means.columns, row, strict=True)) for row in means.itertuples(index=False)]


def _item_losses(bundle: ZoomLDM, batch: Batch, seed: int, item: int) -> list[tuple[int, int, float, float]]:
    """One item at a timestep of every bin: level, bin, loss with its condition and without."""
    latents = batch.encoded(bundle.vae)
    abar = bundle.scheduler.alphas_cumprod.to(latents.device)
    width = len(abar) // TIMESTEP_BINS
    offsets = np.random.default_rng([seed, item]).integers(width, size=TIMESTEP_BINS)
    timesteps = torch.from_numpy(offsets + width * np.arange(TIMESTEP_BINS)).to(latents.device)
    noise = torch.stack([seeded_normal(latents.shape[1:], seed, item, bin_) for bin_ in range(TIMESTEP_BINS)])
    noise = noise.to(latents.device)
    means = []
    for null in (False, True):
        errors = predict(
            bundle.unet,
            bundle.summarizer,
            latents.expand_as(noise),
            batch.grids * TIMESTEP_BINS,
            batch.magnifications.expand(TIMESTEP_BINS),
            timesteps,
            abar[timesteps],
            noise,
            torch.full((TIMESTEP_BINS,), null, device=latents.device),
        ).squared_error
        means.append(errors.mean((1, 2, 3)).tolist())
    level = int(batch.magnifications[0])
    return [(level, bin_, *losses) for bin_, losses in enumerate(zip(*means, strict=True))]


@torch.no_grad()
def sample_images(bundle: ZoomLDM, batch: Batch, *, steps: int, guidance: float, seed: int) -> Tensor:
    """Images sampled under the conditions of a batch, by DDIM.

    Args:
        bundle: the model.
        batch: its grids and magnifications are the conditions.
        steps: of the sampler.
        guidance: scale of classifier-free guidance; 1 is none.
        seed: decides the initial noise.

    Returns:
        ``(B, 3, H, W)`` in [-1, 1].
    """
    tokens = bundle.summarizer([embedding_grid(grid[None])[0] for grid in batch.grids], batch.magnifications)
    pipe = ZoomLDMPipeline(**bundle.components | {"scheduler": DDIMScheduler.from_config(bundle.scheduler.config)})
    noise = torch.stack([seeded_normal(pipe.latent_shape, seed, item) for item in batch.items]).to(tokens.device)
    return bundle.decode(pipe.denoise(noise, tokens, steps, guidance)).clamp(-1, 1)


def write_samples(
    bundle: ZoomLDM,
    data: TrainingData,
    levels: Levels,
    path: Path,
    *,
    steps: int,
    guidance: float,
    seed: int,
    columns: int = 4,
) -> None:
    """A PNG with a row a magnification, finest first: pairs of a real image and a sample under its condition."""
    rows = []
    for places in levels.values():
        items = [int(item) for item in np.resize(places, columns)]  # repeats where a magnification has few
        batch = read_batch(data, items, images=True).to(bundle.device)
        assert batch.images is not None  # asked for
        rows.append((batch.images, sample_images(bundle, batch, steps=steps, guidance=guidance, seed=seed)))
    write_grid(rows, path)


def write_grid(rows: Sequence[tuple[Tensor, Tensor]], path: Path) -> None:
    """Writes pairs of images side by side, as a PNG.

    Args:
        rows: for each row of the picture the left and the right images of its pairs, ``(n, 3, H, W)`` in [-1, 1].
        path: the file.

    Raises:
        ZoomfeatError: it cannot be written.
    """
    strips = [torch.cat([image for pair in zip(*row, strict=True) for image in pair], dim=2) for row in rows]
    pixels = (torch.cat(strips, dim=1).clamp(-1, 1) * 127.5 + 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    with replacing(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")

"""Sixteen patches of a real slide learned by heart: the loss falls, and what is sampled is what was learned."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor

from generation.batches import read_batch, read_images
from generation.commands.prepare import run as prepare
from generation.data import TrainingSet
from generation.first_stage import standardise_latents
from generation.initial import initial_model
from generation.monitoring import sample_images
from generation.train import train_ldm
from zoomfeat.conf.compose import compose_config
from zoomfeat.encoders.zoomldm import TINY
from zoomfeat.models.zoomldm import ZoomLDM


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)  # half an hour to an hour on one core
def test_sixteen_real_patches_are_learned_and_drawn_again(shared, tmp_path):
    slide = shared / "slides" / "CMU-1-Small-Region.svs"
    first_stage = _first_stage_of(slide, tmp_path)
    data = _prepared(slide, first_stage, tmp_path / "set")
    assert data.counts == {"10x": 16}
    config = compose_config(
        "train-ldm",
        [
            f"data={tmp_path / 'set'}", f"out={tmp_path / 'run'}", f"first_stage={first_stage}", "size=tiny",
            "steps=3000", "schedule=cosine", "warmup=50", "learning_rate=1e-3", "max_grad_norm=1", "batch_size=8",
            "loss_weight=velocity", "drop_condition=0", "ema_decay=0.99", "held_out=0", "validate_every=0",
            "sample_every=0", "workers=0", "device=cpu",
        ],
    )  # fmt: skip
    bundle, _ = initial_model(config, data.embedding_dim)
    latest = train_ldm(config, data, bundle)

    losses = pd.read_csv(tmp_path / "run" / "metrics.csv")["loss"]
    assert losses.tail(20).mean() < 0.05 * losses.iloc[0]

    trained = ZoomLDM.load(latest / "model")
    everything = read_batch(data, range(len(data)))
    learned = trained.decode(everything.encoded(trained.vae)).clamp(-1, 1)
    assert max(psnr(learned.roll(shift, 0), learned).max() for shift in range(1, 16)) < 20, "two patches are alike"
    sampled = [sample_images(trained, everything, steps=50, guidance=1, seed=seed) for seed in range(3)]
    found = torch.stack([psnr(images, learned) for images in sampled])
    assert found.mean(0).min() > 20  # each patch, over three noises
    assert (found > 20).float().mean() > 0.9


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """In dB, of each of the images ``(B, 3, H, W)`` in [-1, 1]."""
    return 10 * torch.log10(4 / (a - b).square().mean((1, 2, 3)))


def _first_stage_of(slide: Path, folder: Path) -> Path:
    """That of `zoomldm-tiny`, with latents centred over these patches as training a first stage leaves them."""
    vae = ZoomLDM.load(TINY).vae
    images = read_images(data := _prepared(slide, None, folder / "images"), range(len(data)))
    with torch.no_grad():
        standardise_latents(vae, torch.cat([vae.encode(image[None]).latents for image in images]))
    vae.save_pretrained(folder / "vae")
    return folder / "vae"


def _prepared(slide: Path, first_stage: Path | None, out: Path) -> TrainingSet:
    out.mkdir()
    words = [f"slides={slide}", f"out={out}", "ssl_encoder=efficientnet-lite0", "magnifications=10x"]
    words += ["min_tissue=0.15", "min_tissue_coarsest=0.15"]
    config = compose_config("prepare", words if first_stage is None else [*words, f"first_stage={first_stage}"])
    assert prepare(config) == 0
    return TrainingSet.open(out)

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from generation.data import TrainingSet
from generation.index import Index, Shard, SlideRecord
from zoomfeat.conf.compose import compose_config
from zoomfeat.conf.schema import TrainLDMConfig
from zoomfeat.magnification import BRCA
from zoomfeat.models.architecture import build_first_stage, build_scheduler, build_unet
from zoomfeat.models.summarizer import Summarizer
from zoomfeat.models.zoomldm import ZoomLDM

EMBEDDING_DIM = 12


def write_training_set(
    folder: Path, levels: dict[int, int], *, slides: int = 3, latents: bool = True, seed: int = 0
) -> Path:
    """A training set of noise, with ``levels[index]`` items of each magnification in each slide."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    records = {}
    for slide in (f"slide-{number}" for number in range(slides)):
        shards = []
        for level, count in levels.items():
            rows = [_row(rng, level, latents) for _ in range(count)]
            file = folder / f"{slide}-{level}.parquet"
            pd.DataFrame(rows).to_parquet(file)
            shards.append(Shard(file.name, str(BRCA.steps[level]), count, file.stat().st_size))
        records[slide] = SlideRecord(slide, (0.5, 0.5), "test", {}, tuple(shards))
    configuration = {"magnifications": [str(BRCA.steps[level]) for level in levels]}
    Index(configuration, EMBEDDING_DIM, (3, 8, 8) if latents else None, slides=records).save(folder)
    return folder


def _row(rng: np.random.Generator, level: int, latent: bool) -> dict[str, object]:
    side = min(2**level, 8)
    png = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (256, 256, 3), np.uint8)).save(png, "PNG")
    row: dict[str, object] = {
        "image": png.getvalue(),
        "ssl_feat": rng.standard_normal((EMBEDDING_DIM, side, side)).astype(np.float32).tolist(),
        "mag": level,
    }
    if latent:
        row["latent"] = rng.standard_normal((3, 8, 8)).astype(np.float32).tolist()
    return row


@pytest.fixture(scope="session")
def make_training_set() -> Callable[..., Path]:
    return write_training_set


@pytest.fixture(scope="session")
def training_folder(tmp_path_factory) -> Path:
    """Three slides with items at 20x, 5x and 1.25x, fewer the coarser."""
    return write_training_set(tmp_path_factory.mktemp("data") / "set", {0: 3, 2: 2, 4: 1})


@pytest.fixture(scope="session")
def training_set(training_folder) -> TrainingSet:
    return TrainingSet.open(training_folder)


def small_bundle() -> ZoomLDM:
    """The smallest ZoomLDM that its blocks allow; latents of 8 x 8."""
    torch.manual_seed(0)
    return ZoomLDM(
        vae=build_first_stage((8,) * 6, codes=16, norm_num_groups=8, sample_size=256),
        unet=build_unet((32, 32), context_dim=16, sample_size=8),
        summarizer=Summarizer(EMBEDDING_DIM, 16, 16, num_layers=1, num_heads=2, mlp_dim=16),
        scheduler=build_scheduler(),
    )


@pytest.fixture(scope="session")
def small_model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    small_bundle().save_pretrained(folder)
    return folder


@pytest.fixture
def ldm_words(training_folder, small_model, tmp_path) -> Callable[..., list[str]]:
    """Words of a short, small ``train-ldm``; later ones win."""

    def make(*words: str, out: str = "run") -> list[str]:
        keys = {
            "data": training_folder, "out": tmp_path / out, "init": small_model, "steps": 6, "batch_size": 4,
            "warmup": 2, "learning_rate": 1e-3, "held_out": 0.3, "validate_every": 3, "validation_items": 2,
            "checkpoint_every": 3, "log_every": 2, "workers": 0, "device": "cpu", "sample_every": 0,
        }  # fmt: skip
        keys |= dict(word.split("=", 1) for word in words)
        return [f"{name}={value}" for name, value in keys.items()]

    return make


@pytest.fixture
def ldm_config(ldm_words) -> Callable[..., TrainLDMConfig]:
    def make(*words: str, out: str = "run") -> TrainLDMConfig:
        return compose_config("train-ldm", ldm_words(*words, out=out))

    return make

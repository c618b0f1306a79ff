"""Training of the conditioning model: it learns, it resumes to the bit, and it refuses what does not fit."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from generation.conditioning import ConditioningDiT, sample_tokens
from generation.train_cdm import initial_cdm, read_grids, summarise, train_cdm
from zoomfeat.cli import main
from zoomfeat.conf.schema import TrainCDMConfig
from zoomfeat.errors import CheckpointMismatchError, ConfigurationError, ZoomfeatError
from zoomfeat.magnification import BRCA
from zoomfeat.models.summarizer import Summarizer

WIDTH = 12
LEVELS = (0, 3)


@dataclass
class _Sample:
    """An item of which only the embeddings can be read."""

    grid: np.ndarray

    @property
    def image(self) -> np.ndarray:
        raise AssertionError("tokens do not depend on images")

    @property
    def latent(self) -> np.ndarray | None:
        raise AssertionError("tokens do not depend on latents")


class _Data:
    """Embeddings in memory."""

    ladder = BRCA

    def __init__(self, items: int = 24) -> None:
        rng = np.random.default_rng(0)
        self.magnifications = np.array([LEVELS[i % 2] for i in range(items)])
        self.slides = [f"slide-{i // 4}" for i in range(items)]
        self.samples = [_Sample(rng.normal(size=(WIDTH, 2**m, 2**m)).astype(np.float32)) for m in self.magnifications]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> _Sample:
        return self.samples[index]


@pytest.fixture
def data() -> _Data:
    return _Data()


@pytest.fixture
def summarizer() -> Summarizer:
    torch.manual_seed(0)
    return Summarizer(WIDTH, 16, 16, num_layers=1, num_heads=2, mlp_dim=32)


def _model() -> ConditioningDiT:
    torch.manual_seed(1)
    return ConditioningDiT(token_dim=16, hidden_dim=32, num_layers=2, num_heads=2)


def _config(out: Path, **changes) -> TrainCDMConfig:
    options = {
        "batch_size": 8, "steps": 6, "warmup": 2, "learning_rate": 1e-3, "log_every": 1, "checkpoint_every": 2,
        "validate_every": 3, "held_out": 0.2, "ema_decay": 0.9, "workers": 0, "device": "cpu",
    }  # fmt: skip
    return TrainCDMConfig(data="in memory", model="zoomldm", out=str(out), **(options | changes))


def _weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return ConditioningDiT.load(checkpoint / "model").state_dict()


def test_training_lowers_the_loss_and_samples_follow_the_magnification(tmp_path, data, summarizer):
    config = _config(tmp_path, steps=250, batch_size=16, learning_rate=3e-3, checkpoint_every=250, validate_every=250)
    model = ConditioningDiT.load(train_cdm(config, data, summarizer, _model()) / "model")

    losses = pd.read_csv(tmp_path / "metrics.csv")["loss"]
    assert losses[-20:].mean() < 0.5 * losses[:5].mean()
    validation = pd.read_csv(tmp_path / "validation.csv")
    assert validation["magnification"].tolist() == ["20x", "2.5x"]
    assert (validation["loss"] < losses[:5].mean()).all()

    tokens = summarise(summarizer, read_grids(data, range(len(data))))
    true = [tokens[data.magnifications == level].mean(0) for level in LEVELS]
    drawn = [sample_tokens(model, [level] * 16, torch.Generator().manual_seed(0), steps=10).mean(0) for level in LEVELS]
    apart = (true[0] - true[1]).norm()
    for i in range(2):
        assert (drawn[i] - true[i]).norm() < 0.5 * apart
        assert (drawn[i] - true[1 - i]).norm() > 0.7 * apart


class _Killed(_Data):
    """Ends the run at its n-th read, in the middle of a step."""

    reads_left = 8 * 4 + 3  # after the checkpoint of step 4

    def __getitem__(self, index: int) -> _Sample:
        self.reads_left -= 1
        if self.reads_left < 0:
            raise KeyboardInterrupt
        return super().__getitem__(index)


def test_a_run_that_is_killed_and_resumed_equals_one_that_is_not(tmp_path, data, summarizer):
    whole = train_cdm(_config(tmp_path / "whole", validate_every=0), data, summarizer, _model())
    config = _config(tmp_path / "killed", validate_every=0)
    with pytest.raises(KeyboardInterrupt):
        train_cdm(config, _Killed(), summarizer, _model())
    assert [path.name for path in sorted((tmp_path / "killed/checkpoints").iterdir())][-1] == "step-00000004"
    resumed = train_cdm(config, data, summarizer, _model())
    expected, found = _weights(whole), _weights(resumed)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    state = "state/model.safetensors"
    assert (resumed / state).read_bytes() == (whole / state).read_bytes()
    assert (tmp_path / "killed/metrics.csv").read_text() == (tmp_path / "whole/metrics.csv").read_text()


def test_accumulated_micro_batches_equal_one_batch(tmp_path, data, summarizer):
    one = _weights(train_cdm(_config(tmp_path / "one", steps=2), data, summarizer, _model()))
    four = _weights(train_cdm(_config(tmp_path / "four", steps=2, accumulate=4), data, summarizer, _model()))
    for key in one:
        torch.testing.assert_close(four[key], one[key], rtol=1e-4, atol=1e-4)


def test_the_summarizer_is_frozen(tmp_path, data, summarizer):
    before = {key: tensor.clone() for key, tensor in summarizer.state_dict().items()}
    train_cdm(_config(tmp_path, steps=2), data, summarizer, _model())
    assert all(torch.equal(tensor, before[key]) for key, tensor in summarizer.state_dict().items())


def test_a_resume_with_another_configuration_is_refused(tmp_path, data, summarizer):
    train_cdm(_config(tmp_path, steps=2), data, summarizer, _model())
    with pytest.raises(ConfigurationError, match=r"learning_rate \(was 0.001, is 0.01\)"):
        train_cdm(_config(tmp_path, steps=4, learning_rate=0.01), data, summarizer, _model())
    other = Summarizer(WIDTH, 16, 16, num_layers=1, num_heads=2, mlp_dim=32)
    with pytest.raises(ConfigurationError, match=r"model \(was \w+, is \w+\)"):
        train_cdm(_config(tmp_path, steps=4), data, other, _model())


def test_embeddings_that_are_not_finite_stop_the_run_with_their_items_named(tmp_path, data, summarizer):
    data.samples[5].grid[:] = np.nan
    config = _config(tmp_path, steps=50, checkpoint_every=1, held_out=0)
    with pytest.raises(ZoomfeatError, match=r"loss is not finite in step \d+, at item 5 \(2.5x of slide-1\)"):
        train_cdm(config, data, summarizer, _model())
    for checkpoint in (tmp_path / "checkpoints").glob("step-*"):
        assert all(tensor.isfinite().all() for tensor in _weights(checkpoint).values())


def test_data_that_do_not_fit_the_summarizer_are_refused(tmp_path, data, summarizer):
    wider = Summarizer(WIDTH + 1, 16, 16, num_layers=1, num_heads=2, mlp_dim=32)
    with pytest.raises(CheckpointMismatchError, match=r"width 13, the data's have 12"):
        initial_cdm(_config(tmp_path), wider, WIDTH)
    shorter = Summarizer(WIDTH, 16, 16, num_layers=1, num_heads=2, mlp_dim=32, num_magnifications=3)
    with pytest.raises(ConfigurationError, match=r"the data hold 2.5x, the model knows 20x, 10x, 5x"):
        train_cdm(_config(tmp_path), data, shorter, _model())


def test_fresh_weights_follow_the_seed_and_the_summarizer(tmp_path, summarizer):
    first, second = (initial_cdm(_config(tmp_path, size="tiny"), summarizer, WIDTH).state_dict() for _ in range(2))
    other = initial_cdm(_config(tmp_path, size="tiny", seed=1), summarizer, WIDTH)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(other.x_embedder.weight, first["x_embedder.weight"])
    assert (other.config.token_dim, other.config.num_tokens) == (16, 65)
    assert sum(parameter.numel() for parameter in other.parameters()) < 2.5e6


def test_training_goes_on_from_either_layout(tmp_path, summarizer):
    model = ConditioningDiT(token_dim=16, hidden_dim=384, num_layers=1, num_heads=6)
    model.save_pretrained(tmp_path / "cdm")
    weights = model.state_dict()
    torch.save({"model": weights, "ema": weights, "opt": {}, "args": argparse.Namespace()}, tmp_path / "cdm.pt")
    for name in ("cdm", "cdm.pt"):
        found = initial_cdm(_config(tmp_path, init=str(tmp_path / name)), summarizer, WIDTH).state_dict()
        assert all(torch.equal(found[key], weights[key]) for key in weights)
    narrower = Summarizer(WIDTH, 16, 8, num_layers=1, num_heads=2, mlp_dim=32)
    with pytest.raises(CheckpointMismatchError, match="tokens of another Summarizer"):
        initial_cdm(_config(tmp_path, init=str(tmp_path / "cdm")), narrower, WIDTH)


def test_the_command(tmp_path, training_folder, small_model, capsys):
    out = tmp_path / "cdm"
    words = ["steps=2", "batch_size=4", "size=tiny", "workers=0", "device=cpu", "held_out=0.3", "validate_every=2"]
    assert main(["train-cdm", f"data={training_folder}", f"model={small_model}", f"out={out}", *words]) == 0
    folder = out / "checkpoints/step-00000002/model"
    assert str(folder) in capsys.readouterr().out.replace("\n", "")
    assert ConditioningDiT.load(folder).config.token_dim == 16
    assert pd.read_csv(out / "validation.csv")["magnification"].tolist() == ["20x", "5x", "1.25x"]


def test_keys_out_of_range_are_refused_before_anything_is_loaded(tmp_path, capsys):
    assert main(["train-cdm", f"data={tmp_path}", "model=absent", f"out={tmp_path}", "size=B"]) == 2
    assert "size='B'; expected full or tiny" in capsys.readouterr().err

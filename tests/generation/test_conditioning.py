"""The conditioning model: parity with the reference, its weights in both layouts, and its sampler."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from generation.conditioning import SIZES, ConditioningDiT, clean, ddim_scheduler, sample_tokens
from zoomfeat.errors import CheckpointMismatchError, ConfigurationError, MagnificationError

TOLERANCE = 1e-5


def _error(found, expected):
    assert found.shape == expected.shape
    return float((found - expected).norm() / expected.norm())


def _model(seed: int = 0) -> ConditioningDiT:
    """A small model whose gates are open: a fresh one predicts zeros, whatever it is asked."""
    model = ConditioningDiT(num_tokens=5, token_dim=6, hidden_dim=8, num_layers=2, num_heads=2).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model


@pytest.fixture(scope="module")
def golden(shared):
    return load_file(shared / "zoomldm-golden" / "golden.safetensors")


@pytest.fixture(scope="module")
def released(shared):
    return ConditioningDiT.from_checkpoint(shared / "zoomldm-golden" / "cdm.pt", num_heads=4)


@pytest.mark.shared_data
@pytest.mark.parametrize("timestep", [0, 250, 999])
@torch.no_grad()
def test_output_equals_the_reference(golden, released, timestep):
    found = released(golden["cdm/x"].mT, timestep, golden["cdm/y"])
    assert _error(found.mT, golden[f"cdm/out_t{timestep}"]) < TOLERANCE


@pytest.mark.shared_data
@torch.no_grad()
def test_trajectory_equals_the_reference(golden, released):
    scheduler = ddim_scheduler(5)
    assert scheduler.timesteps.tolist() == golden["cdm/ddim5_timesteps"].flip(0).tolist()
    tokens = golden["cdm/x"].mT
    for i, timestep in enumerate(scheduler.timesteps):
        tokens = scheduler.step(clean(released(tokens, timestep, golden["cdm/y"])), timestep, tokens).prev_sample
        assert _error(tokens.mT, golden[f"cdm/ddim5_sample_{i}"]) < TOLERANCE, timestep


@pytest.mark.shared_data
def test_averaged_and_raw_weights_are_told_apart(shared, released):
    raw = ConditioningDiT.from_checkpoint(shared / "zoomldm-golden" / "cdm.pt", ema=False, num_heads=4)
    assert not torch.equal(raw.x_embedder.weight, released.x_embedder.weight)


@pytest.mark.shared_data
@pytest.mark.parametrize("size", SIZES)
def test_released_keys_of_every_size(shared, size):
    expected = json.loads((shared / "zoomldm-golden" / "released_keys_cdm.json").read_text())[f"DiT-{size}"]["keys"]
    with torch.device("meta"):
        model = ConditioningDiT(**SIZES[size])
    found = {key: [list(tensor.shape), "float32"] for key, tensor in model.state_dict().items()}
    assert found == expected


@pytest.fixture
def release(tmp_path) -> Path:
    """A checkpoint as the release lays it out; raw and averaged weights differ."""
    path = tmp_path / "cdm.pt"
    raw, averaged = _model(0).state_dict(), _model(1).state_dict()
    torch.save({"model": raw, "ema": averaged, "opt": {"state": {}}, "args": argparse.Namespace(model="DiT-B")}, path)
    return path


def _load(path: Path, **options) -> ConditioningDiT:
    return ConditioningDiT.from_checkpoint(path, num_heads=2, **options)


def _equal(a: ConditioningDiT, b: ConditioningDiT) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_round_trip_through_both_layouts(release, tmp_path):
    assert _equal(_load(release, ema=False), _model(0))
    averaged = _load(release)
    assert _equal(averaged, _model(1))
    averaged.save_pretrained(tmp_path / "cdm")
    again = ConditioningDiT.load(tmp_path / "cdm")
    assert _equal(again, averaged)
    assert again.config.num_heads == 2
    assert list((tmp_path / "cdm").glob("*.safetensors"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("blocks.1.mlp.fc1.bias"), r"1 keys .*: blocks\.1\.mlp\.fc1\.bias"),
        (lambda s: s.update({"blocks.1.extra": torch.ones(1)}), r"1 keys .*: blocks\.1\.extra"),
        (lambda s: s.update({"final_layer.linear.bias": torch.ones(6)}), r"1 keys .*: final_layer\.linear\.bias"),
        (lambda s: s.pop("x_embedder.weight"), r"not a conditioning DiT \('x_embedder\.weight'\)"),
        (lambda s: s.update({"args": 3}), "no state dict 'ema'"),
    ],
)
def test_weights_that_do_not_fit_are_refused_with_their_keys(release, change, message):
    checkpoint = torch.load(release, weights_only=False)
    change(checkpoint["ema"])
    torch.save(checkpoint, release)
    with pytest.raises(CheckpointMismatchError, match=message) as caught:
        _load(release)
    assert str(release) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_without_averaged_weights_is_refused(release):
    torch.save({"model": _model().state_dict()}, release)
    with pytest.raises(CheckpointMismatchError, match="'ema'"):
        _load(release)
    assert _load(release, ema=False)


@pytest.mark.parametrize("num_heads", [None, 3])
def test_heads_that_the_weights_do_not_show(release, num_heads):
    with pytest.raises(CheckpointMismatchError, match=r"num_heads=, a divisor of 8"):
        ConditioningDiT.from_checkpoint(release, num_heads=num_heads)


class _Bomb:
    def __reduce__(self):
        return os.system, ("touch bomb-went-off",)


@pytest.mark.parametrize("args", [_Bomb(), argparse.Namespace(model=_Bomb())])
def test_a_pickle_that_would_execute_code_is_refused(release, tmp_path, monkeypatch, args):
    monkeypatch.chdir(tmp_path)
    torch.save({"ema": _model().state_dict(), "args": args}, release)
    with pytest.raises(CheckpointMismatchError, match=r"calls (posix|nt)\.system"):
        _load(release)
    assert not (tmp_path / "bomb-went-off").exists()


def test_allowing_the_arguments_does_not_outlast_the_load(release):
    _load(release)
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 broken zip"])
def test_garbage_is_refused(release, content):
    release.write_bytes(content)
    with pytest.raises(CheckpointMismatchError, match=r"not (a safe|readable as a) checkpoint"):
        _load(release)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointMismatchError, match=r"absent.*no such file"):
        ConditioningDiT.load(tmp_path / "absent.pt")


def test_a_folder_that_lacks_weights_is_refused(tmp_path):
    with pytest.raises(CheckpointMismatchError, match="not a ConditioningDiT folder"):
        ConditioningDiT.load(tmp_path)
    _model().save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    del weights["blocks.0.attn.qkv.bias"]
    save_file(weights, file)
    with pytest.raises(CheckpointMismatchError, match=r"1 keys .* blocks\.0\.attn\.qkv\.bias"):
        ConditioningDiT.load(tmp_path)


def test_samples_follow_seed_and_magnification():
    model = _model()

    def draw(*magnifications):
        return sample_tokens(model, magnifications, torch.Generator().manual_seed(0), steps=3)

    assert draw(1, 7).shape == (2, 5, 6)
    assert torch.equal(draw(1, 7), draw(1, 7))
    assert not torch.allclose(draw(1), draw(7))


def test_a_sample_with_its_own_generator_does_not_depend_on_its_batch():
    model = _model()
    together = sample_tokens(model, [2, 5], [torch.Generator().manual_seed(seed) for seed in (0, 1)], steps=3)
    alone = sample_tokens(model, [5], [torch.Generator().manual_seed(1)], steps=3)
    torch.testing.assert_close(together[1:], alone)


def test_half_precision():
    tokens = sample_tokens(_model().to(torch.bfloat16), [0, 3], torch.Generator().manual_seed(0), steps=3)
    assert tokens.dtype == torch.bfloat16
    assert tokens.isfinite().all()


@pytest.mark.parametrize("magnification", [[8], [-1], [], [[0]]])
def test_unknown_magnifications_are_refused(magnification):
    with pytest.raises(MagnificationError, match="knows 0 to 7"):
        sample_tokens(_model(), magnification, steps=2)


@pytest.mark.parametrize("steps", [1, 1001])
def test_step_counts_out_of_range_are_refused(steps):
    with pytest.raises(ConfigurationError, match="2 to 1000"):
        sample_tokens(_model(), [0], steps=steps)

"""Parity with the reference implementation, on its own inputs and outputs (relative L2, float32)."""

from __future__ import annotations

import pytest
import torch

from zoomfeat.models.denoiser import activations
from zoomfeat.models.summarizer import embedding_grid

pytestmark = pytest.mark.shared_data
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("index", range(8))
def test_summarizer_tokens(golden, averaged, error, index):
    tokens = averaged.summarizer(golden[f"summ/feat_m{index}"], index)
    assert error(tokens, golden[f"summ/tokens_m{index}"]) < TOLERANCE


@pytest.mark.parametrize("index", range(4))
def test_summarizer_places_tokens_in_the_middle_of_the_sequence(golden, averaged, error, index):
    assert error(averaged.summarizer.place(list(golden[f"summ/feat_m{index}"])), golden[f"summ/placed_m{index}"]) < 1e-6


def test_summarizer_takes_a_rectangular_grid(golden, averaged, error):
    assert error(averaged.summarizer(golden["summ/feat_rect2x3"], 1), golden["summ/tokens_rect2x3"]) < TOLERANCE


def test_summarizer_takes_a_batch_of_mixed_magnifications(golden, averaged, error):
    grids = [golden[f"summ/feat_m{i}"][0] for i in (0, 2, 7)]
    tokens = averaged.summarizer(grids, torch.tensor([0, 2, 7]))
    expected = torch.stack([golden[f"summ/tokens_m{i}"][0] for i in (0, 2, 7)])
    assert error(tokens, expected) < TOLERANCE


def test_embedding_grid_is_pooled_and_normalised(golden, error):
    assert error(embedding_grid(golden["prep/grid16"][None])[0], golden["prep/normalised8"]) < TOLERANCE


@pytest.mark.parametrize("weights", ["ema", "raw"])
@pytest.mark.parametrize("timestep", [1, 250, 999])
def test_noise_prediction(golden, request, error, weights, timestep):
    unet = request.getfixturevalue("averaged" if weights == "ema" else "raw").unet
    tokens = golden["summ/tokens_m2"]
    assert error(unet(golden["unet/x"], timestep, tokens).sample, golden[f"unet_{weights}/eps_t{timestep}"]) < TOLERANCE
    null = unet(golden["unet/x"], timestep, torch.zeros_like(tokens)).sample
    assert error(null, golden[f"unet_{weights}/eps_null_t{timestep}"]) < TOLERANCE


def test_noise_prediction_with_mixed_and_fractional_timesteps(golden, averaged, error):
    tokens = golden["summ/tokens_m2"]
    mixed = averaged.unet(golden["unet/x"], torch.tensor([1, 999]), tokens).sample
    assert error(mixed, golden["unet_ema/eps_mixed_t1_999"]) < TOLERANCE
    between = averaged.unet(golden["unet/x"], 333.5, tokens).sample
    assert error(between, golden["unet_ema/eps_t333.5_float"]) < TOLERANCE


def test_averaged_and_raw_weights_are_told_apart(golden, averaged, raw, error):
    assert averaged.weights_hash() != raw.weights_hash()
    assert error(golden["unet_raw/eps_t250"], golden["unet_ema/eps_t250"]) > 100 * TOLERANCE


def _golden_name(tap: str) -> str:
    stage, _, number = tap.partition(".")
    return f"hidden_ema_t250/{stage}_{int(number):02d}" if number else f"hidden_ema_t250/{stage}"


RELEASE_TAPS = [
    *(f"input_blocks.{i}" for i in range(12)),
    "middle_block",
    *(f"output_blocks.{i}" for i in range(12)),
]


def test_every_tap_of_the_release(golden, averaged, error):
    tokens = golden["summ/tokens_m2"][:1]
    found = activations(averaged.unet, golden["unet/x_hidden"], 250, tokens, RELEASE_TAPS)
    errors = {tap: error(found[tap], golden[_golden_name(tap)]) for tap in RELEASE_TAPS}
    assert max(errors.values()) < TOLERANCE, errors


def test_first_stage(golden, averaged, error):
    assert error(averaged.encode(golden["vq/img"]), golden["vq/latent"]) < TOLERANCE
    assert error(averaged.decode(golden["vq/latent"]), golden["vq/decoded"]) < TOLERANCE
    assert error(averaged.decode(golden["vq/wide_latent"]), golden["vq/wide_decoded"]) < TOLERANCE
    unquantised = averaged.vae.decode(golden["vq/latent"], force_not_quantize=True).sample
    assert error(unquantised, golden["vq/decoded_no_quant"]) < TOLERANCE

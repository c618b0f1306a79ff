"""Networks by oneDNN give what the same networks of diffusers give."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from zoomfeat.conf.schema import ZoomLDMTinyConfig
from zoomfeat.encoders.zoomldm import ZoomLDMEncoder, untrained_tiny
from zoomfeat.models import onednn
from zoomfeat.models.denoiser import activations, without_condition
from zoomfeat.models.distilled import LatentEncoder

pytestmark = pytest.mark.skipif(not onednn.available(), reason="this PyTorch has no oneDNN")

TAPS = ["conv_in", "mid", "up_blocks.0", "up_blocks.3"]


@pytest.fixture(scope="module")
def bundle():
    found = untrained_tiny(seed=3)
    for part in (found.vae, found.unet, found.summarizer):
        part.eval().requires_grad_(False)
    return found


def near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).abs().max() <= 1e-4 * expected.abs().max())


@torch.inference_mode()
@pytest.mark.parametrize("batch", [1, 3])
def test_the_denoiser_is_the_same_at_every_tap_with_and_without_a_condition(bundle, batch):
    latents = torch.randn(batch, bundle.unet.config.in_channels, 32, 32)
    context = torch.randn(batch, 65, bundle.unet.config.cross_attention_dim)
    for unet in (bundle.unet, without_condition(bundle.unet)):
        fast = onednn.accelerated(unet)
        for _ in range(2):  # the second run has the weights in order
            found = activations(fast, latents, 100, context, TAPS)
            for tap, expected in activations(unet, latents, 100, context, TAPS).items():
                assert near(found[tap], expected), tap


@torch.inference_mode()
def test_sizes_other_than_the_first_are_served(bundle):
    fast = onednn.accelerated(bundle.unet)
    context = bundle.summarizer.null_context(1)
    for side in (32, 16, 64):
        latents = torch.randn(1, bundle.unet.config.in_channels, side, side)
        expected = activations(bundle.unet, latents, 7, context, ["up_blocks.1"])["up_blocks.1"]
        assert near(activations(fast, latents, 7, context, ["up_blocks.1"])["up_blocks.1"], expected)


@torch.inference_mode()
def test_the_first_stage_is_the_same_both_ways(bundle):
    fast = onednn.accelerated(bundle.vae)
    pixels = torch.rand(2, 3, 128, 128) * 2 - 1
    latents = bundle.vae.encode(pixels).latents
    assert near(fast.encode(pixels).latents, latents)
    assert near(fast.decode(latents).sample, bundle.vae.decode(latents).sample)


@torch.inference_mode()
def test_inputs_stay_as_they_are_and_layers_are_replaced(bundle):
    fast = onednn.accelerated(bundle.unet)
    latents = torch.randn(1, bundle.unet.config.in_channels, 32, 32)
    before, context = latents.clone(), bundle.summarizer.null_context(1)
    first = activations(fast, latents, 100, context, TAPS)
    kept = {tap: hidden.clone() for tap, hidden in first.items()}
    activations(fast, latents, 100, context, TAPS)
    assert torch.equal(latents, before)
    assert all(torch.equal(first[tap], kept[tap]) for tap in TAPS), "what was given back is not written over"
    assert not any(type(layer) in (nn.Linear, nn.Conv2d) for layer in fast.modules())
    assert not any(isinstance(layer, ResnetBlock2D) for layer in fast.modules())
    assert any(type(layer) is nn.Linear for layer in bundle.unet.modules()), "the original is left alone"
    own = {parameter.data_ptr() for parameter in bundle.unet.parameters()}
    assert {parameter.data_ptr() for parameter in fast.parameters()} <= own, "weights are shared"


def test_gradients_of_inputs_are_those_of_the_plain_network(bundle):
    latents = torch.randn(1, bundle.unet.config.in_channels, 32, 32)
    context, found = bundle.summarizer.null_context(1), []
    fast = onednn.accelerated(bundle.unet)
    with torch.no_grad():
        activations(fast, latents, 100, context, ["up_blocks.0"])  # whose ordered weights have no gradient
    for unet in (fast, bundle.unet):
        own = latents.clone().requires_grad_()
        activations(unet, own, 100, context, ["up_blocks.0"])["up_blocks.0"].square().mean().backward()
        found.append(own.grad)
    assert found[1].abs().max() > 0
    assert near(*found)


def test_features_equal_those_of_the_plain_networks(bundle, monkeypatch):
    images = torch.randint(0, 256, (2, 256, 256, 3), dtype=torch.uint8).numpy()
    options = ZoomLDMTinyConfig(taps=["mid", "up_blocks.0"])
    fast = ZoomLDMEncoder(bundle, options, "20x", "cpu")
    monkeypatch.setattr(onednn, "available", lambda: False)
    plain = ZoomLDMEncoder(bundle, options, "20x", "cpu")
    a, b = fast(images), plain(images)
    assert abs(a - b).max() <= 1e-4 * abs(b).max()
    assert fast.settings == plain.settings
    assert fast.weights_hash == plain.weights_hash


@torch.inference_mode()
def test_a_distilled_encoder_is_the_same():
    torch.manual_seed(0)
    encoder = LatentEncoder(3, 8).eval()
    pixels = torch.rand(2, 3, 256, 256) * 2 - 1
    assert near(onednn.accelerated(encoder)(pixels), encoder(pixels))


def test_memory_that_is_kept_is_still_memory():
    onednn.keep_memory()
    for _ in range(3):
        assert torch.ones(2**24).sum() == 2**24

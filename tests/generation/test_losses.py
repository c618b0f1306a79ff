"""The loss code path against the reference implementation, and what a dropped condition means."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from generation.losses import inversion_loss, predict
from zoomfeat.encoders.zoomldm import untrained_tiny
from zoomfeat.models.zoomldm import ZoomLDM


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).norm() / expected.norm())


@pytest.mark.shared_data
@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_three_steps_of_inversion_match_the_reference(shared, weights):
    folder = shared / "zoomldm-golden"
    golden = load_file(folder / "golden.safetensors")
    bundle = ZoomLDM.from_checkpoint(folder / "weights.ckpt", ema=weights == "ema")
    embeddings = golden["inv/emb0"].clone().requires_grad_()
    optimizer = torch.optim.Adam([embeddings], lr=0.1)
    for step, t in enumerate(golden["inv/t"].tolist()):
        loss = inversion_loss(
            bundle.unet,
            bundle.summarizer,
            golden["inv/z0"],
            embeddings,
            int(golden["inv/mag"]),
            float(t),
            bundle.scheduler.alphas_cumprod[t - 1],
            golden["inv/noise"][step],
        )
        optimizer.zero_grad()
        loss.total.backward()
        assert embeddings.grad is not None
        name = f"inv_{weights}"
        terms = torch.stack([loss.total, loss.error, loss.similarity]).detach()
        assert error(terms, golden[f"{name}/loss{step}"]) < 1e-5
        assert error(loss.prediction.tokens.detach(), golden[f"{name}/ctx{step}"]) < 1e-5
        assert error(loss.prediction.noise.detach(), golden[f"{name}/eps{step}"]) < 1e-5
        assert error(embeddings.grad, golden[f"{name}/grad{step}"]) < 1e-4
        optimizer.step()
        assert error(embeddings.detach(), golden[f"{name}/emb{step + 1}"]) < 1e-5


@pytest.fixture(scope="module")
def bundle() -> ZoomLDM:
    return untrained_tiny()


def batch(count: int) -> tuple:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(count, 4, 8, 8, generator=generator),
        [torch.randn(1280, 2**i, 2**i, generator=generator) for i in range(count)],
        torch.arange(count),
        torch.full((count,), 500),
        torch.full((count,), 0.3),
        torch.randn(count, 4, 8, 8, generator=generator),
    )


@torch.no_grad()
def test_a_dropped_condition_is_zeros_after_the_summarizer(bundle):
    inputs = batch(2)
    found = predict(bundle.unet, bundle.summarizer, *inputs, torch.tensor([False, True]))
    assert found.tokens[0].abs().sum() > 0
    assert not found.tokens[1].any()
    noisy = 0.3**0.5 * inputs[0] + 0.7**0.5 * inputs[5]
    null = bundle.unet(noisy[1:], 500, bundle.summarizer.null_context(1)).sample
    torch.testing.assert_close(found.noise[1:], null, rtol=1e-4, atol=1e-4)


def test_a_batch_without_conditions_still_gives_every_weight_a_gradient(bundle):
    found = predict(bundle.unet, bundle.summarizer, *batch(2), torch.tensor([True, True]))
    found.squared_error.mean().backward()
    assert all(p.grad is not None for part in (bundle.unet, bundle.summarizer) for p in part.parameters())
    bundle.unet.zero_grad()
    bundle.summarizer.zero_grad()

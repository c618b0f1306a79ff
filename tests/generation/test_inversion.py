"""Condition inversion: the reference's three steps through the optimiser used, and that it lowers its objective."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from generation.inversion import infer_embeddings, invert, patch_places
from tests.generation.conftest import EMBEDDING_DIM, small_bundle
from zoomfeat.magnification import BRCA
from zoomfeat.models.zoomldm import ZoomLDM


@pytest.fixture(scope="module")
def bundle() -> ZoomLDM:
    return small_bundle()


@pytest.mark.shared_data
@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_three_steps_move_the_embeddings_as_the_reference_does(shared, weights):
    folder = shared / "zoomldm-golden"
    golden = load_file(folder / "golden.safetensors")
    model = ZoomLDM.from_checkpoint(folder / "weights.ckpt", ema=weights == "ema")
    totals: list[float] = []
    found = invert(
        model,
        golden["inv/z0"],
        golden["inv/emb0"],
        int(golden["inv/mag"]),
        golden["inv/t"].tolist(),
        golden["inv/noise"],
        on_step=lambda loss: totals.append(loss.total.item()),
    )
    expected = golden[f"inv_{weights}/emb3"]
    assert float((found - expected).norm() / expected.norm()) < 1e-5
    assert totals == pytest.approx([golden[f"inv_{weights}/loss{step}"][0].item() for step in range(3)], rel=1e-5)
    assert all(weight.grad is None for weight in model.unet.parameters())


def test_the_objective_falls_on_noise_that_does_not_change(bundle):
    latents, noise = torch.randn(1, 3, 8, 8), torch.randn(1, 3, 8, 8)
    totals: list[float] = []
    start = torch.randn(EMBEDDING_DIM, 4, 4)
    found = invert(
        bundle, latents, start, 2, [500] * 30, [noise] * 30, on_step=lambda loss: totals.append(loss.total.item())
    )
    assert totals[-1] < totals[0] - 0.01
    assert found.shape == start.shape
    assert not torch.equal(found, start)


def test_an_image_is_covered_patch_by_patch():
    assert patch_places(256, 512) == [(0, 0), (0, 256)]
    assert patch_places(320, 256) == [(0, 0), (64, 0)]


def test_embeddings_are_inferred_for_any_size_and_repeatably(bundle):
    image = torch.rand(3, 256, 320) * 2 - 1
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1

    one, again = (infer_embeddings(bundle, image, BRCA["5x"], seed=4, steps=2, on_step=count) for _ in range(2))
    assert steps == 2 * 2 * 2  # twice, two steps, two patches
    assert one.shape == (EMBEDDING_DIM, 4, 5)
    assert torch.equal(one, again)
    other = infer_embeddings(bundle, image, BRCA["5x"], seed=5, steps=2)
    assert not torch.equal(one, other)
    alone = infer_embeddings(bundle, image[:, :, :256], BRCA["5x"], seed=4, steps=2)
    torch.testing.assert_close(alone[:, :, 0], one[:, :, 0])  # the first column lies under the first patch only

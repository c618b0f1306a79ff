from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from generation.guidance import guide, guided_noise, scale_of_weight
from zoomfeat.encoders.zoomldm import untrained_tiny
from zoomfeat.models.zoomldm import ZoomLDM


def test_the_two_conventions():
    c, u = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(guide(c, u, scale_of_weight(2.0)), 3 * c - 2 * u)
    torch.testing.assert_close(guide(c, u, 1.0), c)


@torch.no_grad()
def test_guided_noise_is_two_predictions():
    bundle = untrained_tiny()
    latents, tokens = torch.randn(2, 4, 32, 32), torch.randn(2, 65, 128)
    c = bundle.unet(latents, 500, tokens).sample
    u = bundle.unet(latents, 500, torch.zeros_like(tokens)).sample
    torch.testing.assert_close(guided_noise(bundle, latents, 500, tokens, 2.0), 2 * c - u, rtol=1e-4, atol=1e-4)


@pytest.mark.shared_data
@torch.no_grad()
def test_both_conventions_of_the_release(shared):
    folder = shared / "zoomldm-golden"
    golden = load_file(folder / "golden.safetensors")
    bundle = ZoomLDM.from_checkpoint(folder / "weights.ckpt")
    for scale, name in ((2.0, "sampler_convention_s2"), (scale_of_weight(2.0), "joint_convention_w2")):
        found = guided_noise(bundle, golden["unet/x"], 700.0, golden["summ/tokens_m2"], scale)
        expected = golden[f"cfg/eps_{name}_t700"]
        assert float((found - expected).norm() / expected.norm()) < 1e-5

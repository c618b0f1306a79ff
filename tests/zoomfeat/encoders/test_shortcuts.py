"""What makes ZoomLDM's features cheaper does not change them: the plain path is the whole UNet, patch by patch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zoomfeat import load_encoder
from zoomfeat.encoders.zoomldm import TINY
from zoomfeat.errors import ConfigurationError
from zoomfeat.models.zoomldm import ZoomLDM


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)


@torch.no_grad()
def plain_features(images, block: int, timestep: int) -> np.ndarray:
    """The whole UNet of diffusers under a context of zeros, and a hook."""
    bundle = ZoomLDM.load(TINY)
    noise = load_encoder("zoomldm-tiny", device="cpu")._noises[0]
    seen = []
    bundle.unet.up_blocks[block].register_forward_hook(lambda module, args, output: seen.append(output))
    for image in images:
        latents = bundle.encode(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1)
        step = torch.tensor([timestep])
        noisy = bundle.scheduler.add_noise(latents, noise, step)
        bundle.unet(noisy, step, torch.zeros(1, *bundle.summarizer.context_shape))
    return torch.cat(seen).mean((2, 3)).numpy()


@pytest.mark.parametrize("block", [0, 2])
def test_features_equal_the_unoptimised_path(images, block):
    expected = plain_features(images, block, 100)
    found = load_encoder("zoomldm-tiny", taps=[f"up_blocks.{block}"], timestep=100, device="cpu")(images)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_several_timesteps_are_the_single_ones_side_by_side_from_one_run_of_the_first_stage(images):
    options = {"taps": ["mid", "up_blocks.0"], "device": "cpu"}
    alone = [load_encoder("zoomldm-tiny", timestep=step, **options)(images) for step in (50, 300)]
    encoder = load_encoder("zoomldm-tiny", timesteps=[50, 300], **options)
    runs, encode = [], encoder._encode  # on a CPU a copy of the bundle's first stage runs
    encoder = encoder.through(lambda pixels: runs.append(1) or encode(pixels))
    together = encoder(images)
    assert together.shape == (2, encoder.dim) == (2, 2 * alone[0].shape[1])
    np.testing.assert_array_equal(together, np.concatenate(alone, axis=1))
    assert len(runs) == len(images)
    assert encoder.settings["timestep"] == [50, 300]
    assert list(encoder.maps(images[:1])) == ["mid@50", "up_blocks.0@50", "mid@300", "up_blocks.0@300"]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_recorded_and_keeps_the_features(images, precision):
    exact = load_encoder("zoomldm-tiny", device="cpu")
    half = load_encoder("zoomldm-tiny", precision=precision, device="cpu")
    assert half.settings == exact.settings | {"precision": precision}
    a, b = exact(images), half(images)
    assert b.dtype == np.float32
    assert not np.array_equal(a, b)
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert cosine.min() > 0.99


@pytest.mark.parametrize("options", [{"timesteps": [50, 50]}, {"timesteps": [5, 1000]}, {"precision": "int8"}])
def test_options_that_do_not_run(options):
    with pytest.raises(ConfigurationError, match=r"timestep|precision"):
        load_encoder("zoomldm-tiny", **options)

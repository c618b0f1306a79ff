"""What makes ZoomLDM's features cheaper does not change them: the plain path is the whole UNet, patch by patch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._inductor import config as inductor

from zoomfeat import load_encoder
from zoomfeat.conf.schema import ZoomLDMConfig
from zoomfeat.encoders.zoomldm import TINY, ZoomLDMEncoder
from zoomfeat.errors import ConfigurationError
from zoomfeat.models.architecture import SUMMARIZERS, build_first_stage, build_scheduler, build_unet
from zoomfeat.models.compiled import check_compiler
from zoomfeat.models.summarizer import Summarizer
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


@pytest.fixture
def small():
    """A ZoomLDM of three levels of one width with random weights, which compiles in less than a minute."""
    torch.manual_seed(0)
    return ZoomLDM(
        vae=build_first_stage((16, 16, 16), codes=64, norm_num_groups=16),
        unet=build_unet((32, 32, 32), context_dim=128),
        summarizer=Summarizer(input_dim=8, **SUMMARIZERS["tiny"]),
        scheduler=build_scheduler(),
    )


@pytest.mark.slow
def test_compiled_networks_give_the_same_features_and_are_recorded(images, small):
    torch.compiler.reset()
    try:
        check_compiler(torch.device("cpu"))
    except ConfigurationError as error:
        pytest.skip(str(error))
    taps = ["conv_in", "down_blocks.1.layers.0"]  # the latter with attention; further ones compile for longer
    exact = ZoomLDMEncoder(small, ZoomLDMConfig(name="small", taps=taps), "20x", "cpu")
    fast = ZoomLDMEncoder(small, ZoomLDMConfig(name="small", taps=taps, compile=True), "20x", "cpu")
    assert fast.settings == exact.settings | {"compile": True}
    expected, found = exact(images), fast.at("5x")(images)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    np.testing.assert_array_equal(fast(images[1:]), found[1:])


def test_where_nothing_compiles_the_encoder_says_so_at_once(small, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # else an earlier run's result would be taken
    torch.compiler.reset()
    with (
        inductor.patch({"cpp.cxx": (str(tmp_path / "no-compiler"),)}),
        pytest.raises(ConfigurationError, match=r"cannot compile for cpu here .*Leave out encoder\.compile") as refused,
    ):
        ZoomLDMEncoder(small, ZoomLDMConfig(name="small", compile=True), "20x", "cpu")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["zoomldm-tiny", "efficientnet-lite0", "color-stats"])
def test_patches_may_be_transformed_where_they_are(images, name):
    encoder = load_encoder(name, device="cpu")
    assert torch.equal(encoder.transform(torch.from_numpy(images)), encoder.transform(images))


def test_a_gpu_is_sent_bytes_from_pinned_memory_without_waiting(images, monkeypatch):
    """What is asked of PyTorch, on machines without a GPU: there the tensor stays where it is."""
    encoder, asked = load_encoder("color-stats", device="cpu"), []
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: asked.append(("pin", tensor.dtype)) or tensor)
    monkeypatch.setattr(Tensor, "to", lambda tensor, device, **keys: asked.append((device.type, keys)) or tensor)
    encoder.device = torch.device("cuda")
    sent = encoder.sent(images)
    assert asked == [("pin", torch.uint8), ("cuda", {"non_blocking": True})]
    np.testing.assert_array_equal(sent, images)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("name", ["zoomldm-tiny", "efficientnet-lite0", "color-stats"])
def test_a_gpu_gives_the_features_of_a_cpu(images, name):
    expected = load_encoder(name, device="cpu")(images)
    assert np.abs(load_encoder(name, device="cuda")(images) - expected).max() <= 1e-2 * np.abs(expected).max()

"""Large latents: seams, blended decoding, and the file that slide readers open."""

from __future__ import annotations

import numpy as np
import openslide
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.generation.large import seam_ratio
from generation.joint_guidance import Estimate, NoiseLevel, noise_levels
from generation.large_image import (
    between,
    decode_bands,
    diffused,
    merge,
    raised_cosine,
    seam_step,
    uniform,
    window_estimate,
)
from generation.tiff import read_arguments, write_pyramid
from tests.generation.conftest import EMBEDDING_DIM, small_bundle
from zoomfeat.errors import ZoomfeatError
from zoomfeat.models.summarizer import embedding_grid
from zoomfeat.models.zoomldm import ZoomLDM

LEVEL = NoiseLevel(100.0, 0.8, 0.9, 0.01)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).norm() / expected.norm())


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def bundle() -> ZoomLDM:
    return small_bundle()


def gaussian(side: int) -> torch.Tensor:
    """The release's weight of decoded windows."""
    line = torch.linspace(-1, 1, side).square()
    return torch.exp(-(line[:, None] + line[None]) / 0.64)


@pytest.mark.shared_data
def test_the_pass_against_seams_and_the_blend_match_the_reference(shared):
    folder = shared / "zoomldm-golden"
    golden = load_file(folder / "golden.safetensors")
    averaged = ZoomLDM.from_checkpoint(folder / "weights.ckpt")
    features = golden["large/ssl_feat"]
    for place, expected in enumerate(golden["large/post_feats"]):
        assert error(between(features, place // 3 / 2, place % 3 / 2), expected) < 1e-6

    merged = merge(golden["large/patches"], 2)
    levels = noise_levels(averaged.scheduler, 100, 50)
    state = diffused(merged, levels[0], merge(golden["large/noise0"], 2))
    assert error(state[None], golden["large/post_x_start"]) < 1e-5
    for step, level in enumerate(levels):
        now = window_estimate(averaged, state, level, features, 3.0, window=16, batch_size=4, weight=uniform)
        assert error(now.clean[None], golden[f"large/post_x0_{step}"]) < 1e-5
        state = seam_step(now, level, golden["large/noises"][step][0])
        assert error(state[None], golden[f"large/post_x_{step}"]) < 1e-5

    image = torch.cat(list(decode_bands(averaged, merged, window=16, batch_size=3, weight=gaussian)), dim=1)
    assert error(image[None], golden["large/decoded_blend"]) < 1e-5


def test_embeddings_between_patches_keep_their_neighbours():
    embeddings = embedding_grid(torch.randn(1, EMBEDDING_DIM, 2, 3))[0]
    torch.testing.assert_close(between(embeddings, 1, 2)[:, 0, 0], embeddings[:, 1, 2], rtol=1e-4, atol=1e-5)
    middle = between(embeddings, 0, 0.5)[:, 0, 0]
    similarities = torch.cosine_similarity(embeddings[:, 0, :2], middle[:, None], dim=0)
    assert similarities[0].item() == pytest.approx(similarities[1].item(), abs=1e-5)
    equal = embeddings[:, :1, :1].expand(-1, 2, 2)
    torch.testing.assert_close(between(equal, 0.5, 0.5)[:, 0, 0], embeddings[:, 0, 0], rtol=1e-4, atol=1e-5)


def test_windows_see_one_patch_as_the_denoiser_does(bundle):
    state = torch.randn(3, 8, 8)
    embeddings = embedding_grid(torch.randn(1, EMBEDDING_DIM, 1, 1))[0]
    found = window_estimate(bundle, state, LEVEL, embeddings, 1.0, window=8, batch_size=2)
    noise = bundle.unet(state[None], 100.0, bundle.summarizer(embeddings[None], 0)).sample[0]
    torch.testing.assert_close(found.noise, noise, rtol=1e-4, atol=1e-4)


def test_windows_come_out_the_same_in_any_batch(bundle):
    state = torch.randn(3, 16, 24)
    embeddings = torch.randn(EMBEDDING_DIM, 2, 3)
    counts: list[int] = []
    one, several = (
        window_estimate(bundle, state, LEVEL, embeddings, 2.0, window=8, batch_size=size, finished=counts.append)
        for size in (1, 4)
    )
    assert sum(counts) == 2 * 3 * 5
    torch.testing.assert_close(one.clean, several.clean, rtol=1e-3, atol=1e-4)


def test_a_seam_step_to_the_end_keeps_the_clean_latent():
    clean, noise = torch.randn(3, 8, 8), torch.randn(3, 8, 8)
    torch.testing.assert_close(seam_step(Estimate(clean, noise), NoiseLevel(50.0, 0.9, 1.0, 0.0), noise), clean)


@pytest.mark.parametrize("side", [8, 256])
def test_windows_that_overlap_by_half_add_up_to_one(side):
    weight, half = raised_cosine(side), side // 2
    assert weight[0].max() < weight[1].max() < weight[half].max()
    total = weight[:half, :half] + weight[half:, :half] + weight[:half, half:] + weight[half:, half:]
    torch.testing.assert_close(total, torch.ones(half, half))


@pytest.mark.parametrize("weighted", [raised_cosine, gaussian])
def test_bands_are_the_weighted_mean_of_all_windows(bundle, weighted):
    latent = torch.randn(3, 16, 24)
    image = torch.cat(list(decode_bands(bundle, latent, window=8, batch_size=2, weight=weighted)), dim=1)
    weight = weighted(256)
    values, weights = torch.zeros(3, 512, 768), torch.zeros(512, 768)
    for y in (0, 4, 8):
        for x in (0, 4, 8, 12, 16):
            tile = bundle.decode(latent[None, :, y : y + 8, x : x + 8])[0]
            values[:, 32 * y : 32 * y + 256, 32 * x : 32 * x + 256] += weight * tile
            weights[32 * y : 32 * y + 256, 32 * x : 32 * x + 256] += weight
    torch.testing.assert_close(image, values / weights, rtol=1e-3, atol=1e-4)


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)


@pytest.mark.parametrize("size", [(1280, 768), (700, 900), (64, 100)])
def test_openslide_opens_the_file_with_its_microns(tmp_path, size):
    width, height = size
    image = picture(height, width)
    bands = (image[top : top + 128] for top in range(0, height, 128))
    write_pyramid(bands, size, tmp_path / "large.tiff", mpp=0.5, arguments={"seed": 3})
    with openslide.OpenSlide(tmp_path / "large.tiff") as slide:
        assert slide.dimensions == size
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5)
        assert float(slide.properties["openslide.mpp-y"]) == pytest.approx(0.5)
        assert max(slide.level_dimensions[-1]) <= 256
        assert slide.level_count == (3 if width > 1024 else 2)
        np.testing.assert_array_equal(np.asarray(slide.read_region((0, 0), 0, size).convert("RGB")), image)
        coarse = np.asarray(slide.read_region((0, 0), 1, slide.level_dimensions[1]).convert("RGB")).astype(float)
        blocks = image[: height // 4 * 4, : width // 4 * 4].reshape(height // 4, 4, width // 4, 4, 3).mean((1, 3))
        np.testing.assert_allclose(coarse[: height // 4, : width // 4], blocks, atol=1)
    assert read_arguments(tmp_path / "large.tiff") == {"seed": 3}


def test_equal_pixels_give_equal_files_and_a_failure_none(tmp_path):
    image = picture(512, 512)
    for name in ("a.tiff", "b.tiff"):
        write_pyramid([image], (512, 512), tmp_path / name, mpp=0.5, arguments={})
    assert (tmp_path / "a.tiff").read_bytes() == (tmp_path / "b.tiff").read_bytes()

    def broken():
        yield image[:256]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_pyramid(broken(), (512, 512), tmp_path / "c.tiff", mpp=0.5, arguments={})
    with pytest.raises(ZoomfeatError, match="cannot be written"):
        write_pyramid([image], (512, 512), tmp_path / "none" / "d.tiff", mpp=0.5, arguments={})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tiff", "b.tiff"]


def test_the_measure_of_seams_is_one_without_and_large_with_them():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (512, 512, 3)).astype(np.uint8)
    assert seam_ratio(noise) == pytest.approx(1, abs=0.1)
    tiles = np.kron(np.array([[0, 200], [200, 0]]), np.ones((256, 256)))[..., None].repeat(3, 2)
    assert seam_ratio((tiles + noise // 8).astype(np.uint8)) > 10

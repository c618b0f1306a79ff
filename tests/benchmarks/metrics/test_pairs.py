from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torchmetrics.functional.image import learned_perceptual_image_patch_similarity
from torchmetrics.functional.image.lpips import _LPIPS

from benchmarks.metrics import PairMetric, compare_pairs
from benchmarks.metrics.registry import find_pair_metric
from tests.benchmarks.metrics.images import drawn, write
from zoomfeat.encoders import load_encoder
from zoomfeat.errors import CheckpointMismatchError, ConfigurationError
from zoomfeat.models.weights import read_state_dict


def test_psnr_and_ssim_of_flat_images_are_known() -> None:
    real = np.full((3, 32, 32, 3), 100, np.uint8)
    made = np.stack([np.full((32, 32, 3), value, np.uint8) for value in (110, 100, 90)])
    psnr, ssim = compare_pairs(made, real, ["psnr", "ssim"])
    decibels = 20 * math.log10(255 / 10)
    assert psnr.values == pytest.approx([decibels, np.inf, decibels], rel=1e-5)
    assert np.isnan(psnr.low)  # the mean is infinite

    def likeness(a: float, b: float) -> float:  # no variance: only the term of the means is left
        a, b, c = a / 255, b / 255, 0.01**2
        return (2 * a * b + c) / (a * a + b * b + c)

    assert ssim.values == pytest.approx([likeness(110, 100), 1, likeness(90, 100)], abs=3e-4)
    assert ssim.value == pytest.approx(np.mean(ssim.values))
    assert ssim.low < ssim.value < ssim.high


def test_interval_is_a_bootstrap_over_pairs_with_a_seed() -> None:
    real = drawn(9, 0)[:, 100:164, 100:164]
    noise = np.random.default_rng(0).integers(-8, 9, real.shape) * np.arange(1, 10).reshape(-1, 1, 1, 1)
    made = (real + noise).clip(0, 255).astype(np.uint8)
    first, again = compare_pairs(made, real, ["ssim"]), compare_pairs(made, real, ["ssim"])
    assert first == again
    assert first[0].low != compare_pairs(made, real, ["ssim"], seed=1)[0].low
    assert first[0].resampled == "pairs of images"
    assert first[0].values.min() < first[0].low < first[0].value < first[0].high < first[0].values.max()


def test_similarity_of_embeddings_is_the_cosine_over_patches() -> None:
    patches = drawn(8, 0)
    real = patches[:4].reshape(2, 2, 256, 256, 3).swapaxes(1, 2).reshape(1, 512, 512, 3)
    made = patches[4:].reshape(2, 2, 256, 256, 3).swapaxes(1, 2).reshape(1, 512, 512, 3)
    encoder = load_encoder("efficientnet-lite0", device="cpu")
    ours, theirs = encoder(patches[4:]), encoder(patches[:4])
    cosine = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
    same, found = (
        compare_pairs(side, real, ["embedding-similarity"], settings={"embedding-similarity": {"encoder": encoder}})[0]
        for side in (real, made)
    )
    assert same.value == pytest.approx(1, abs=1e-5)
    assert found.value == pytest.approx(cosine.mean(), rel=1e-5)
    assert found.name == "cosine similarity (efficientnet-lite0)"
    with pytest.raises(ConfigurationError, match="images of 300 x 256 px; efficientnet-lite0 takes patches of 256 px"):
        find_pair_metric("embedding-similarity")(encoder=encoder).score(torch.zeros(1, 3, 256, 300), torch.zeros(1))


@pytest.fixture
def alexnet(tmp_path, monkeypatch) -> Path:
    """Seeded weights, where torchvision would keep the ones that it fetches."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / "alexnet-owt-7be5be79.pth"
    path.parent.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save(torchvision.models.alexnet(weights=None).state_dict(), path)
    return path


def test_lpips_is_torchmetrics(alexnet) -> None:
    made, real = (torch.from_numpy(drawn(2, seed)).permute(0, 3, 1, 2) / 255 for seed in (0, 1))
    found = find_pair_metric("lpips")(weights=alexnet).score(made, real)
    expected = learned_perceptual_image_patch_similarity(made, real, "alex", "none", normalize=True)
    torch.testing.assert_close(found, expected.reshape(2))
    assert (found > 0.01).all()
    assert find_pair_metric("lpips")(weights=alexnet).score(real, real).abs().max() == 0


@pytest.mark.shared_data
def test_lpips_has_the_linear_layers_of_its_release(shared) -> None:
    released = read_state_dict(shared / "weights" / "lpips_lin_v0.1_alex.pth")
    ours = _LPIPS(net="alex", pnet_rand=True).state_dict()
    assert len(released) == 5
    assert all(torch.equal(ours[name], layer) for name, layer in released.items())


@pytest.mark.shared_data
def test_shift_tolerant_lpips_gives_the_figures_of_its_release(shared) -> None:
    image = np.asarray(Image.open(shared / "stain_and_artifacts" / "stardist_histo.jpg").convert("RGB"))
    real, moved = image[None, :256, :256], image[None, 1:257, 1:257]
    darker = (real // 2).astype(np.uint8)
    metric = find_pair_metric("st-lpips")(weights=shared / "weights" / "stlpips_alex_shift_tolerant.pth")
    (found,) = compare_pairs(np.concatenate([real, moved, darker]), np.concatenate([real] * 3), [metric])
    # What stlpips-pytorch 0.0.2 gives for the same images.
    assert found.values == pytest.approx([0, 0.007743950, 0.34140396], rel=1e-4, abs=1e-6)
    assert (found.name, found.higher_is_better) == ("ST-LPIPS (AlexNet)", False)


def test_perceptual_distance_without_weights() -> None:
    images = drawn(2, 0)
    (found,) = compare_pairs(np.stack([images[0], 255 - images[0]]), images[[0, 0]], ["efficientnet-distance"])
    assert found.values[0] == pytest.approx(0, abs=1e-6)
    assert found.values[1] > 0.1
    assert found.name == "perceptual distance (efficientnet-lite0)"


@pytest.mark.parametrize("name", ["lpips", "st-lpips"])
def test_weights_that_are_missing_or_others_are_refused(name, tmp_path) -> None:
    with pytest.raises(ConfigurationError, match=r"gone\.pth: no such file, and nothing is fetched"):
        find_pair_metric(name)(weights=tmp_path / "gone.pth")
    torch.save({"features.0.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointMismatchError, match=r"other\.pth: no.* AlexNet"):
        find_pair_metric(name)(weights=tmp_path / "other.pth")


def test_pairs_that_are_none_are_refused(tmp_path) -> None:
    images = drawn(2, 0)
    with pytest.raises(ConfigurationError, match="2 images made and 1 real ones"):
        compare_pairs(images, images[:1], ["ssim"])
    made, real = write(tmp_path / "made", images), write(tmp_path / "real", images[:, :100])
    with pytest.raises(ConfigurationError, match=r"made/0000\.png is 256 x 256 px and real/0000\.png 256 x 100"):
        compare_pairs(made, real, ["ssim"])
    with pytest.raises(ConfigurationError, match=r"no metric of image pairs 'ssmi'\. Did you mean 'ssim'\?"):
        compare_pairs(images, images, ["ssmi"])
    with pytest.raises(ConfigurationError, match="settings of lpips, which is not measured"):
        compare_pairs(images, images, ["ssim"], settings={"lpips": {}})


def test_built_metric_serves_as_well_as_a_name() -> None:
    images = drawn(2, 0)
    metric = PairMetric("mean difference", False, lambda made, real: (made - real).mean((1, 2, 3)))
    assert compare_pairs(images, images, [metric])[0].value == 0

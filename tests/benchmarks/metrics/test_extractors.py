from __future__ import annotations

import hashlib
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_clip import MODEL_METADATA, CLIPVisual

from benchmarks.metrics import FeatureSet, load_extractor
from benchmarks.metrics.extractors import extractor_names
from benchmarks.metrics.frechet import frechet_name
from benchmarks.metrics.kernel import kernel_name
from tests.benchmarks.metrics.images import drawn
from zoomfeat.encoders import encoder_names, load_encoder
from zoomfeat.errors import CheckpointMismatchError, ConfigurationError


def test_every_registry_encoder_is_an_extractor() -> None:
    assert set(encoder_names()) < set(extractor_names())
    assert {"inception-v3", "clip-vit-b-32", "clip-rn50"} < set(extractor_names())


def test_encoder_gives_its_own_features_under_its_own_name() -> None:
    images = drawn(2, 0)
    extractor = load_extractor("efficientnet-lite0", device="cpu")
    encoder = load_encoder("efficientnet-lite0", device="cpu")
    np.testing.assert_array_equal(extractor(images), encoder(images))
    assert extractor.network.weights_hash == encoder.weights_hash
    assert frechet_name(extractor.network) == "Frechet distance (efficientnet-lite0)"
    assert kernel_name(extractor.network) == "kernel distance (efficientnet-lite0)"


def test_magnification_is_part_of_the_network() -> None:
    sides = [FeatureSet.empty(load_extractor("color-stats", magnification=each).network) for each in ("20x", "5x")]
    with pytest.raises(ConfigurationError, match="different networks"):
        sides[0].merge(sides[1])


def test_images_that_are_no_patches_are_refused_by_encoders() -> None:
    extractor = load_extractor("color-stats")
    with pytest.raises(ConfigurationError, match=r"images of 300 x 256 px; color-stats takes 256 x 256.*RandomCrops"):
        extractor(np.zeros((1, 256, 300, 3), np.uint8))


@pytest.mark.parametrize("name", ["inception-v3", "clip-vit-b-32"])
def test_nothing_is_fetched_unasked(name) -> None:
    with pytest.raises(ConfigurationError, match=f"no weights of {name} here, and nothing is fetched unasked"):
        load_extractor(name)
    with pytest.raises(ConfigurationError, match=f"{name} has no option taps"):
        load_extractor(name, taps=["mid"])


class Code:
    def __reduce__(self) -> tuple:
        return print, ("this ran",)


def test_weights_that_would_run_code_are_refused(tmp_path, capsys) -> None:
    (tmp_path / "inception.pth").write_bytes(pickle.dumps({"fc.weight": Code()}))
    torch.save({"fc.weight": Code()}, tmp_path / "zip.pth")
    for name in ("inception.pth", "zip.pth"):
        with pytest.raises(CheckpointMismatchError, match=name):
            load_extractor("inception-v3", weights=tmp_path / name)
    assert "this ran" not in capsys.readouterr().out


def test_other_weights_are_refused(tmp_path) -> None:
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "other.pth")
    for name in ("inception-v3", "clip-vit-b-32"):
        with pytest.raises(CheckpointMismatchError, match=rf"other\.pth: no weights of {name}"):
            load_extractor(name, weights=tmp_path / "other.pth")


class Clip(nn.Module):
    """As OpenAI's archives are: the image tower, and of the text tower what tells its width."""

    def __init__(self, *facts: int) -> None:
        super().__init__()
        self.visual = CLIPVisual(*facts).visual
        self.text_projection = nn.Parameter(torch.zeros(16, facts[0]))

    def forward(self, images: Tensor) -> Tensor:
        return self.visual(images) + 0 * self.text_projection.sum()


def archive(path, *facts: int) -> nn.Module:
    torch.manual_seed(0)
    model = Clip(*facts).eval().requires_grad_(False)
    torch.jit.save(torch.jit.trace(model, torch.zeros(1, 3, facts[1], facts[1])), path)
    return model


def check_clip(path, width: int, side: int, model: nn.Module) -> None:
    extractor = load_extractor("clip-vit-b-32", weights=path, device="cpu")
    images = np.concatenate([drawn(1, 0), 255 - drawn(1, 0)])
    found = extractor(images)
    assert found.shape == (2, width)
    assert found.dtype == np.float32
    # Against the tower itself. torch-fidelity keeps it in half precision on disk: its weights are rounded.
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    pixels = nn.functional.interpolate(pixels, (side, side), mode="bicubic", antialias=True).clamp(0, 255).round() / 255
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    wanted = model((pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)).numpy()
    np.testing.assert_allclose(found, wanted, atol=0.02 * np.abs(wanted).max())
    assert np.abs(found[0] - found[1]).max() > 0.05 * np.abs(wanted).max()
    # Random weights are not those that CLIP FID stands for.
    assert frechet_name(extractor.network).startswith("Frechet distance (clip-vit-b-32, weights ")


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_tiny_clip_tower(tmp_path) -> None:
    model = archive(tmp_path / "clip.pt", 24, 64, 2, 64, 16)
    check_clip(tmp_path / "clip.pt", 24, 64, model)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.slow
def test_clip_tower_of_true_size(tmp_path) -> None:
    model = archive(tmp_path / "clip.pt", 512, 224, 12, 768, 32)  # ViT-B/32
    check_clip(tmp_path / "clip.pt", 512, 224, model)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_official_weights_are_known_by_their_hash(tmp_path, monkeypatch) -> None:
    """The real files cannot be had here: a tiny tower stands in for one by its hash."""
    archive(tmp_path / "clip.pt", 24, 64, 2, 64, 16)
    digest = hashlib.sha256((tmp_path / "clip.pt").read_bytes()).hexdigest()
    monkeypatch.setitem(MODEL_METADATA["clip-vit-b-32"], "hash", digest)
    network = load_extractor("clip-vit-b-32", weights=tmp_path / "clip.pt", device="cpu").network
    assert (frechet_name(network), kernel_name(network)) == ("CLIP vit-b-32 FID", "CLIP vit-b-32 KID")

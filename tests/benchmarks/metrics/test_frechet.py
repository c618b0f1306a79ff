from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_fidelity
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from benchmarks.metrics import FeatureSet, ImageFiles, Network, compare_sets, features_of, load_extractor
from benchmarks.metrics.features import Moments
from benchmarks.metrics.frechet import FewImagesWarning, fid, frechet_distance, frechet_name
from tests.benchmarks.metrics.images import drawn, real_tissue, write
from zoomfeat.encoders import load_encoder
from zoomfeat.errors import ConfigurationError


def theirs(made: Path, real: Path, encoder: str, **options: int) -> dict[str, float]:
    """torch-fidelity's own figures of two folders, with a registry encoder as its extractor."""
    loaded = load_encoder(encoder, device="cpu")

    class RegistryEncoder(FeatureExtractorBase):
        def __init__(self, name: str, features_list: list[str], **_: object) -> None:
            super().__init__(name, features_list)

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("features",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "features"

        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return (torch.from_numpy(loaded(pixels.permute(0, 2, 3, 1).contiguous().numpy())),)

    if encoder not in torch_fidelity.registry.FEATURE_EXTRACTORS_REGISTRY:
        torch_fidelity.register_feature_extractor(encoder, RegistryEncoder)
    return torch_fidelity.calculate_metrics(
        input1=str(made), input2=str(real), feature_extractor=encoder, cuda=False, fid=True, kid=True, prc=True,
        save_cpu_ram=True, verbose=False, cache=False, **options,
    )  # fmt: skip


def check_against_theirs(made: Path, real: Path, encoder: str) -> None:
    count = len(ImageFiles.of(made))  # one subset of all: ours does not depend on the order of files, theirs does
    expected = theirs(made, real, encoder, kid_subset_size=count)
    options = {"kid": {"subset_size": count}}
    with pytest.warns(FewImagesWarning):
        found = compare_sets(made, real, ["fid", "kid", "precision-recall"], encoder, settings=options, device="cpu")
    assert [m.name for m in found] == [
        f"{each} ({encoder})" for each in ("Frechet distance", "kernel distance", "precision", "recall")
    ]
    assert abs(found[0].value - expected["frechet_inception_distance"]) < 1e-3
    assert found[0].value == pytest.approx(expected["frechet_inception_distance"], rel=1e-4)  # which may be small
    assert found[1].value == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-5)
    assert (found[2].value, found[3].value) == pytest.approx((expected["precision"], expected["recall"]))

    extractor = load_extractor(encoder, device="cpu")
    paths = ImageFiles.of(made).paths
    shards = [features_of(ImageFiles(part), extractor) for part in (paths[9:], paths[:9])]
    with pytest.warns(FewImagesWarning):
        merged = compare_sets(shards[0].merge(shards[1]), real, ["fid", "kid"], extractor, settings=options)
    assert merged[0].value == pytest.approx(found[0].value, rel=1e-6)  # rank-deficient: roots of rounding errors
    assert merged[1].value == found[1].value


def test_equals_torch_fidelity_and_merged_shards_equal_one_pass(tmp_path) -> None:
    made, real = write(tmp_path / "made", 255 - drawn(25, 1)), write(tmp_path / "real", drawn(25, 2))
    check_against_theirs(made, real, "color-stats")


@pytest.mark.shared_data
def test_equals_torch_fidelity_on_real_tissue(tmp_path, shared) -> None:
    made, real = (write(tmp_path / name, real_tissue(shared, name, 16)) for name in ("LUAD", "LUSC"))
    check_against_theirs(made, real, "efficientnet-lite0")


@pytest.mark.slow
def test_equals_torch_fidelity_over_its_inception_with_random_weights(tmp_path) -> None:
    """The network of FID cannot be had here: its architecture with seeded weights goes by its own name."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    with pytest.MonkeyPatch.context() as patch:  # the constructor insists on weights; keep those it was born with
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        patch.setattr("torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *_, **__: {})
        torch.manual_seed(0)
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    for module in network.modules():  # else what differs between images fades from layer to layer
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
    torch.save(network.state_dict(), tmp_path / "inception.pth")
    made, real = write(tmp_path / "made", 255 - drawn(9, 1)), write(tmp_path / "real", drawn(9, 2))
    expected = torch_fidelity.calculate_metrics(
        input1=str(made), input2=str(real), cuda=False, fid=True, verbose=False, cache=False, save_cpu_ram=True,
        feature_extractor_weights_path=str(tmp_path / "inception.pth"),
    )  # fmt: skip
    options = {"weights": tmp_path / "inception.pth", "device": "cpu"}
    with pytest.warns(FewImagesWarning):
        (found,) = compare_sets(made, real, ["fid"], "inception-v3", settings={"fid": {"parts": 0}}, **options)
    assert abs(found.value - expected["frechet_inception_distance"]) < 1e-3
    assert found.value > 1
    assert found.name.startswith("Frechet distance (inception-v3, weights ")


def gaussian(mean: list[float], deviations: list[float]) -> Moments:
    return Moments(1001, np.array(mean), np.diag(np.square(deviations)) * 1000.0)


def test_distance_of_normal_distributions_is_known() -> None:
    # Axes apart, the distance is |m|^2 + sum of (s - t)^2 (Dowson and Landau 1982).
    a, b = gaussian([0, 0, 0], [1, 2, 0]), gaussian([3, 0, 4], [1, 5, 0.5])
    assert frechet_distance(a, b) == pytest.approx(25 + 9 + 0.25)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    turned = [Moments(m.count, turn @ m.mean, turn @ m.scatter @ turn.T) for m in (a, b)]
    assert frechet_distance(*turned) == pytest.approx(34.25)


def sampled(rng: np.random.Generator, n: int, shift: float, dim: int = 4, keep: int = 10_000) -> FeatureSet:
    features = (rng.normal(size=(n, dim)) + shift).astype(np.float32)
    keys = [f"{rng.integers(1 << 60)}" for _ in range(n)]
    return FeatureSet.empty(Network("net", dim, ""), keep).add(keys, features)


def quietly(made: FeatureSet, real: FeatureSet, **options: int):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FewImagesWarning)
        return fid(made, real, **options)[0]


def test_interval_covers_the_distance_of_as_many_images() -> None:
    rng = np.random.default_rng(0)
    runs = [quietly(sampled(rng, 300, 0.5), sampled(rng, 300, 0)) for _ in range(200)]
    expected = np.mean([run.value for run in runs])
    covered = np.mean([run.low <= expected <= run.high for run in runs])
    assert 0.9 <= covered <= 0.99  # of 200 at 0.95, give or take three standard errors
    assert "jackknife over 10 parts" in runs[0].resampled


def test_interval_of_a_set_beyond_its_sample_is_scaled_to_the_set() -> None:
    rng = np.random.default_rng(3)
    widths = []
    for keep in (10_000, 1_000):
        rng = np.random.default_rng(3)
        found = quietly(sampled(rng, 4_000, 0.5, keep=keep), sampled(rng, 4_000, 0, keep=keep))
        widths.append(found.high - found.low)
    assert 0.5 < widths[1] / widths[0] < 2  # 2 is what it would be unscaled
    assert np.isnan(quietly(sampled(rng, 100, 0), sampled(rng, 100, 0), parts=0).low)


def test_few_images_warn_and_offer_kid() -> None:
    rng = np.random.default_rng(0)
    with pytest.warns(FewImagesWarning, match=r"of 100 images with 4 features is mostly bias: use kid.* at least 2048"):
        (found,) = fid(sampled(rng, 100, 0), sampled(rng, 3000, 0))
    assert "kid" in found.note
    with pytest.warns(FewImagesWarning, match="at least 3000 images"):
        _of_three_thousand_features(2500)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fid(sampled(rng, 2048, 0), sampled(rng, 3000, 0))[0].note == ""


def _of_three_thousand_features(images: int) -> None:
    """Only the network's width is that large: its moments are small, so that the test is quick."""
    network, moments = Network("wide", 3000, ""), Moments(images, np.zeros(2), np.eye(2))
    side = FeatureSet(network, moments, np.empty((0, 2), np.float32), np.empty(0, np.uint64))
    fid(side, side)


def test_only_the_fid_inception_makes_a_fid() -> None:
    assert frechet_name(Network("inception-v3", 2048, "", short="")) == "FID"
    assert frechet_name(Network("inception-v3", 2048, "", short=""), "256 px crops") == "crop FID"
    assert frechet_name(Network("clip-vit-b-32", 512, "", short="CLIP vit-b-32 ")) == "CLIP vit-b-32 FID"
    assert frechet_name(Network("uni", 1024, "")) == "Frechet distance (uni)"
    assert frechet_name(Network("uni", 1024, ""), "256 px crops") == "crop Frechet distance (uni)"


def test_sets_that_cannot_be_compared_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ConfigurationError, match="1 and 5 images"):
        fid(sampled(rng, 1, 0), sampled(rng, 5, 0))
    with pytest.raises(ConfigurationError, match="different networks"):
        fid(sampled(rng, 5, 0), sampled(rng, 5, 0, dim=3))

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.metrics import ImageArray, features_of, load_extractor
from benchmarks.metrics.features import FeatureSet, Moments, Network
from zoomfeat.errors import ConfigurationError, ZoomfeatError

NETWORK = Network("net", 5, "abc", '{"size": 224}')
KEYS = [f"image {i}" for i in range(60)]
FEATURES = (np.random.default_rng(0).normal(size=(60, 5)) * [1, 2, 3, 1, 1] + 100).astype(np.float32)


def whole(keep: int = 20) -> FeatureSet:
    return FeatureSet.empty(NETWORK, keep).add(KEYS, FEATURES)


def test_moments_are_numpys() -> None:
    moments = Moments.of(FEATURES)
    np.testing.assert_allclose(moments.mean, FEATURES.astype(np.float64).mean(0))
    np.testing.assert_allclose(moments.covariance, np.cov(FEATURES.astype(np.float64), rowvar=False))


def test_part_taken_out_leaves_the_rest() -> None:
    left = Moments.of(FEATURES) - Moments.of(FEATURES[:13])
    rest = Moments.of(FEATURES[13:])
    assert left.count == rest.count
    np.testing.assert_allclose(left.mean, rest.mean, rtol=1e-12)
    np.testing.assert_allclose(left.scatter, rest.scatter, rtol=1e-9, atol=1e-9)


def test_merged_shards_equal_one_pass() -> None:
    shards = [FeatureSet.empty(NETWORK, 20).add(KEYS[a:b], FEATURES[a:b]) for a, b in ((40, 60), (0, 7), (7, 40))]
    merged = shards[0].merge(shards[1]).merge(shards[2])
    batched = FeatureSet.empty(NETWORK, 20)
    for start in range(0, 60, 7):
        batched = batched.add(KEYS[start : start + 7], FEATURES[start : start + 7])
    for found in (merged, batched):
        assert len(found) == 60
        np.testing.assert_allclose(found.moments.mean, whole().moments.mean, rtol=1e-13)
        np.testing.assert_allclose(found.moments.scatter, whole().moments.scatter, rtol=1e-10, atol=1e-9)
        np.testing.assert_array_equal(found.sample, whole().sample)
        np.testing.assert_array_equal(found.ranks, whole().ranks)


def test_sample_is_bounded_drawn_from_all_and_is_no_function_of_order() -> None:
    sample = whole().sample
    rows = [int(np.flatnonzero((row == FEATURES).all(1))[0]) for row in sample]
    assert len(set(rows)) == 20
    assert min(rows) < 20 < 40 < max(rows)  # not the first twenty, nor the last
    order = np.random.default_rng(1).permutation(60)
    other = FeatureSet.empty(NETWORK, 20).add([KEYS[i] for i in order], FEATURES[order])
    np.testing.assert_array_equal(other.sample, sample)
    assert len(whole(keep=100).sample) == 60


def test_an_image_in_both_shards_is_refused() -> None:
    first = FeatureSet.empty(NETWORK).add(KEYS[:30], FEATURES[:30])
    second = FeatureSet.empty(NETWORK).add(KEYS[29:], FEATURES[29:])
    with pytest.raises(ConfigurationError, match="both sets hold the same 1 images"):
        first.merge(second)
    renamed = FeatureSet.empty(NETWORK).add(KEYS[:30], FEATURES[30:])  # other folders may use the same file names
    assert len(first.merge(renamed)) == 60


def test_file_brings_it_all_back(tmp_path) -> None:
    named = FeatureSet.empty(Network("inception-v3", 5, "h", short=""), 20, "256 px crops").add(KEYS, FEATURES)
    named.save(tmp_path / "features.npz")
    back = FeatureSet.load(tmp_path / "features.npz")
    assert (back.network, back.keep, back.view) == (named.network, 20, "256 px crops")
    assert back.moments.count == 60
    np.testing.assert_array_equal(back.moments.scatter, named.moments.scatter)
    np.testing.assert_array_equal(back.moments.mean, named.moments.mean)
    np.testing.assert_array_equal(back.sample, named.sample)
    np.testing.assert_array_equal(back.ranks, named.ranks)
    whole().save(tmp_path / "other.npz")
    assert FeatureSet.load(tmp_path / "other.npz").network == NETWORK
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["features.npz", "other.npz"]


def test_other_files_are_refused(tmp_path) -> None:
    whole().save(tmp_path / "good.npz")
    data = (tmp_path / "good.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(data[: len(data) // 2])
    np.savez(tmp_path / "other.npz", mu=np.zeros(3))
    np.save(tmp_path / "pickle.npy", np.array([{}], dtype=object), allow_pickle=True)
    for name in ("cut.npz", "other.npz", "pickle.npy", "missing.npz"):
        with pytest.raises(ZoomfeatError, match=rf"{name}: holds no features of images .* FeatureSet\.save"):
            FeatureSet.load(tmp_path / name)


def test_unlike_sets_are_refused() -> None:
    mine = whole()
    with pytest.raises(ConfigurationError, match="different networks \\(weights_hash: abc and xyz\\)"):
        mine.merge(FeatureSet.empty(Network("net", 5, "xyz", '{"size": 224}'), 20))
    with pytest.raises(ConfigurationError, match="samples of 20 and 30"):
        mine.merge(FeatureSet.empty(NETWORK, 30))
    with pytest.raises(ConfigurationError, match="whole images and of 64 px crops"):
        mine.merge(FeatureSet.empty(NETWORK, 20, "64 px crops"))


def test_features_of_another_shape_or_not_finite_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"features \(1, 4\) of net; expected finite \(1, 5\)"):
        whole().add(["x"], np.zeros((1, 4), np.float32))
    with pytest.raises(ConfigurationError, match="expected finite"):
        whole().add(["x"], np.full((1, 5), np.nan, np.float32))


def test_a_long_pass_is_that_of_its_parts() -> None:
    images = np.random.default_rng(0).integers(0, 256, (700, 1, 1, 3), dtype=np.uint8).repeat(256, 1).repeat(256, 2)
    colours = load_extractor("color-stats", device="cpu")
    found = features_of(ImageArray(images), colours, keep=50)
    assert len(found) == 700
    np.testing.assert_allclose(found.moments.mean[:3], images[:, 0, 0].mean(0) / 255, rtol=1e-5)
    assert found.sample.shape == (50, 6)

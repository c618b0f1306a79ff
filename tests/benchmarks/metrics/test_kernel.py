from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.image.kid import poly_mmd

from benchmarks.metrics import FeatureSet, Network
from benchmarks.metrics.kernel import _standard_error, kernel_distance, kid
from zoomfeat.errors import ConfigurationError


def features(n: int, seed: int, shift: float = 0.0, dim: int = 8) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(n, dim)) + shift).astype(np.float32)


def kept(rows: np.ndarray, prefix: str, keep: int = 10_000, network: str = "net") -> FeatureSet:
    empty = FeatureSet.empty(Network(network, rows.shape[1], ""), keep)
    return empty.add([f"{prefix}{i}" for i in range(len(rows))], rows)


def test_whole_sets_give_the_unbiased_estimate() -> None:
    made, real = features(40, 0), features(40, 1, 0.5)
    value, deviation, size = kernel_distance(made, real, subsets=3, subset_size=1000)
    # A subset of all 40 is the whole set; torchmetrics has the estimator too.
    assert (size, deviation) == (40, 0)
    assert value == pytest.approx(float(poly_mmd(torch.from_numpy(made).double(), torch.from_numpy(real).double())))


def test_interval_is_the_jackknife_over_images() -> None:
    made, real = features(9, 0), features(7, 1, 0.5)

    def estimate(x: np.ndarray, y: np.ndarray) -> float:
        def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
            return (a.astype(float) @ b.T.astype(float) / 8 + 1) ** 3

        n, m = len(x), len(y)
        within = (kernel(x, x).sum() - np.trace(kernel(x, x))) / (n * (n - 1))
        return within + (kernel(y, y).sum() - np.trace(kernel(y, y))) / (m * (m - 1)) - 2 * kernel(x, y).mean()

    ours = [estimate(np.delete(made, i, 0), real) for i in range(9)]
    theirs = [estimate(made, np.delete(real, i, 0)) for i in range(7)]
    expected = np.sqrt(8 * np.var(ours) + 6 * np.var(theirs))
    assert _standard_error(made, real) == pytest.approx(expected)
    (found,) = kid(kept(made, "m"), kept(real[:7], "r"), subset_size=7)
    assert (found.low + found.high) / 2 == pytest.approx(found.value)
    assert found.high - found.value == pytest.approx(1.959964 * expected)
    assert kid(kept(made, "m"), kept(made, "r"))[0].note == "of all 9 images at once"


def test_interval_covers_the_true_distance() -> None:
    # One feature, x ~ N(0.5, 1) and y ~ N(0, 1), kernel (xy + 1)^3: the squared distance is the sum over j of
    # binomial(3, j) (E x^j - E y^j)^2, with E x^j = 0.5, 1.25, 1.625.
    truth = 3 * 0.5**2 + 3 * 0.25**2 + 1.625**2
    covered = 0
    for seed in range(60):
        made, real = kept(features(200, 2 * seed, 0.5, 1), "m"), kept(features(200, 2 * seed + 1, 0, 1), "r")
        (found,) = kid(made, real, subsets=1)  # of all images
        covered += found.low <= truth <= found.high
    assert covered >= 50


def test_like_sets_are_near_zero_and_unlike_ones_are_not() -> None:
    like = kid(kept(features(400, 0), "m"), kept(features(400, 1), "r"), subset_size=200)[0]
    unlike = kid(kept(features(400, 0, 0.5), "m"), kept(features(400, 1), "r"), subset_size=200)[0]
    assert like.low < 0 < like.high
    assert unlike.low > 0.1
    assert unlike.note.startswith("100 subsets of 200: deviation ")
    assert (unlike.name, unlike.higher_is_better) == ("kernel distance (net)", False)


def test_same_seed_same_bits_and_merged_shards_equal_one_pass() -> None:
    made, real = features(100, 0, 0.2), kept(features(100, 1), "r", keep=50)
    whole = kept(made, "m", keep=50)
    first = FeatureSet.empty(whole.network, 50).add([f"m{i}" for i in range(30)], made[:30])
    rest = FeatureSet.empty(whole.network, 50).add([f"m{i}" for i in range(30, 100)], made[30:])
    values = [kid(side, real, subset_size=25)[0].value for side in (whole, whole, rest.merge(first))]
    assert values[0] == values[1] == values[2]
    assert kid(whole, real, subset_size=25, seed=1)[0].value != values[0]


def test_names_and_refusals() -> None:
    rows = features(5, 0)
    inception = FeatureSet.empty(Network("inception-v3", 8, "", short="")).add(list("abcde"), rows)
    assert kid(inception, inception)[0].name == "KID"
    with pytest.raises(ConfigurationError, match="features of 2 and 5 images"):
        kid(kept(rows[:2], "m"), kept(rows, "r"))
    with pytest.raises(ConfigurationError, match="different networks"):
        kid(kept(rows, "m"), kept(rows, "r", network="other"))

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.metrics import FeatureSet, Network
from benchmarks.metrics.manifold import density_coverage, precision_recall
from zoomfeat.errors import ConfigurationError


def kept(rows: np.ndarray, prefix: str) -> FeatureSet:
    rows = np.asarray(rows, np.float32)
    keys = [f"{prefix}{i}" for i in range(len(rows))]
    return FeatureSet.empty(Network("net", rows.shape[1], "")).add(keys, rows)


def test_a_set_by_hand() -> None:
    # On a line, with one neighbour: real images reach 1, 1, 8 far; made ones 0.25, 0.25, 99.5.
    real, made = kept([[0], [1], [9]], "r"), kept([[0.25], [0.5], [100]], "m")
    precision, recall = precision_recall(made, real, neighbours=1)
    assert precision.value == pytest.approx(2 / 3)  # 100 lies beyond all
    assert recall.value == 1  # and, an outlier, reaches all
    density, coverage = density_coverage(made, real, neighbours=1)
    assert density.value == pytest.approx((2 + 2 + 0) / 3)
    assert coverage.value == pytest.approx(2 / 3)  # no made image is near 9


def test_brute_force_agrees() -> None:
    rng = np.random.default_rng(0)
    real, made = rng.normal(size=(50, 3)), rng.normal(0.5, 0.7, size=(40, 3))

    def reach(points: np.ndarray, k: int) -> np.ndarray:
        return np.array([sorted(np.linalg.norm(points - point, axis=1))[k] for point in points])

    far = np.linalg.norm(real[:, None] - made[None], axis=2)  # (real, made)
    found = precision_recall(kept(made, "m"), kept(real, "r"), neighbours=3)
    assert found[0].value == pytest.approx((far <= reach(real, 3)[:, None]).any(0).mean())
    assert found[1].value == pytest.approx((far <= reach(made, 3)[None]).any(1).mean())
    found = density_coverage(kept(made, "m"), kept(real, "r"), neighbours=5)
    within = far < reach(real, 5)[:, None]
    assert found[0].value == pytest.approx(within.sum() / (5 * 40))
    assert found[1].value == pytest.approx(within.any(1).mean())
    for measurement in found:
        assert measurement.low < measurement.value < measurement.high
        assert (measurement.made, measurement.real, measurement.higher_is_better) == (40, 50, True)
    assert [m.name for m in found] == ["density (net)", "coverage (net)"]


def test_like_sets_have_density_one_and_the_coverage_of_the_paper() -> None:
    rng = np.random.default_rng(0)
    density, coverage = density_coverage(kept(rng.normal(size=(1500, 4)), "m"), kept(rng.normal(size=(1500, 4)), "r"))
    assert density.value == pytest.approx(1, abs=0.06)
    assert coverage.value == pytest.approx(1 - 2**-5, abs=0.02)


def test_missing_modes_cost_coverage_and_recall_and_not_density() -> None:
    rng = np.random.default_rng(0)
    modes = rng.integers(2, size=400)[:, None] * 20 + rng.normal(size=(400, 3))
    one = rng.normal(size=(400, 3))
    density, coverage = density_coverage(kept(one, "m"), kept(modes, "r"))
    precision, recall = precision_recall(kept(one, "m"), kept(modes, "r"))
    assert min(density.value, precision.value) > 0.4
    assert max(coverage.value, recall.value) < 0.6


@pytest.mark.parametrize("metric", [precision_recall, density_coverage])
def test_too_few_images_are_refused(metric) -> None:
    with pytest.raises(ConfigurationError, match="5 neighbours among 5 and 9 images"):
        metric(kept(np.eye(5), "m"), kept(np.ones((9, 5)), "r"), neighbours=5)

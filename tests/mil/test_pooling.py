from __future__ import annotations

import numpy as np
import pytest

from mil.pooling import pool_bag
from zoomfeat.bags import Bag, BagMetadata, ScaleFeatures
from zoomfeat.errors import ConfigurationError, MagnificationError


@pytest.fixture
def bag():
    rng = np.random.default_rng(0)
    cells = np.stack(np.meshgrid(np.arange(4), np.arange(4)), -1).reshape(-1, 2)
    fine = ScaleFeatures(
        magnification="20x", coords=cells * 256, patch_size_level0=(256, 256), mpp=0.5,
        features=rng.normal(size=(16, 5)).astype(np.float32),
    )  # fmt: skip
    coarse = ScaleFeatures(
        magnification="5x", coords=np.zeros((1, 2), np.int64), patch_size_level0=(1024, 1024), mpp=2.0,
        features=rng.normal(size=(1, 5)).astype(np.float32),
    )  # fmt: skip
    return Bag((fine, coarse), {"5x": np.zeros(16, np.int32)}, metadata=BagMetadata(slide_id="s", encoder="e"))


@pytest.mark.parametrize(("how", "function"), [("mean", np.mean), ("max", np.max)])
def test_each_magnification_is_pooled_by_itself(bag, how, function):
    expected = np.concatenate([function(scale.features, axis=0) for scale in bag.scales])
    np.testing.assert_allclose(pool_bag(bag, how), expected, rtol=1e-6)
    np.testing.assert_allclose(pool_bag(bag, how, "5x"), bag.scale("5x").features[0])


def test_unknown_names(bag):
    with pytest.raises(ConfigurationError, match="mean, max"):
        pool_bag(bag, "median")
    with pytest.raises(MagnificationError):
        pool_bag(bag, "mean", "10x")

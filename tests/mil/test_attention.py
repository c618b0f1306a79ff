"""Attention tied to places: ranks, tables, and what does not fit."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import percentileofscore

from mil.attention import COLUMNS, percentile_rank, slide_attention
from zoomfeat.bags import Bag, BagMetadata, ScaleFeatures
from zoomfeat.errors import ConfigurationError, MagnificationError


def make_bag(**metadata: object) -> Bag:
    """Two 5x patches of 1024 level-0 px, and five of their 20x patches."""
    fine = np.array([[0, 0], [256, 0], [1024, 256], [1280, 256], [1792, 768]])
    coarse = np.array([[0, 0], [1024, 0]])
    rng = np.random.default_rng(0)
    scales = tuple(
        ScaleFeatures(
            magnification=name, coords=coords, patch_size_level0=(size, size), mpp=10 / float(name[:-1]),
            features=rng.normal(size=(len(coords), 4)).astype(np.float32),
        )
        for name, coords, size in (("20x", fine, 256), ("5x", coarse, 1024))
    )  # fmt: skip
    described = BagMetadata(slide_id="case.1", encoder="e", **metadata)
    return Bag(scales, {"5x": np.array([0, 0, 1, 1, 1], np.int32)}, metadata=described)


def test_percentile_rank_is_the_one_of_scipy():
    values = np.random.default_rng(1).integers(0, 12, 50).astype(float)
    expected = [percentileofscore(values, value, kind="mean") for value in values]
    np.testing.assert_allclose(percentile_rank(values), expected)


def test_equal_attention_is_in_the_middle():
    np.testing.assert_array_equal(percentile_rank(np.full(7, 1 / 7)), 50.0)


def test_table_has_a_row_a_patch_in_the_order_of_the_bag():
    values = {"5x": np.array([0.25, 0.75]), "20x": np.array([0.1, 0.4, 0.2, 0.2, 0.1])}
    table = slide_attention(make_bag(), values).table()
    assert tuple(table.columns) == COLUMNS
    assert table.magnification.tolist() == ["20x"] * 5 + ["5x"] * 2  # finest first, whatever the order given
    assert table.iloc[2][["x", "y", "width", "height"]].tolist() == [1024, 256, 256, 256]
    assert table.attention.tolist() == [0.1, 0.4, 0.2, 0.2, 0.1, 0.25, 0.75]
    assert table.percentile.tolist() == [20, 90, 60, 60, 20, 25, 75]


def test_size_is_the_slides_then_the_bags_then_the_reach_of_the_patches():
    values = {"20x": np.arange(5.0)}
    bag = make_bag(level0_width=2000, level0_height=1000)
    assert slide_attention(bag, values, (2048, 1024)).level0_size == (2048, 1024)
    assert slide_attention(bag, values).level0_size == (2000, 1000)
    unknown = slide_attention(make_bag(), values)
    assert (unknown.level0_size, unknown.size_known) == ((2048, 1024), False)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.1, 0.4, 0.2, 0.2, 0.1], 2), ([0.2] * 5, 3), ([0, 0, 1, 0, 0], 1), ([0.25, 0.25, 0.5, 0, 0], 1)],
)
def test_how_many_patches_hold_half_of_the_attention(values, expected):
    (scale,) = slide_attention(make_bag(), {"20x": np.array(values)}).scales
    assert scale.patches_with_half() == expected


@pytest.mark.parametrize("values", [np.zeros(4), np.zeros((5, 1)), np.array([0, 1, np.nan, 0, 0])])
def test_values_that_do_not_fit_are_refused(values):
    with pytest.raises(ConfigurationError, match="20x"):
        slide_attention(make_bag(), {"20x": values})


def test_a_magnification_that_the_bag_lacks_is_refused():
    with pytest.raises(MagnificationError, match="10x"):
        slide_attention(make_bag(), {"10x": np.zeros(5)})

"""Resamples of a bag keep coarse patches and what lies in them together."""

from __future__ import annotations

import numpy as np

from mil.dataset import Instances
from mil.resampling import resample


def numbered(parents: dict[str, list[int]], counts: dict[str, int]) -> Instances:
    """Instances whose only feature is their row."""
    features = {name: np.arange(count, dtype=np.float32)[:, None] for name, count in counts.items()}
    return Instances(features, {name: np.array(rows) for name, rows in parents.items()})


def test_blocks_stay_whole():
    # 20x patches 0 to 6 in 10x patches 0 to 3 in 5x patches 0 to 2; 5x patch 3 and 10x patch 4 hold no 20x patch.
    at_10x, at_5x = [2, 0, 0, 1, 3, 2, 3], [0, 1, 1, 1, 2, 0, 2]
    bag = numbered({"10x": at_10x, "5x": at_5x}, {"20x": 7, "10x": 5, "5x": 4})
    seen = set()
    for seed in range(40):
        drawn = resample(bag, np.random.default_rng(seed))
        rows = {name: matrix[:, 0].astype(int) for name, matrix in drawn.features.items()}
        assert len(rows["5x"]) == 3
        seen |= set(rows["5x"].tolist())
        # The parents of each copy are those of the original.
        np.testing.assert_array_equal(rows["10x"][drawn.parents["10x"]], np.array(at_10x)[rows["20x"]])
        np.testing.assert_array_equal(rows["5x"][drawn.parents["5x"]], np.array(at_5x)[rows["20x"]])
        # Each copy of a block has a row of its own, and all that belongs to the block.
        for copy, block in enumerate(rows["5x"]):
            inside = rows["20x"][drawn.parents["5x"] == copy]
            assert sorted(inside) == np.flatnonzero(np.array(at_5x) == block).tolist()
        assert sorted(rows["10x"]) == sorted(
            row for block in rows["5x"] for row in np.unique(np.array(at_10x)[np.array(at_5x) == block])
        )
    assert seen == {0, 1, 2}


def test_one_magnification_draws_patches_with_replacement():
    bag = numbered({}, {"": 1000})
    drawn = resample(bag, np.random.default_rng(0)).features[""][:, 0]
    assert len(drawn) == 1000
    assert 0.60 < len(np.unique(drawn)) / 1000 < 0.67  # 1 - 1/e

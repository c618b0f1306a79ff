"""Mean and deviation of features over the training instances, in one pass that also checks every value."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mil.batches import BagReader
from mil.dataset import check_finite
from zoomfeat.errors import ConfigurationError

_ROWS = 256
"""Instances at once, about a megabyte of them: what is in the cache is not fetched again."""


def feature_moments(
    reader: BagReader, training: NDArray[np.intp], others: NDArray[np.intp]
) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]]:
    """Moments of each magnification's features over the instances of the training bags.

    Every bag counts alike, so that a few large ones do not decide. Sums are about the first instance, so that large
    means cost no digits.

    Args:
        reader: of all bags.
        training: the bags to take moments of.
        others: bags that are only checked.

    Returns:
        Means (D_i,) and deviations (D_i,) for each branch; the deviation of a constant feature is 1.

    Raises:
        BagInvalidError: a bag is damaged or holds features that are not finite.
        ConfigurationError: features too large to be squared.
    """
    sums: dict[str, _Sums] = {}
    for bag in training:
        instances = reader.instances(int(bag))
        for name, matrix in instances.features.items():
            if name not in sums:
                sums[name] = _Sums(matrix[0].copy())
            if not sums[name].add(matrix):
                check_finite(instances, reader.sources[int(bag)])
                raise ConfigurationError(
                    f"features up to {np.abs(matrix).max():g}, too large for single precision",
                    cure="Scale them, or check the encoder",
                )
    for bag in others:
        reader.instances(int(bag), check=True)

    means, deviations = zip(*(each.moments(len(training)) for each in sums.values()), strict=True)
    if reader.fusion == "early":
        return [np.concatenate(means)], [np.concatenate(deviations)]
    return list(means), list(deviations)


class _Sums:
    """Sums over bags of the mean and the mean square of each feature, about a shift."""

    def __init__(self, shift: NDArray[np.float32]) -> None:
        self.shift = shift
        self.first = np.zeros(len(shift))
        self.second = np.zeros(len(shift))

    def add(self, matrix: NDArray[np.float32]) -> bool:
        """Adds a bag (N, D); whether all sums are finite, which they are only where all features are."""
        first, second = np.zeros(len(self.shift)), np.zeros(len(self.shift))
        buffer = np.empty((min(_ROWS, len(matrix)), matrix.shape[1]), dtype=np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            for start in range(0, len(matrix), _ROWS):
                rows = matrix[start : start + _ROWS]
                centred = np.subtract(rows, self.shift, out=buffer[: len(rows)])
                first += centred.sum(axis=0)
                second += np.square(centred, out=centred).sum(axis=0)
        self.first += first / len(matrix)
        self.second += second / len(matrix)
        return bool(np.isfinite(self.second).all())

    def moments(self, bags: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean and deviation of each feature, (D,) each."""
        offset = self.first / bags
        variance = np.maximum(self.second / bags - offset**2, 0)
        # Rounding leaves a constant feature a variance of about 1e-14 of its square.
        constant = variance <= 1e-12 * np.square(self.shift.astype(np.float64)) + np.finfo(np.float32).tiny
        mean = (self.shift + offset).astype(np.float32)
        return mean, np.sqrt(np.where(constant, 1, variance)).astype(np.float32)

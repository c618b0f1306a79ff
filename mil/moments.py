"""Mean and deviation of features over the training instances, in one pass that also checks every value."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mil.batches import BagReader


def feature_moments(
    reader: BagReader, training: NDArray[np.intp], others: NDArray[np.intp]
) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]]:
    """Moments of each magnification's features over the instances of the training bags.

    Every bag counts alike, so that a few large ones do not decide. Sums are about the first bag's mean, so that large
    means cost no digits.

    Args:
        reader: of all bags.
        training: the bags to take moments of.
        others: bags that are only checked.

    Returns:
        Means (D_i,) and deviations (D_i,) for each branch; the deviation of a constant feature is 1.

    Raises:
        BagInvalidError: a bag is damaged or holds features that are not finite.
    """
    shifts: list[NDArray[np.float32]] = []
    sums: list[NDArray[np.float64]] = []
    squares: list[NDArray[np.float64]] = []
    for bag in training:
        matrices = list(reader.instances(int(bag), check=True).features.values())
        if not shifts:
            shifts = [matrix.mean(axis=0) for matrix in matrices]
            sums = [np.zeros(matrix.shape[1]) for matrix in matrices]
            squares = [np.zeros(matrix.shape[1]) for matrix in matrices]
        for place, matrix in enumerate(matrices):
            centred = matrix - shifts[place]
            sums[place] += centred.mean(axis=0)
            squares[place] += np.einsum("nd,nd->d", centred, centred) / len(matrix)
    for bag in others:
        reader.instances(int(bag), check=True)

    means, deviations = [], []
    for shift, total, square in zip(shifts, sums, squares, strict=True):
        mean = total / len(training)
        variance = np.maximum(square / len(training) - mean**2, 0)
        # Rounding leaves a constant feature a variance of about 1e-14 of its square.
        constant = variance <= 1e-12 * np.square(shift.astype(np.float64)) + np.finfo(np.float32).tiny
        means.append((shift + mean).astype(np.float32))
        deviations.append(np.sqrt(np.where(constant, 1, variance)).astype(np.float32))
    if reader.fusion == "early":
        return [np.concatenate(means)], [np.concatenate(deviations)]
    return means, deviations

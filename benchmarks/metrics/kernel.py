"""The kernel distance of two sets of features: KID, over the Inception that this name stands for.

Binkowski et al., "Demystifying MMD GANs", 2018, section 4: the squared maximum mean discrepancy under the kernel
``(x.y / D + 1)^3``, by its unbiased estimator.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

from benchmarks.metrics.features import FeatureSet, Network
from benchmarks.metrics.intervals import around, jackknife_error
from benchmarks.metrics.registry import Measurement, set_metric
from zoomfeat.errors import ConfigurationError

SUBSETS = 100
SUBSET_SIZE = 1_000

_ROWS = 1_000  # of the kernel matrix at once


@set_metric
def kid(
    made: FeatureSet, real: FeatureSet, *, subsets: int = SUBSETS, subset_size: int = SUBSET_SIZE, seed: int = 0
) -> list[Measurement]:
    """The kernel distance: the mean over random subsets of equal size. Less is better; unbiased, so it may be below 0.

    The note gives the deviation over subsets that papers print after a ±, and the error of their mean: how far another
    seed would move it. Neither is the error of sampling images, as subsets overlap; the interval is, from a jackknife
    over images of the same statistic on the whole samples. Near 0 it is too wide rather than too narrow.

    Args:
        made: generated.
        real: what they should be like.
        subsets: how many.
        subset_size: images in each; at most those there are.
        seed: of the subsets.

    Raises:
        ConfigurationError: fewer than three images in a set, or sets of different networks.
    """
    made.check_comparable(real)
    value, deviation, size = kernel_distance(made.sample, real.sample, subsets, subset_size, seed)
    low, high = around(value, _standard_error(made.sample, real.sample))
    if size == len(made.sample) == len(real.sample):
        note = f"of all {size} images at once"
    else:
        mean_error = deviation / subsets**0.5
        note = f"{subsets} subsets of {size}: deviation {deviation:.3g}, error of their mean {mean_error:.2g}"
    resampled = "images, by a jackknife over those of either set"
    return [
        Measurement(
            kernel_name(made.network, made.view), value, low, high, resampled, False, len(made), len(real), note
        )
    ]


def kernel_name(network: Network, view: str = "") -> str:
    """What the distance is called: KID over the FID Inception, CLIP KID over OpenAI's, else by the network's name."""
    what = "crop " if view else ""
    return f"{what}kernel distance ({network.name})" if network.short is None else f"{what}{network.short}KID"


def kernel_distance(
    made: NDArray[np.floating],
    real: NDArray[np.floating],
    subsets: int = SUBSETS,
    subset_size: int = SUBSET_SIZE,
    seed: int = 0,
) -> tuple[float, float, int]:
    """torch-fidelity's, of features (N, D) and (M, D): mean and deviation over subsets, and the size they had.

    Raises:
        ConfigurationError: fewer than three images in a set.
    """
    if min(len(made), len(real)) < 3:
        raise ConfigurationError(f"features of {len(made)} and {len(real)} images", cure="Give at least three of each")
    size = min(subset_size, len(made), len(real))
    if size == len(made) == len(real):
        subsets = 1  # they are all the same
    found = kid_features_to_metric(
        *(torch.from_numpy(np.asarray(features, dtype=np.float64)) for features in (made, real)),
        kid_subsets=subsets,
        kid_subset_size=size,
        rng_seed=seed,
        verbose=False,
    )
    return found[KEY_METRIC_KID_MEAN], found[KEY_METRIC_KID_STD], size


def _standard_error(made: NDArray[np.float32], real: NDArray[np.float32]) -> float:
    """The jackknife of a two-sample U-statistic (Arvesen 1969), which leaves each image out once, from row sums."""
    n, m = len(made), len(real)
    ours, theirs = _sums(made, made) - _self(made), _sums(real, real) - _self(real)
    across, back = _sums(made, real), _sums(real, made)

    def distance(within: NDArray, others: NDArray, between: NDArray, n: int, m: int) -> NDArray:
        return within / (n * (n - 1)) + others / (m * (m - 1)) - 2 * between / (n * m)

    total = across.sum()
    without_made = distance(ours.sum() - 2 * ours, theirs.sum(), total - across, n - 1, m)
    without_real = distance(ours.sum(), theirs.sum() - 2 * theirs, total - back, n, m - 1)
    return float(np.hypot(jackknife_error(without_made), jackknife_error(without_real)))


def _sums(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """Sums of the kernel of each row of a with all rows of b."""
    b = b.astype(np.float64)
    parts = [
        (a[start : start + _ROWS].astype(np.float64) @ b.T / b.shape[1] + 1) ** 3 for start in range(0, len(a), _ROWS)
    ]
    return np.concatenate([part.sum(1) for part in parts])


def _self(a: NDArray[np.float32]) -> NDArray[np.float64]:
    return (np.square(a.astype(np.float64)).sum(1) / a.shape[1] + 1) ** 3

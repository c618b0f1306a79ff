"""95 % intervals: resampled where what is resampled are images, exact where the quantity is a share."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, bootstrap, t

from mil.metrics import LEVEL, RESAMPLES

_ACCELERATED = 2_000  # images: beyond, the jackknife of BCa costs more than it corrects
_BATCH = 100


def of_mean(values: NDArray[np.floating], seed: int = 0) -> tuple[float, float]:
    """Bootstrap of a mean over images: bias-corrected and accelerated (Efron 1987), of many images percentiles.

    Args:
        values: one an image, (n,).
        seed: of the resampling.

    Returns:
        Both ends; NaN for fewer than two images or where a value is not finite.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2 or not np.isfinite(values).all():
        return np.nan, np.nan
    if np.ptp(values) == 0:  # nothing to resample
        return float(values[0]), float(values[0])
    found = bootstrap(
        (values,),
        partial(np.mean, axis=-1),
        n_resamples=RESAMPLES,
        batch=_BATCH,
        vectorized=True,
        confidence_level=LEVEL,
        method="BCa" if len(values) <= _ACCELERATED else "percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def of_share(count: int, n: int) -> tuple[float, float]:
    """Wilson's interval of a share of n images, which needs no resampling and stays within 0 and 1."""
    found = binomtest(count, n).proportion_ci(LEVEL, method="wilson")
    return float(found.low), float(found.high)


def around(value: float, error: float, freedom: float = np.inf) -> tuple[float, float]:
    """The interval of a value with a standard error, of so many degrees of freedom (Student's t; else normal)."""
    reach = float(t.ppf((1 + LEVEL) / 2, freedom)) * error
    return value - reach, value + reach


def jackknife_error(left_out: NDArray[np.floating]) -> float:
    """Standard error from estimates which leave one of G equal parts out (Efron and Tibshirani 1993, chapter 11)."""
    parts = len(left_out)
    return float(np.sqrt((parts - 1) / parts * np.square(left_out - np.mean(left_out)).sum()))

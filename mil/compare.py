"""Is one set of predictions better than another of the same patients: DeLong, a paired bootstrap, Holm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

from mil.metrics import LEVEL, RESAMPLES, Metric, bootstrap_weights


@dataclass(frozen=True)
class Difference:
    """One metric of two sets of predictions.

    Attributes:
        first: value of the first.
        second: value of the second.
        difference: second less first.
        low: lower end of its 95 % interval.
        high: upper end.
        p: two-sided p-value of no difference.
    """

    first: float
    second: float
    difference: float
    low: float
    high: float
    p: float


def delong(y: NDArray[np.integer], first: NDArray[np.floating], second: NDArray[np.floating]) -> Difference:
    """DeLong's test of two correlated areas under the ROC curve.

    The covariance of DeLong, DeLong and Clarke-Pearson (Biometrics 1988, 44:837), computed from midranks as in Sun and
    Xu (IEEE Signal Processing Letters 2014, 21:1389). It is asymptotic: below about ten patients of a class, or where
    an area is 1, prefer the bootstrap or neither.

    Args:
        y: (n,) 1 for positive, 0 for negative.
        first: (n,) scores.
        second: (n,) scores of the same patients.

    Returns:
        Areas, and their difference with interval and p; p is NaN where the difference has no variance but is not zero.
    """
    areas, covariance = delong_covariance(y, np.stack([first, second]))
    difference = float(areas[1] - areas[0])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    error = float(np.sqrt(max(variance, 0.0)))  # 0 for the same ranking, or two perfect ones
    same = 1.0 if abs(difference) < 1e-12 else np.nan
    p = float(2 * norm.sf(abs(difference) / error)) if error > 1e-12 else same
    reach = float(norm.ppf((1 + LEVEL) / 2)) * error
    return Difference(float(areas[0]), float(areas[1]), difference, difference - reach, difference + reach, p)


def delong_covariance(
    y: NDArray[np.integer], scores: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Areas under several ROC curves on the same patients, and their covariance.

    Args:
        y: (n,) 1 for positive, 0 for negative; at least two of each.
        scores: (k, n).

    Returns:
        (k,) areas and (k, k) covariance.
    """
    positive, negative = scores[:, y == 1], scores[:, y == 0]
    m, n = positive.shape[1], negative.shape[1]
    among_all = rankdata(np.concatenate([positive, negative], axis=1), axis=1)
    # The structural components: how many negatives each positive outranks, and the reverse, as shares.
    of_positives = (among_all[:, :m] - rankdata(positive, axis=1)) / n
    of_negatives = 1 - (among_all[:, m:] - rankdata(negative, axis=1)) / m
    covariance = np.cov(of_positives) / m + np.cov(of_negatives) / n
    return of_positives.mean(axis=1), np.atleast_2d(covariance)


def paired_bootstrap(first: Metric, second: Metric, n: int, seed: int = 0, resamples: int = RESAMPLES) -> Difference:
    """The difference of a metric over resamples of patients, the same for both.

    Args:
        first: the metric of the first predictions as a function of weights.
        second: that of the second, of the same patients in the same order.
        n: patients.
        seed: of the resampling.
        resamples: how many.

    Returns:
        The values, the difference with its percentile interval, and twice the smaller share of resamples on one side
        of zero (Davison and Hinkley 1997, section 4.4: with one added above and below, so never 0).
    """
    ones = np.ones((1, n))
    a, b = float(first(ones)[0]), float(second(ones)[0])
    weights = bootstrap_weights(n, seed, resamples)
    drawn = second(weights) - first(weights)
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn):
        return Difference(a, b, b - a, np.nan, np.nan, np.nan)
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    side = min((drawn <= 0).sum(), (drawn >= 0).sum())
    p = min(1.0, 2 * float(side + 1) / (len(drawn) + 1))
    return Difference(a, b, b - a, float(low), float(high), p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of a family of tests (Holm, Scandinavian Journal of Statistics 1979, 6:65); NaN stays NaN.

    The smallest of m is multiplied by m, the next by m - 1, and so on; none falls below one before it.
    """
    p = np.asarray(p_values, dtype=np.float64)
    known = np.flatnonzero(np.isfinite(p))
    order = known[np.argsort(p[known], kind="stable")]
    scaled = p[order] * np.arange(len(order), 0, -1)
    adjusted = p.copy()
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted.tolist()


def shown_p(value: float) -> str:
    """A p-value as tables show it, to three decimals; below 0.001 only that."""
    if np.isnan(value):
        return "undefined"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"

"""How good predictions are, with intervals from a bootstrap over patients.

Every metric is one function of weights: a row of whole numbers says how often each patient counts. A row of ones gives
the value itself, multinomial rows the bootstrap, rows with one zero the jackknife; all rows are computed at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit
from scipy.stats import norm

Weights = NDArray[np.float64]
Values = NDArray[np.float64]
Metric = Callable[[Weights], Values]
"""Weights (B, n) to the metric of each row (B,); NaN where a row leaves it undefined."""

RESAMPLES = 2_000
LEVEL = 0.95

LOWER_IS_BETTER = ("brier", "ece", "mae")

_TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
_CELLS = 4_000_000  # of weights at once: 32 MB


@dataclass(frozen=True)
class Estimate:
    """A metric with its interval.

    Attributes:
        value: of the sample; NaN where it is undefined.
        low: lower end of the 95 % interval; NaN where there is none.
        high: upper end.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if np.isnan(self.value):
            return "undefined"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def classification_metrics(y: NDArray[np.integer], probabilities: NDArray[np.floating]) -> dict[str, Metric]:
    """The metrics of n patients with C classes.

    - ``auroc``: area under the ROC curve; of several classes the mean of one against the rest.
    - ``average_precision``: of the second of two classes; of several the mean of one against the rest.
    - ``accuracy``, ``balanced_accuracy`` (mean recall), ``f1`` (of the second of two classes; of several the mean).
    - ``brier``: mean squared error of the probability of the second of two classes; of several classes the sum over
      the classes (Brier 1950), so that it ranges from 0 to 2.
    - ``ece``: expected calibration error in ten equal bins (Guo et al. 2017, section 3): of the probability of the
      second of two classes, of several that of the predicted class.

    A prediction is the class of the largest probability; of two classes the second one from 0.5.

    Args:
        y: (n,) class indices.
        probabilities: (n, C), rows that sum to one.
    """
    y = np.asarray(y)
    p = np.asarray(probabilities, dtype=np.float64)
    truth = np.eye(p.shape[1])[y]  # (n, C)
    binary = p.shape[1] == 2
    predicted = (p[:, 1] >= 0.5).astype(int) if binary else p.argmax(axis=1)
    guess = np.eye(p.shape[1])[predicted]
    right = (predicted == y).astype(np.float64)
    confidence, event = (p[:, 1], truth[:, 1]) if binary else (p.max(axis=1), right)
    squared = (p[:, 1] - truth[:, 1]) ** 2 if binary else ((p - truth) ** 2).sum(axis=1)
    ones = (1,) if binary else tuple(range(p.shape[1]))  # the classes that count as positive, one after the other

    def macro(area: Callable[[Weights, NDArray, NDArray], Values]) -> Metric:
        return lambda weights: np.mean([area(weights, truth[:, c], p[:, c]) for c in ones], axis=0)

    def recall(weights: Weights) -> Values:
        return np.mean(_ratio(weights @ (truth * guess), weights @ truth), axis=1)

    def f1(weights: Weights) -> Values:
        both, either = weights @ (truth * guess), weights @ (truth + guess)
        scores = 2 * np.divide(both, either, out=np.zeros_like(both), where=either > 0)
        return scores[:, list(ones)].mean(axis=1)

    return {
        "auroc": macro(auroc),
        "average_precision": macro(average_precision),
        "accuracy": _mean(right),
        "balanced_accuracy": recall,
        "f1": f1,
        "brier": _mean(squared),
        "ece": lambda weights: _calibration_error(weights, event, confidence),
    }


def regression_metrics(y: NDArray[np.floating], predictions: NDArray[np.floating]) -> dict[str, Metric]:
    """R2 (of the sample's own mean), Pearson's r and the mean absolute error of n numbers."""
    y, p = np.asarray(y, dtype=np.float64), np.asarray(predictions, dtype=np.float64)
    # Centred first, since the moments below cancel otherwise.
    a, b = y - y.mean(), p - y.mean()

    def moments(weights: Weights) -> tuple[Values, ...]:
        mean_a, mean_b = _mean(a)(weights), _mean(b)(weights)
        return (
            _mean(a**2)(weights) - mean_a**2,
            _mean(b**2)(weights) - mean_b**2,
            _mean(a * b)(weights) - mean_a * mean_b,
        )

    def r2(weights: Weights) -> Values:
        return 1 - _ratio(_mean((a - b) ** 2)(weights), moments(weights)[0])

    def pearson(weights: Weights) -> Values:
        variance_a, variance_b, covariance = moments(weights)
        return _ratio(covariance, np.sqrt(np.maximum(variance_a, 0) * np.maximum(variance_b, 0)))

    return {"r2": r2, "pearson": pearson, "mae": _mean(np.abs(a - b))}


def survival_metrics(
    time: NDArray[np.floating], event: NDArray[np.bool_], risk: NDArray[np.floating]
) -> dict[str, Metric]:
    """Harrell's concordance index: of the pairs whose order in time is known, the share that the risk orders likewise.

    A pair is known where the earlier of two different times is an event; equal risks count one half (Harrell et al.
    1982).
    """
    known = (np.asarray(time)[:, None] < np.asarray(time)[None, :]) & np.asarray(event, dtype=bool)[:, None]
    risk = np.asarray(risk, dtype=np.float64)
    higher = (risk[:, None] > risk[None, :]) + 0.5 * (risk[:, None] == risk[None, :])
    pairs, concordant = known.astype(np.float64), known * higher

    def concordance(weights: Weights) -> Values:
        return _ratio(((weights @ concordant) * weights).sum(axis=1), ((weights @ pairs) * weights).sum(axis=1))

    return {"concordance": concordance}


def auroc(weights: Weights, truth: NDArray[np.floating], scores: NDArray[np.floating]) -> Values:
    """Area under the ROC curve: the share of pairs of a positive and a negative in order; ties count one half.

    Args:
        weights: (B, n).
        truth: (n,) 1 for positive, 0 for negative.
        scores: (n,).
    """
    positive, negative = _by_score(weights, truth, scores, descending=False)
    below = np.cumsum(negative, axis=1) - negative
    return _ratio((positive * (below + 0.5 * negative)).sum(axis=1), positive.sum(axis=1) * negative.sum(axis=1))


def average_precision(weights: Weights, truth: NDArray[np.floating], scores: NDArray[np.floating]) -> Values:
    """Precision at every threshold, weighted by the gain in recall; the arguments are those of `auroc`."""
    positive, negative = _by_score(weights, truth, scores, descending=True)
    found = np.cumsum(positive, axis=1)
    taken = found + np.cumsum(negative, axis=1)
    precision = np.divide(found, taken, out=np.zeros_like(found), where=taken > 0)
    return _ratio((positive * precision).sum(axis=1), positive.sum(axis=1))


def estimates(
    metrics: Mapping[str, Metric], n: int, seed: int = 0, resamples: int = RESAMPLES, smallest: int | None = None
) -> dict[str, Estimate]:
    """Values with 95 % intervals from a bootstrap over n patients; all metrics share the resamples.

    Intervals are bias-corrected and accelerated (BCa; Efron 1987), which cover nearer to 95 % than percentiles do at a
    hundred patients. Two metrics are biased too much for it. The average precision has a normal interval on the logit
    scale, less the bias of the bootstrap; the calibration error, whose resamples lie above it by about as much as it
    lies above the truth, has the basic interval, from 0 and at least up to the value (both Davison and Hinkley 1997,
    section 5.2).

    A perfect score of 1 has no spread to resample. Its lower end is (0.025)^(1/m) with m the size of the smallest
    class: m disjoint pairs of a positive and a negative are all in order with probability A^m or less where the area
    is A, and likewise for shares of correct predictions.

    Args:
        metrics: name to function of weights.
        n: patients.
        seed: of the resampling.
        resamples: how many.
        smallest: size of the smallest class, where metrics are those of classes; 0 where one is not there.
    """
    values = {name: float(metric(np.ones((1, n)))[0]) for name, metric in metrics.items()}
    rows = max(1, _CELLS // n)
    weights = bootstrap_weights(n, seed, resamples)
    drawn = _evaluate(metrics, (weights[start : start + rows] for start in range(0, resamples, rows)))
    left_out = _evaluate(metrics, _without_each(n, rows))
    found = {}
    for name, value in values.items():
        resampled = drawn[name][np.isfinite(drawn[name])]
        if np.isnan(value) or not len(resampled):
            found[name] = Estimate(value, np.nan, np.nan)
            continue
        if name == "ece":
            low, high = _basic(value, resampled)
        elif name == "average_precision":
            low, high = _logit(value, resampled, n)
        else:
            low, high = _bca(value, resampled, left_out[name])
        if value == 1 and smallest is not None and name not in LOWER_IS_BETTER:
            low, high = min(low, _TAILS[0] ** (1 / (smallest or n))), 1.0
        found[name] = Estimate(value, low, high)
    return found


def bootstrap_weights(n: int, seed: int, resamples: int = RESAMPLES) -> Weights:
    """(resamples, n): how often each of n patients is in each resample."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)


def _without_each(n: int, rows: int) -> Iterator[Weights]:
    """The jackknife: (n, n) ones with a zero diagonal, in blocks."""
    for start in range(0, n, rows):
        block = np.ones((min(rows, n - start), n))
        block[np.arange(len(block)), start + np.arange(len(block))] = 0
        yield block


def _evaluate(metrics: Mapping[str, Metric], blocks: Iterable[Weights]) -> dict[str, Values]:
    """The metrics of all rows, block by block so that memory stays bounded."""
    parts = [{name: metric(block) for name, metric in metrics.items()} for block in blocks]
    return {name: np.concatenate([part[name] for part in parts]) for name in metrics}


def _bca(value: float, drawn: Values, left_out: Values) -> tuple[float, float]:
    left_out = left_out[np.isfinite(left_out)]
    below = (drawn < value).mean() + 0.5 * (drawn == value).mean()
    bias = norm.ppf(np.clip(below, 1 / (len(drawn) + 1), len(drawn) / (len(drawn) + 1)))
    influence = left_out.mean() - left_out if len(left_out) else np.zeros(1)
    spread = (influence**2).sum() ** 1.5
    acceleration = (influence**3).sum() / (6 * spread) if spread > 0 else 0.0
    ends = bias + norm.ppf(_TAILS)
    low, high = np.quantile(drawn, norm.cdf(bias + ends / (1 - acceleration * ends)))
    return float(low), float(high)


def _basic(value: float, drawn: Values) -> tuple[float, float]:
    low, high = np.quantile(drawn, _TAILS)
    return max(0.0, float(2 * value - high)), max(value, float(2 * value - low))


def _logit(value: float, drawn: Values, n: int) -> tuple[float, float]:
    least = 1 / (2 * n)  # keeps 0 and 1 finite
    center, resampled = logit(np.clip(value, least, 1 - least)), logit(np.clip(drawn, least, 1 - least))
    low, high = expit(2 * center - resampled.mean() + norm.ppf(_TAILS) * resampled.std())
    return float(low), float(high)


def _calibration_error(weights: Weights, event: NDArray, confidence: NDArray, bins: int = 10) -> Values:
    member = np.eye(bins)[np.minimum((confidence * bins).astype(int), bins - 1)]
    gaps = np.abs(weights @ (member * (confidence - event)[:, None])).sum(axis=1)
    return _ratio(gaps, weights.sum(axis=1))


def _by_score(weights: Weights, truth: NDArray, scores: NDArray, *, descending: bool) -> tuple[Values, Values]:
    """(B, G) weights of positives and of negatives at each of G different scores, in order."""
    order = np.argsort(-scores if descending else scores, kind="stable")
    ranked = scores[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    weights, truth = weights[:, order], truth[order]
    positive = np.add.reduceat(weights * truth, starts, axis=1)
    return positive, np.add.reduceat(weights, starts, axis=1) - positive


def _mean(values: NDArray[np.floating]) -> Metric:
    return lambda weights: _ratio(weights @ values, weights.sum(axis=1))


def _ratio(above: Values, below: Values) -> Values:
    """NaN, not a warning, where there is nothing to divide by."""
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from mil.compare import delong, delong_covariance, holm, paired_bootstrap
from mil.metrics import classification_metrics

# Ovarian cancer with bowel obstruction (DeLong, DeLong and Clarke-Pearson 1988), as printed in the SAS/STAT User's
# Guide, PROC LOGISTIC, example "Comparing Receiver Operating Characteristic Curves": the 43 complete records of
# albumin, total protein, K-G score and outcome.
OVARIAN = """
3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0  1.6 5.6 5 1  3.8 5.7 5 1
3.7 6.7 6 1   3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1  4.3 7.0 4 1  3.6 6.7 4 0  2.3 4.4 6 1  4.2 7.6 4 0
4.0 6.6 6 0   3.5 5.8 6 1  3.8 6.8 7 1  3.0 4.7 8 0  4.5 7.4 5 1  3.7 7.4 5 1  3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1
4.3 6.5 4 1   3.2 5.1 5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0  3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1  3.5 6.2 5 1
2.9 5.7 9 0   2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1  3.3 5.7 6 1  3.7 6.9 5 1  3.6 6.6 5 1
"""


def ovarian():
    albumin, protein, score, outcome = np.array(OVARIAN.split(), dtype=float).reshape(-1, 4).T
    return outcome.astype(int), albumin, protein, 10 - score


def test_delong_against_the_published_example():
    """Areas, standard errors, differences, intervals and p-values to the four digits that the guide prints."""
    y, albumin, protein, score = ovarian()
    areas, covariance = delong_covariance(y, np.stack([score, albumin, protein]))
    np.testing.assert_allclose(areas, [0.7258, 0.7366, 0.6478], atol=5e-5)
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), [0.1028, 0.0927, 0.1000], atol=5e-5)
    first = delong(y, score, albumin)
    found = (first.difference, first.low, first.high, first.p)
    np.testing.assert_allclose(found, (0.0108, -0.1761, 0.1976, 0.9102), atol=5e-5)
    second = delong(y, score, protein)
    found = (second.difference, second.low, second.high, second.p)
    np.testing.assert_allclose(found, (-0.0780, -0.2830, 0.1271, 0.4561), atol=5e-5)


@pytest.mark.parametrize("ties", [False, True])
def test_delong_against_its_definition(ties):
    """Midranks give the structural components that pairwise comparison gives (DeLong et al. 1988, eqs. 5 to 8)."""
    rng = np.random.default_rng(0)
    y = rng.permutation(np.repeat([0, 1], [45, 30]))
    scores = rng.normal(size=(2, 75)) + y
    if ties:
        scores = np.round(scores)
    tens, zeros = [], []
    for row in scores:
        pairs = np.subtract.outer(row[y == 1], row[y == 0])
        psi = (pairs > 0) + 0.5 * (pairs == 0)
        tens.append(psi.mean(axis=1))
        zeros.append(psi.mean(axis=0))
    areas, covariance = delong_covariance(y, scores)
    np.testing.assert_allclose(areas, [roc_auc_score(y, row) for row in scores])
    np.testing.assert_allclose(covariance, np.cov(tens) / 30 + np.cov(zeros) / 45)


def test_equal_predictions_do_not_differ():
    y = np.repeat([0, 1], 20)
    scores = np.random.default_rng(1).random(40)
    found = delong(y, scores, scores * 2)
    assert (found.difference, found.p) == (0, 1)
    perfect = delong(y, y.astype(float), y.astype(float))
    assert perfect.p == 1


def metric_of(y, scores):
    p = 1 / (1 + np.exp(-scores))
    return classification_metrics(y, np.stack([1 - p, p], axis=1))["auroc"]


def test_bootstrap_and_delong_tell_the_same():
    rng = np.random.default_rng(2)
    y = rng.integers(2, size=300)
    shared = rng.normal(size=300) + y
    weak, strong = shared + rng.normal(size=300) * 1.5, shared + rng.normal(size=300) * 0.3
    one, two = delong(y, weak, strong), paired_bootstrap(metric_of(y, weak), metric_of(y, strong), 300)
    assert two.difference == pytest.approx(one.difference)
    assert (two.low, two.high) == (pytest.approx(one.low, abs=0.01), pytest.approx(one.high, abs=0.01))
    assert one.p < 0.01
    assert two.p < 0.01
    back = paired_bootstrap(metric_of(y, strong), metric_of(y, weak), 300)
    assert (back.difference, back.low, back.p) == pytest.approx((-two.difference, -two.high, two.p))


def test_p_values_are_uniform_where_nothing_differs():
    """Under the null hypothesis five in a hundred tests find something, give or take the noise of 400 studies."""
    rng = np.random.default_rng(3)
    by_delong, by_bootstrap = [], []
    for number in range(400):
        y = rng.permutation(np.repeat([0, 1], 50))
        shared = rng.normal(size=100) + y
        first, second = shared + rng.normal(size=100), shared + rng.normal(size=100)
        by_delong.append(delong(y, first, second).p)
        found = paired_bootstrap(metric_of(y, first), metric_of(y, second), 100, seed=number, resamples=400)
        by_bootstrap.append(found.p)
    for p_values in (by_delong, by_bootstrap):
        share = np.mean(np.array(p_values) < 0.05)
        reach = norm.ppf(0.999) * np.sqrt(0.05 * 0.95 / 400)
        assert abs(share - 0.05) < reach


def test_holm_by_hand():
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1; then no value below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.7, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    assert np.isnan(holm([0.01, np.nan])[1])
    assert holm([0.01, np.nan])[0] == 0.01

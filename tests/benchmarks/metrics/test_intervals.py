from __future__ import annotations

import numpy as np
import pytest

from benchmarks.metrics import Measurement
from benchmarks.metrics.intervals import around, jackknife_error, of_mean, of_share


def test_mean_of_many_images_has_about_the_normal_interval() -> None:
    values = np.random.default_rng(0).normal(5, 2, 3000)
    expected = around(values.mean(), values.std(ddof=1) / np.sqrt(3000))
    assert of_mean(values) == pytest.approx(expected, abs=0.01)
    few = values[:200]
    assert of_mean(few) == pytest.approx(around(few.mean(), few.std(ddof=1) / np.sqrt(200)), abs=0.05)


def test_mean_without_spread_or_meaning() -> None:
    assert of_mean(np.full(5, 3.0)) == (3, 3)
    assert np.isnan(of_mean(np.array([1.0]))).all()
    assert np.isnan(of_mean(np.array([1.0, np.inf]))).all()


def test_share_stays_within_its_range() -> None:
    assert of_share(0, 20) == pytest.approx((0, 0.1611), abs=1e-4)  # Wilson (1927), z = 1.96: z^2 / (n + z^2)
    low, high = of_share(20, 20)
    assert (low, high) == pytest.approx((1 - 0.1611, 1), abs=1e-4)


def test_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(size=50)
    left_out = (values.sum() - values) / 49
    assert jackknife_error(left_out) == pytest.approx(values.std(ddof=1) / np.sqrt(50))


def test_measurement_reads_as_a_line() -> None:
    facts = ("images", False, 3, 4)
    assert str(Measurement("FID", 12.345, 11.0, 13.5, *facts)) == "FID 12.35 [11, 13.5]"
    assert str(Measurement("FID", 12.345, np.nan, np.nan, *facts)) == "FID 12.35"

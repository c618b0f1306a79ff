"""Paired tests of every pair: what is tested, on whom, and how p is corrected."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from benchmarks.significance import Pair, all_pairs, groups, image_test, prediction_test
from benchmarks.significance import Tested as Found  # under its own name it looks like a test
from mil.compare import Difference, delong, holm
from mil.held_out import HeldOutPredictions
from tests.benchmarks.records import PATIENTS, cross_validated


@pytest.fixture(scope="module")
def predictions() -> list[HeldOutPredictions]:
    return [cross_validated(signal, "mean").by_patient() for signal in (4.0, 3.0, 2.0, 0.0)]


def positives(held_out: HeldOutPredictions) -> np.ndarray:
    return held_out.table.prob_1.to_numpy()


def test_areas_are_tested_by_delong_and_corrected_by_holm(predictions):
    pairs = all_pairs(predictions, prediction_test("auroc"))
    assert [(pair.first, pair.second) for pair in pairs] == list(combinations(range(4), 2))
    y = predictions[0].class_indices()
    expected = [delong(y, positives(predictions[p.first]), positives(predictions[p.second])) for p in pairs]
    assert [pair.tested for pair in pairs] == [Found("DeLong", PATIENTS, each) for each in expected]
    assert [pair.p_holm for pair in pairs] == holm([each.p for each in expected])
    # Useless features are told from the best ones; predictions are not told from themselves.
    assert pairs[2].differs
    assert pairs[2].tested.difference.difference < -0.2
    (itself,) = all_pairs([predictions[0]] * 2, prediction_test("auroc"))
    assert itself.p_holm == 1
    assert not itself.differs


def test_other_metrics_few_patients_and_perfect_scores_are_resampled(predictions):
    first, second = predictions[0], predictions[2]
    assert prediction_test("brier")(first, second).test == "paired bootstrap"
    few = HeldOutPredictions(first.table[:16])  # eight of each class, since they come in turn
    tested = prediction_test("auroc")(few, second)
    assert (tested.test, tested.count) == ("paired bootstrap", 16)
    perfect = first.table.assign(prob_1=(first.table.y_true == "1") * 0.8 + 0.1)
    tested = prediction_test("auroc")(HeldOutPredictions(perfect), second)
    assert tested.test == "paired bootstrap"
    assert tested.difference.first == 1
    assert tested.difference.p < 0.05


def test_only_common_patients_of_one_truth_are_compared(predictions):
    first, second = predictions[0], predictions[2]
    shuffled = HeldOutPredictions(second.table.sample(30, random_state=0))
    tested = prediction_test("auroc")(first, shuffled)
    of_first = HeldOutPredictions(first.table[first.table.patient_id.isin(shuffled.table.patient_id)])
    ordered = shuffled.table.sort_values("patient_id").prob_1.to_numpy()
    assert tested.count == 30
    assert tested.difference == delong(of_first.class_indices(), positives(of_first), ordered)

    flipped = second.table.assign(y_true=second.table.y_true.replace({"0": "1", "1": "0"}))
    strangers = second.table.assign(patient_id=lambda rows: "other-" + rows.patient_id)
    renamed = second.table.rename(columns={"prob_1": "prob_2"})
    for table, why in ((flipped, "other labels"), (strangers, "no common patients"), (renamed, "other classes")):
        tested = prediction_test("auroc")(first, HeldOutPredictions(table))
        assert tested.test.startswith(why)
        assert tested.difference is None
    pairs = all_pairs([first, second, HeldOutPredictions(flipped)], prediction_test("auroc"))
    assert np.isnan([pair.p_holm for pair in pairs[1:]]).all()
    assert pairs[0].p_holm == pairs[0].tested.difference.p  # a family of one


def test_images_are_compared_by_their_names():
    rng = np.random.default_rng(0)
    names = [f"image-{number}" for number in range(40)]
    hard = rng.normal(25, 3, size=40)  # how hard an image is counts for both
    first = pd.Series(hard + rng.normal(scale=0.3, size=40), index=names)
    second = pd.Series(hard + 0.4 + rng.normal(scale=0.3, size=40), index=names)
    tested = image_test(first, second.sample(frac=1, random_state=1))
    found = tested.difference
    assert (tested.test, tested.count) == ("paired bootstrap", 40)
    assert found.first == pytest.approx(first.mean())
    assert found.difference == pytest.approx((second - first).mean())
    reference = ttest_rel(second, first).confidence_interval()
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high), abs=0.05)
    assert found.p < 0.01
    assert image_test(first, second.rename(lambda name: f"x{name}")).difference is None


@given(st.integers(1, 7), st.data())
def test_groups_are_the_largest_sets_without_a_difference(count, data):
    """Against every subset."""
    places = list(combinations(range(count), 2))
    kinds = data.draw(
        st.lists(st.sampled_from(["alike", "differs", "untested"]), min_size=len(places), max_size=len(places))
    )
    nothing = Difference(0.5, 0.5, 0, 0, 0, 1)
    pairs = [
        Pair(a, b, Found("", 9, None if kind == "untested" else nothing), 0.01 if kind == "differs" else 0.5)
        for (a, b), kind in zip(places, kinds, strict=True)
    ]
    alike = {place for place, kind in zip(places, kinds, strict=True) if kind == "alike"}
    sets = [
        set(members)
        for size in range(2, count + 1)
        for members in combinations(range(count), size)
        if set(combinations(members, 2)) <= alike
    ]
    expected = sorted(sorted(each) for each in sets if not any(each < other for other in sets))
    assert groups(count, pairs) == expected

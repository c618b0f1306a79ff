"""The label needs both factors, and confounders do not give it away."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks.phantom import plan_cohort
from benchmarks.phantom.cohort import labels_table
from benchmarks.phantom.plan import GROUPS
from zoomfeat.errors import ConfigurationError


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_neither_factor_gives_the_label_and_both_in_one_lesion_do(seed):
    plans = plan_cohort(40, seed)
    label = [plan.label for plan in plans]
    lesions = [GROUPS[plan.group] for plan in plans]
    nuclei = [any(large for large, _ in planted) for planted in lesions]
    glands = [any(fused for _, fused in planted) for planted in lesions]
    together = [any(large and fused for large, fused in planted) for planted in lesions]
    assert 0.5 <= roc_auc_score(label, nuclei) <= 0.75
    assert 0.5 <= roc_auc_score(label, glands) <= 0.75
    assert roc_auc_score(label, np.logical_and(nuclei, glands)) < 0.95  # both somewhere in the slide is not enough
    assert roc_auc_score(label, together) == 1


def test_positive_slides_hold_no_more_of_a_factor_than_slides_with_both_apart():
    def amounts(group):
        return np.sum(GROUPS[group], axis=0).tolist()

    assert amounts("both") == amounts("apart") == [1, 1]


@pytest.mark.parametrize("slides", [4, 5, 24, 40, 41])
def test_patients_have_one_label_and_are_as_often_positive_as_negative(slides):
    table = labels_table(plan_cohort(slides, seed=1))
    assert len(table) == slides
    assert table.slide_id.is_unique
    patients = table.groupby("patient_id").agg(
        label=("label", "first"), labels=("label", "nunique"), n=("label", "size")
    )
    assert (patients.labels == 1).all()
    assert abs(patients.label.mean() - 0.5) <= 0.51 / len(patients)
    assert set(patients.n) <= {1, 2}


def test_forty_slides_are_of_32_patients_and_second_slides_are_shared_out_alike():
    table = labels_table(plan_cohort(40))
    counts = table.groupby("patient_id").label.agg(["first", "size"])
    assert len(counts) == 32
    assert counts.loc[counts["size"] == 2, "first"].tolist().count(1) == 4
    assert table.label.sum() == 20


def test_confounders_vary_and_know_nothing_of_the_label():
    table = labels_table(plan_cohort(2000, seed=5))
    positive, negative = (table[table.label == label] for label in (1, 0))
    for column in ("mpp", "stain", "pen"):
        shares = [part[column].value_counts(normalize=True).sort_index() for part in (positive, negative)]
        assert shares[0].index.equals(shares[1].index)
        assert len(shares[0]) > 2
        assert np.abs(shares[0] - shares[1]).max() < 0.06
    for column in ("thickness", "blur_um", "nuclear_scale"):
        assert abs(roc_auc_score(table.label, table[column]) - 0.5) < 0.05


def test_the_plan_depends_on_the_seed_alone():
    assert plan_cohort(12, 7) == plan_cohort(12, 7)
    assert plan_cohort(12, 7) != plan_cohort(12, 8)


def test_too_few_slides_are_refused():
    with pytest.raises(ConfigurationError, match="a cohort of 3 slides; expected at least 4"):
        plan_cohort(3)

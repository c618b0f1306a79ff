"""The label needs both factors, and confounders do not give it away."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks.phantom import plan_cohort
from benchmarks.phantom.cohort import labels_table
from benchmarks.phantom.plan import GROUPS
from benchmarks.tasks import load_task, patients_sha256
from zoomfeat.errors import ConfigurationError


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_neither_factor_gives_the_label_and_both_together_do(seed):
    plans = plan_cohort(40, seed)
    label = [plan.label for plan in plans]
    nuclei, cords = np.transpose([GROUPS[plan.group] for plan in plans])
    assert 0.7 <= roc_auc_score(label, nuclei) <= 0.8
    assert 0.7 <= roc_auc_score(label, cords) <= 0.8
    assert roc_auc_score(label, nuclei.astype(int) + cords) == 1


def test_every_negative_patient_has_one_factor_and_each_is_as_frequent():
    groups = [plan.group for plan in plan_cohort(80, seed=4)]
    assert set(groups) == {"both", "nuclei", "architecture"}
    assert abs(groups.count("nuclei") - groups.count("architecture")) <= 3  # a few patients have two slides


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


def test_forty_slides_are_of_36_patients_and_second_slides_are_shared_out_alike():
    table = labels_table(plan_cohort(40))
    counts = table.groupby("patient_id").label.agg(["first", "size"])
    assert len(counts) == 36
    assert counts.loc[counts["size"] == 2, "first"].tolist().count(1) == 2
    assert table.label.sum() == 20


def test_the_task_names_the_patients_of_its_cohort():
    task = load_task("phantom")
    patients = [(plan.patient_id, str(plan.label)) for plan in plan_cohort(task.size, task.seed)]
    assert patients_sha256(patients) == task.patients_sha256


def test_confounders_vary_and_know_nothing_of_the_label():
    table = labels_table(plan_cohort(2000, seed=5))
    positive, negative = (table[table.label == label] for label in (1, 0))
    for column in ("mpp", "stain", "pen"):
        shares = [part[column].value_counts(normalize=True).sort_index() for part in (positive, negative)]
        assert shares[0].index.equals(shares[1].index)
        assert len(shares[0]) > 2
        assert np.abs(shares[0] - shares[1]).max() < 0.06
    for column in ("thickness", "unevenness", "blur_um", "nuclear_scale", "chromasia", "cord_contrast", "granularity"):
        assert abs(roc_auc_score(table.label, table[column]) - 0.5) < 0.05


def test_the_plan_depends_on_the_seed_alone():
    assert plan_cohort(12, 7) == plan_cohort(12, 7)
    assert plan_cohort(12, 7) != plan_cohort(12, 8)


def test_too_few_slides_are_refused():
    with pytest.raises(ConfigurationError, match="a cohort of 3 slides; expected at least 4"):
        plan_cohort(3)

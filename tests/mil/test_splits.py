from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mil.labels import Columns, Labels, read_labels
from mil.splits import (
    Fold,
    Splits,
    center_folds,
    check_leaks,
    check_trainable,
    column_folds,
    load_splits,
    stratified_folds,
)
from zoomfeat.errors import ConfigurationError


def labels_of(patients=60, slides=2, classes=("a", "b"), **more):
    """Every patient has the same number of slides; the last class is a quarter of the patients."""
    names = np.repeat([f"P{number:03d}" for number in range(patients)], slides)
    y = np.repeat(
        [classes[-1] if number % 4 == 0 else classes[number % (len(classes) - 1)] for number in range(patients)], slides
    )
    ids = np.array([f"{name}.{row}" for row, name in enumerate(names)])
    return Labels(Path("labels.csv"), "classification", ids, names, y, classes=tuple(classes), **more)


def test_stratified_folds_keep_patients_whole_and_classes_in_proportion():
    labels = labels_of()
    splits = stratified_folds(labels, 5, seeds=(0, 1))
    check_leaks(splits, labels)
    assert len(splits.folds) == 10
    for seed in (0, 1):
        tested = [slide for fold in splits.of_seed(seed) for slide in fold.test]
        assert sorted(tested) == sorted(labels.slide_ids.tolist())
        for fold in splits.of_seed(seed):
            assert len(fold.test) == 24
            assert np.isin(labels.slide_ids, fold.test)[labels.y == "b"].sum() == 6
            assert set(fold.train) | set(fold.test) == set(labels.slide_ids.tolist())
    assert {fold.test for fold in splits.of_seed(0)} != {fold.test for fold in splits.of_seed(1)}
    assert splits.sha256 == stratified_folds(labels, 5, seeds=(0, 1)).sha256


def test_folds_do_not_depend_on_the_order_of_the_table():
    labels = labels_of()
    shuffled = labels.take(np.random.default_rng(0).permutation(len(labels)))
    assert stratified_folds(labels, 5).sha256 == stratified_folds(shuffled, 5).sha256


def test_numbers_are_stratified_by_their_quantiles():
    names = np.array([f"P{number}" for number in range(100)])
    labels = Labels(Path("l.csv"), "regression", names, names, np.arange(100.0))
    for fold in stratified_folds(labels, 5).folds:
        values = labels.y[np.isin(names, fold.test)]
        assert np.histogram(values, bins=5, range=(0, 100))[0].tolist() == [4] * 5


def test_events_are_spread_over_the_folds():
    names = np.array([f"P{number}" for number in range(50)])
    event = np.arange(50) < 10
    labels = Labels(Path("l.csv"), "survival", names, names, np.arange(1.0, 51), event=event)
    splits = stratified_folds(labels, 5)
    assert all(event[np.isin(names, fold.test)].sum() == 2 for fold in splits.folds)
    check_trainable(splits, labels)


def test_fewer_patients_than_folds():
    with pytest.raises(ConfigurationError, match="8 patients in all, fewer than folds=10"):
        stratified_folds(labels_of(8), 10)
    with pytest.raises(ConfigurationError, match="no class has more than 9"):
        stratified_folds(labels_of(12), 10)
    with pytest.raises(ConfigurationError, match="folds=1"):
        stratified_folds(labels_of(12), 1)


def test_centers_are_held_out_one_by_one():
    centers = np.repeat([["x", "y", "z"][number % 3] for number in range(60)], 2)
    labels = labels_of(centers=centers)
    splits = center_folds(labels)
    check_leaks(splits, labels)
    assert [fold.name for fold in splits.folds] == ["x", "y", "z"]
    for fold in splits.folds:
        assert set(centers[np.isin(labels.slide_ids, fold.test)]) == {fold.name}
        assert fold.name not in set(centers[np.isin(labels.slide_ids, fold.train)])


def test_centers_that_cannot_be_held_out():
    with pytest.raises(ConfigurationError, match="no column of centres"):
        center_folds(labels_of())
    with pytest.raises(ConfigurationError, match=r"2 slides without a centre: P000\.0, P000\.1"):
        center_folds(labels_of(centers=np.r_[["", ""], np.repeat(["x", "y"], 59)]))
    with pytest.raises(ConfigurationError, match="one centre only"):
        center_folds(labels_of(centers=np.repeat("x", 120)))
    with pytest.raises(ConfigurationError, match="60 patients with slides of several centres: P000, P001"):
        center_folds(labels_of(centers=np.tile(["x", "y"], 60)))


def test_folds_of_a_column():
    labels = labels_of(folds=np.repeat([str(number % 5) for number in range(60)], 2))
    assert [(fold.name, len(fold.train), len(fold.test)) for fold in column_folds(labels).folds] == [
        (str(number), 96, 24) for number in range(5)
    ]
    parts = np.repeat([["train", "train", "val", "Test"][number % 4] for number in range(60)], 2)
    (fold,) = column_folds(labels_of(folds=parts)).folds
    assert (len(fold.train), len(fold.validation), len(fold.test)) == (60, 30, 30)
    with pytest.raises(ConfigurationError, match="no column of folds"):
        column_folds(labels_of())


def test_saved_splits_come_back_equal(tmp_path):
    labels = labels_of()
    for splits in (stratified_folds(labels, 3, seeds=(0, 7)), center_folds(labels_of(centers=labels.y))):
        splits.save(tmp_path / "splits.csv")
        again = load_splits(tmp_path / "splits.csv", labels)
        assert again.sha256 == splits.sha256
        assert [(fold.seed, fold.name) for fold in again.folds] == [(fold.seed, fold.name) for fold in splits.folds]


def clam(folder, number, train, val, test):
    """A file as CLAM writes it: a column a part, ragged, with an index."""
    folder.mkdir(exist_ok=True)
    columns = {"train": pd.Series(train), "val": pd.Series(val), "test": pd.Series(test)}
    pd.DataFrame(columns).to_csv(folder / f"splits_{number}.csv")


def test_clams_layout(tmp_path):
    labels = labels_of(12, 1)
    ids = labels.slide_ids.tolist()
    for number in (10, 2, 0):
        clam(tmp_path / "splits", number, ids[:8], ids[8:10], [*ids[10:], "without-label"])
    (tmp_path / "splits" / "splits_0_bool.csv").write_text(",train,val,test\nx,True,False,False\n")
    (tmp_path / "splits" / "splits_0_descriptor.csv").write_text(",train,val,test\na,8,2,2\n")
    splits = load_splits(tmp_path / "splits", labels)
    assert [fold.name for fold in splits.folds] == ["0", "2", "10"]
    assert splits.folds[0] == Fold("0", tuple(ids[:8]), tuple(ids[10:]), tuple(ids[8:10]))
    (one,) = load_splits(tmp_path / "splits" / "splits_2.csv", labels).folds
    assert one.name == "2"
    assert splits.of_seed(5) == splits.folds


def test_fixed_splits_that_do_not_fit(tmp_path):
    labels = labels_of(12, 1)
    clam(tmp_path / "other", 0, ["q"], ["r"], ["s"])
    with pytest.raises(ConfigurationError, match="no slide of its train part is among the 12 slides"):
        load_splits(tmp_path / "other", labels)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match=r"no splits_0\.csv"):
        load_splits(tmp_path / "empty", labels)
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigurationError, match="expected train, val and test, or fold, part and slide_id"):
        load_splits(tmp_path / "table.csv", labels)


@pytest.mark.parametrize("parts", [("train", "test"), ("validation", "test"), ("train", "validation")])
def test_a_deliberate_leak_is_refused_and_named(tmp_path, parts):
    """One slide of a patient in each of two parts, whichever they are."""
    labels = labels_of(12)
    ids = labels.slide_ids.tolist()
    slides = {"train": ids[4:16], "validation": ids[16:20], "test": ids[20:]}
    slides[parts[0]] = [*slides[parts[0]], ids[0]]
    slides[parts[1]] = [*slides[parts[1]], ids[1]]
    clam(tmp_path / "splits", 3, slides["train"], slides["validation"], slides["test"])
    splits = load_splits(tmp_path / "splits", labels)
    message = f"1 of 1 fold with patients in two parts; in fold 3, 1 patient in both {parts[0]} and {parts[1]}: P000"
    with pytest.raises(ConfigurationError, match=message):
        check_leaks(splits, labels)


def test_a_training_part_without_a_class():
    labels = labels_of(12, 1)
    train = labels.slide_ids[labels.y == "a"]
    splits = Splits((Fold("0", tuple(train.tolist()), tuple(labels.slide_ids[labels.y == "b"].tolist())),))
    check_leaks(splits, labels)
    with pytest.raises(ConfigurationError, match="fold 0 trains on 9 slides and no slide of class b"):
        check_trainable(splits, labels)


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["brca_histotypes.csv", "brca_mhrd.csv", "lung.csv", "kidney.csv"])
def test_the_patient_clean_folds_of_tcga_pass(shared, name):
    labels = read_labels(shared / "labels" / name, Columns(fold="test"))
    splits = column_folds(labels)
    assert len(splits.folds) == 5
    check_leaks(splits, labels)
    check_trainable(splits, labels)
    check_leaks(stratified_folds(labels, 10), labels)


@pytest.mark.shared_data
def test_the_slide_level_folds_of_hipt_are_refused(shared, tmp_path):
    with zipfile.ZipFile(shared / "labels" / "hipt_tcga_brca_10fold.zip") as archive:
        archive.extractall(tmp_path)
    labels = read_labels(shared / "labels" / "brca_histotypes.csv")
    splits = load_splits(tmp_path, labels)
    assert [(len(fold.train), len(fold.validation), len(fold.test)) for fold in splits.folds] == [(845, 98, 98)] * 10
    with pytest.raises(ConfigurationError) as caught:
        check_leaks(splits, labels)
    print(caught.value)
    assert "in fold 0, 12 patients in both train and test: TCGA-A7-A0CJ, TCGA-A7-A13G" in str(caught.value)
    patient_of = dict(zip(labels.slide_ids.tolist(), labels.patient_ids.tolist(), strict=True))
    for fold in splits.folds:
        shared_patients = {patient_of[s] for s in fold.train} & {patient_of[s] for s in fold.test}
        assert 4 <= len(shared_patients) <= 15
    subset = read_labels(
        shared / "labels" / "hipt_tcga_brca_subset.csv", Columns(label="oncotree_code"), classes=["IDC", "ILC"]
    )
    with pytest.raises(ConfigurationError, match="8 patients in both train and test"):
        check_leaks(load_splits(tmp_path, subset), subset)


@pytest.mark.shared_data
def test_sites_of_tcga_are_held_out_one_by_one(shared):
    folder = shared / "labels"
    columns = Columns(center="tcga-site")
    labels = read_labels(folder / "brca_histotypes.csv", columns, center_names=folder / "tcga_institution_sites.csv")
    splits = center_folds(labels)
    check_leaks(splits, labels)
    check_trainable(splits, labels)
    assert len(splits.folds) == 39
    assert sum(len(fold.test) for fold in splits.folds) == 1041
    largest = max(splits.folds, key=lambda fold: len(fold.test))
    assert (largest.name, len(largest.test)) == ("University of Pittsburgh", 136)

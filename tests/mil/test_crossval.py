"""Cross-validation as its users meet it: the command, its folder, resuming after a kill, and what it refuses."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from sklearn.metrics import roc_auc_score

from mil.dataset import load_instances, probe
from mil.estimators import MILClassifier, load_model
from mil.evaluation import evaluate
from mil.figures import draw_figures
from mil.held_out import HeldOutPredictions
from tests.mil.bags import make_bag, saved
from zoomfeat.cli import main
from zoomfeat.conf import schema

QUICK = ["epochs=3", "width=8", "head=mean", "folds=3", "learning_rate=0.05"]


def test_keys_have_the_defaults_of_the_estimator():
    estimator = MILClassifier().get_params()
    for name, default in schema.defaults(schema.CrossvalConfig).items():
        if name in estimator:
            assert default == (estimator[name] or []) if name == "scales" else default == estimator[name], name


@pytest.fixture(scope="session")
def cohort(tmp_path_factory) -> Path:
    """24 patients, a third with two slides; a class, a number, survival and a centre each; multi-scale bags."""
    root = tmp_path_factory.mktemp("cohort")
    (root / "bags").mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for patient in range(24):
        positive = patient % 2
        score = 20 * positive + rng.normal(scale=4)
        for slide in range(2 if patient % 3 == 0 else 1):
            name = f"TCGA-A{patient % 3}-{patient:04d}-DX{slide}.uuid.{patient}"
            fine = rng.normal(size=(rng.integers(4, 20), 6)) + 0.6 * positive
            saved(make_bag(fine, rng.normal(size=(2, 6)), slide_id=name), root / "bags")
            rows.append(
                {
                    "slide_id": f"{name}.svs",
                    "patient_id": f"TCGA-A{patient % 3}-{patient:04d}",
                    "subtype": "ILC" if positive else "IDC",
                    "grade": ["low", "mid", "high"][patient % 2 + (patient % 4 == 3)],
                    "score": score,
                    "months": 50 - score + patient / 10,
                    "died": int(patient % 4 != 0),
                    "chance": rng.permutation(["x", "y"])[0] if slide == 0 else rows[-1]["chance"],
                }
            )
    pd.DataFrame(rows).to_csv(root / "labels.csv", index=False)
    return root


def words(cohort, out, *more, label="subtype"):
    return [
        "crossval",
        f"bags={cohort / 'bags'}",
        f"labels={cohort / 'labels.csv'}",
        f"label={label}",
        f"out={out}",
        *more,
    ]


@pytest.fixture(scope="session")
def run(cohort, tmp_path_factory) -> Path:
    """A finished run of two seeds; never written to."""
    out = tmp_path_factory.mktemp("runs") / "run"
    assert main(words(cohort, out, *QUICK, "seeds=0,1")) == 0
    return out


def test_the_folder_holds_what_it_should(run, cohort):
    assert {path.name for path in run.iterdir()} == {
        "predictions.parquet", "metrics.json", "splits.csv", "models", "config.yaml", "environment.json", "roc.png",
        "pr.png", "calibration.png",
    }  # fmt: skip
    table = pd.read_parquet(run / "predictions.parquet")
    assert list(table) == ["patient_id", "slide_ids", "seed", "fold", "y_true", "prob_IDC", "prob_ILC"]
    labels = pd.read_csv(cohort / "labels.csv")
    for seed in (0, 1):
        mine = table[table.seed == seed]
        assert sorted(mine.patient_id) == sorted(labels.patient_id.unique())
        slides = [slide for cell in mine.slide_ids for slide in cell.split(";")]
        assert sorted(f"{slide}.svs" for slide in slides) == sorted(labels.slide_id)
    np.testing.assert_allclose(table.prob_IDC + table.prob_ILC, 1)
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["label"], config["seeds"], config["folds"]) == ("subtype", [0, 1], 3)
    environment = json.loads((run / "environment.json").read_text())
    assert environment["versions"]["torch"]
    assert len(environment["splits_sha256"]) == len(environment["cohort_sha256"]) == 64
    for name in ("roc.png", "pr.png", "calibration.png"):
        assert (run / name).read_bytes().startswith(b"\x89PNG")


def test_metrics_are_those_of_the_predictions(run):
    found = json.loads((run / "metrics.json").read_text())
    table = pd.read_parquet(run / "predictions.parquet")
    by_seed = [roc_auc_score(rows.y_true == "ILC", rows.prob_ILC) for _, rows in table.groupby("seed")]
    by_fold = [roc_auc_score(rows.y_true == "ILC", rows.prob_ILC) for _, rows in table.groupby(["seed", "fold"])]
    average = table.groupby("patient_id").agg({"y_true": "first", "prob_ILC": "mean"})
    assert found["pooled"]["metrics"]["auroc"]["value"] == pytest.approx(np.mean(by_seed))
    assert found["averaged"]["metrics"]["auroc"]["value"] == pytest.approx(np.mean(by_fold))
    expected = roc_auc_score(average.y_true == "ILC", average.prob_ILC)
    assert found["seed_averaged"]["metrics"]["auroc"]["value"] == pytest.approx(expected)
    assert found["between_seeds"]["auroc"] == pytest.approx(by_seed)
    assert len(found["folds"]) == 6
    assert all(fold["patients"] == 8 for fold in found["folds"])
    assert found["pooled"]["metrics"].keys() == {
        "auroc", "average_precision", "accuracy", "balanced_accuracy", "f1", "brier", "ece"
    }  # fmt: skip
    for view in ("pooled", "averaged", "seed_averaged"):
        assert found[view]["meaning"]
        for metric in found[view]["metrics"].values():
            assert metric["low"] <= metric["value"] <= metric["high"]
    assert found["pooled"]["metrics"]["auroc"]["low"] > 0.5


def test_models_predict_the_patients_that_they_were_not_trained_on(run, cohort):
    splits = pd.read_csv(run / "splits.csv")
    table = pd.read_parquet(run / "predictions.parquet")
    assert len(list((run / "models").iterdir())) == 6
    model = load_model(run / "models" / "seed-1-fold-2.safetensors")
    rows = table[(table.seed == 1) & (table.fold == "2")]
    mine = splits[(splits.seed == 1) & (splits.fold == 2)]
    trained = set(mine.slide_id[mine.part == "train"])
    for row in rows.itertuples():
        slides = row.slide_ids.split(";")
        assert not trained & set(slides)
        probability = model.predict_proba([cohort / "bags" / f"{slide}.h5" for slide in slides])[:, 1].mean()
        assert row.prob_ILC == pytest.approx(probability)


def test_the_same_command_again_changes_nothing(run, cohort, capsys):
    before = {path: path.read_bytes() for path in (run / "models").iterdir()}
    table = pd.read_parquet(run / "predictions.parquet")
    metrics = (run / "metrics.json").read_text()
    assert main(words(cohort, run, *QUICK, "seeds=0,1")) == 0
    text = capsys.readouterr().out
    assert "32 slides with a label and a bag" in text
    assert "24 patients: IDC 12, ILC 12" in text
    assert "AUROC" in text
    assert {path: path.read_bytes() for path in (run / "models").iterdir()} == before
    pd.testing.assert_frame_equal(pd.read_parquet(run / "predictions.parquet"), table)
    assert (run / "metrics.json").read_text() == metrics


def test_another_configuration_or_cohort_does_not_go_on(run, cohort, capsys, tmp_path):
    assert main(words(cohort, run, *QUICK, "seeds=0,1", "epochs=5", "fusion=late")) == 2
    assert "holds a run with other keys: epochs (was 3, is 5), fusion (was early, is late)" in capsys.readouterr().err
    table = pd.read_csv(cohort / "labels.csv").iloc[:-1]
    (tmp_path / "labels.csv").write_text(table.to_csv(index=False))
    # The same command, after somebody has edited the labels.
    original = (cohort / "labels.csv").read_text()
    try:
        (cohort / "labels.csv").write_text(table.to_csv(index=False))
        assert main(words(cohort, run, *QUICK, "seeds=0,1")) == 2
    finally:
        (cohort / "labels.csv").write_text(original)
    assert "other labels, bags or splits: cohort_sha256" in capsys.readouterr().err


def test_a_killed_run_goes_on_to_the_same_predictions(run, cohort, tmp_path):
    """SIGKILL in the third fold or later, then the same command: equal to the run that was never stopped."""
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "zoomfeat.cli", *words(cohort, out, *QUICK, "seeds=0,1")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    predictions = out / "predictions.parquet"
    try:
        while process.poll() is None and len(list((out / "models").glob("seed-*.safetensors"))) < 3:
            time.sleep(0.005)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL, "finished before it could be killed"
    done = pd.read_parquet(predictions)[["seed", "fold"]].drop_duplicates()
    assert 2 <= len(done) < 6
    assert not (out / "metrics.json").exists()
    kept = {path.name: path.stat().st_mtime_ns for path in (out / "models").glob("seed-0-fold-[01].safetensors")}
    assert main(command[3:]) == 0
    assert {name: (out / "models" / name).stat().st_mtime_ns for name in kept} == kept  # not trained again
    pd.testing.assert_frame_equal(pd.read_parquet(predictions), pd.read_parquet(run / "predictions.parquet"))
    assert (out / "metrics.json").read_text() == (run / "metrics.json").read_text()
    for path in (run / "models").iterdir():
        assert (out / "models" / path.name).read_bytes() == path.read_bytes()


def test_two_workers_of_dask_train_what_one_process_does_though_one_is_killed(run, cohort, tmp_path, monkeypatch):
    """SIGKILL after the first fold: its task is repeated, and every file equals that of the run in one process."""
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))  # which may decide the last bits
    out = tmp_path / "dask"
    killed = []

    def kill_a_worker() -> None:
        deadline = time.monotonic() + 280
        while not list((out / "models").glob("seed-*.safetensors")) and time.monotonic() < deadline:
            time.sleep(0.002)
        worker = next(child for child in multiprocessing.active_children() if "Dask" in child.name)
        worker.kill()
        killed.append(worker.pid)

    killer = threading.Thread(target=kill_a_worker)
    killer.start()
    assert main(words(cohort, out, *QUICK, "seeds=0,1", "engine=dask", "engine.workers=2")) == 0
    killer.join()
    assert len(killed) == 1
    names = {path.relative_to(run) for path in run.rglob("*") if path.is_file()}
    extra = {path.relative_to(out) for path in out.rglob("*") if path.is_file()} ^ names
    assert len(extra) <= 1  # a worker killed while it writes leaves one hidden file at most
    assert all(f".{killed[0]}." in name.name and name.suffix == ".tmp" for name in extra)
    differing = {str(name) for name in names if (out / name).read_bytes() != (run / name).read_bytes()}
    assert differing == {"config.yaml"}  # out= and engine=
    assert main(words(cohort, out, *QUICK, "seeds=0,1")) == 0  # where it was made does not make it another run


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["label=stage"], "no column 'stage'"),
        (["classes=IDC"], "one class only (IDC)"),
        (["folds=40"], "24 patients in all, fewer than folds=40"),
        (["patient=median"], "patient='median'. Use one of mean, max, merge"),
        (["seeds=1,1"], "seeds=[1, 1]"),
        (["split=column"], "no column of folds"),
        (["split=leave-one-center-out"], "no column of centres"),
        (["split=random"], "split=random is no file or folder"),
        (["head=nonsense"], "nonsense"),
        (["scales=40x"], "40x"),
        (["task=ranking"], "no task 'ranking'"),
        (["task=regression"], "expected a number"),
        (["bags=nowhere"], "no such folder"),
    ],
)
def test_bad_input_is_one_line_before_any_training(cohort, tmp_path, capsys, more, message):
    assert main([*words(cohort, tmp_path / "out", *QUICK), *more]) in (1, 2)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert message in lines[0]
    assert not list(tmp_path.glob("out/models/*"))
    assert not (tmp_path / "out" / "predictions.parquet").exists()


def copy_of(cohort, tmp_path, table):
    """The cohort with another table of labels."""
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "bags").symlink_to(cohort / "bags")
    table.to_csv(tmp_path / "labels.csv", index=False)
    return tmp_path


def test_a_deliberate_leak_is_refused(cohort, tmp_path, capsys):
    """A fixed split with the two slides of one patient on both sides."""
    table = pd.read_csv(cohort / "labels.csv")
    slides = table.slide_id.tolist()
    (tmp_path / "splits").mkdir()
    columns = {
        "train": pd.Series(slides[1:20]),
        "val": pd.Series([], dtype=str),
        "test": pd.Series([slides[0], *slides[20:]]),
    }
    pd.DataFrame(columns).to_csv(tmp_path / "splits" / "splits_0.csv")
    assert main(words(cohort, tmp_path / "out", *QUICK, f"split={tmp_path / 'splits'}")) == 2
    message = capsys.readouterr().err
    assert "in fold 0, 1 patient in both train and test: TCGA-A0-0000" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("defect", ["nan", "width", "encoder"])
def test_bags_that_do_not_fit_are_refused_before_any_training(cohort, tmp_path, capsys, defect):
    table = pd.read_csv(cohort / "labels.csv")
    (tmp_path / "bags").mkdir()
    for path in (cohort / "bags").iterdir():
        (tmp_path / "bags" / path.name).symlink_to(path)
    table.to_csv(tmp_path / "labels.csv", index=False)
    name = table.slide_id.iloc[-1].removesuffix(".svs")
    (tmp_path / "bags" / f"{name}.h5").unlink()
    width, encoder = (7 if defect == "width" else 6), ("another" if defect == "encoder" else "encoder")
    saved(make_bag(np.zeros((4, width)), np.zeros((2, width)), slide_id=name, encoder=encoder), tmp_path / "bags")
    if defect == "nan":
        with h5py.File(tmp_path / "bags" / f"{name}.h5", "a") as file:
            file["features"][1, 2] = np.nan
    assert main(words(tmp_path, tmp_path / "out", *QUICK)) in (1, 2)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert name in line
    assert {"nan": "not finite", "width": "expected length 6", "encoder": "another"}[defect] in line
    assert not list(tmp_path.glob("out/models/*"))


def test_centers_are_held_out(cohort, tmp_path):
    out = tmp_path / "out"
    assert main(words(cohort, out, *QUICK, "split=leave-one-center-out", "center=tcga-site")) == 0
    table = pd.read_parquet(out / "predictions.parquet")
    assert sorted(table.fold.unique()) == ["A0", "A1", "A2"]
    assert (table.patient_id.str.split("-").str[1] == table.fold).all()
    # A centre's name is what it is in files too, as in URLs where it must be.
    again = [f"split={out / 'splits.csv'}", "seeds=3"]
    assert main(words(cohort, tmp_path / "again", *QUICK, *again)) == 0
    first, second = (json.loads((folder / "metrics.json").read_text()) for folder in (out, tmp_path / "again"))
    assert first["splits_sha256"] == second["splits_sha256"]
    assert (tmp_path / "again" / "models" / "seed-3-fold-A1.safetensors").exists()


def test_merged_slides_of_a_patient_are_one_bag(cohort, tmp_path):
    assert main(words(cohort, tmp_path / "out", *QUICK, "patient=merge", "folds=2")) == 0
    table = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    model = load_model(tmp_path / "out" / "models" / "seed-0-fold-1.safetensors")
    row = table[(table.fold == "1") & table.slide_ids.str.contains(";")].iloc[0]
    paths = tuple(cohort / "bags" / f"{name}.h5" for name in row.slide_ids.split(";"))
    parts = [load_instances(path) for path in paths]
    merged = load_instances(paths)
    assert len(merged) == sum(map(len, parts))
    np.testing.assert_array_equal(merged.fused(), np.concatenate([part.fused() for part in parts]))
    facts = probe([paths, paths[0]])
    assert facts.counts.tolist() == [[len(merged), 4], [len(parts[0]), 2]]
    assert facts.encoder["name"] == "encoder"
    assert model.predict_proba([merged])[0, 1] == pytest.approx(row.prob_ILC)


def test_the_largest_of_a_patients_slides(cohort, tmp_path):
    assert main(words(cohort, tmp_path / "out", *QUICK, "patient=max", "folds=2", label="grade")) == 0
    table = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    columns = ["prob_high", "prob_low", "prob_mid"]
    np.testing.assert_allclose(table[columns].sum(axis=1), 1)
    model = load_model(tmp_path / "out" / "models" / "seed-0-fold-0.safetensors")
    row = table[(table.fold == "0") & table.slide_ids.str.contains(";")].iloc[0]
    largest = model.predict_proba([cohort / "bags" / f"{name}.h5" for name in row.slide_ids.split(";")]).max(axis=0)
    np.testing.assert_allclose(row[columns].to_numpy(dtype=float), largest / largest.sum())
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())["pooled"]["metrics"]["auroc"]["value"]
    expected = roc_auc_score(table.y_true, table[columns], multi_class="ovr", labels=["high", "low", "mid"])
    assert found == pytest.approx(expected)


def test_numbers_and_survival(cohort, tmp_path):
    out = tmp_path / "score"
    assert main(words(cohort, out, *QUICK, "task=regression", "epochs=12", label="score")) == 0
    found = json.loads((out / "metrics.json").read_text())["pooled"]["metrics"]
    assert found.keys() == {"r2", "pearson", "mae"}
    assert found["pearson"]["low"] > 0.2
    assert (out / "scatter.png").exists()
    out = tmp_path / "months"
    more = ["task=survival", "time=months", "event=died", "batch_size=32", "epochs=12"]
    assert main(words(cohort, out, *QUICK, *more)) == 0
    found = json.loads((out / "metrics.json").read_text())["pooled"]["metrics"]
    assert found["concordance"]["low"] > 0.5
    assert (out / "survival.png").exists()
    assert list(pd.read_parquet(out / "predictions.parquet"))[4:] == ["y_true", "event", "prediction"]


def test_labels_without_meaning_give_an_auroc_of_half(cohort, tmp_path):
    """Permuted labels: 0.5 lies within the interval, so no patient leaked into training."""
    table = pd.read_csv(cohort / "labels.csv")
    patients = table.patient_id.unique()
    labels = dict(zip(patients, np.random.default_rng(5).permutation(np.arange(len(patients)) % 2), strict=True))
    place = copy_of(cohort, tmp_path / "permuted", table.assign(subtype=table.patient_id.map(labels)))
    assert main(words(place, tmp_path / "out", *QUICK, "seeds=0,1,2")) == 0
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())["pooled"]["metrics"]["auroc"]
    print(f"permuted labels: AUROC {found}")
    assert found["low"] < 0.5 < found["high"]


@pytest.fixture(scope="session")
def other_run(cohort, tmp_path_factory) -> Path:
    """A run that has seen nothing: its learning rate is 0."""
    out = tmp_path_factory.mktemp("runs") / "other"
    assert main(words(cohort, out, *QUICK, "seeds=0,1", "learning_rate=0", "weight_decay=0")) == 0
    return out


def test_compare(run, other_run, capsys, tmp_path):
    assert main(["compare", str(other_run), str(run), f"out={tmp_path / 'differences.csv'}"]) == 0
    text = capsys.readouterr().out
    assert "DeLong" in text
    assert "NOTE" not in text  # the same patients and folds
    table = pd.read_csv(tmp_path / "differences.csv")
    assert (table.p == table.p_holm).all()
    first, second = (json.loads((folder / "metrics.json").read_text()) for folder in (other_run, run))
    row = table[(table.metric == "auroc") & (table.test == "DeLong")].iloc[0]
    assert row.baseline == pytest.approx(first["seed_averaged"]["metrics"]["auroc"]["value"])
    assert row.value == pytest.approx(second["seed_averaged"]["metrics"]["auroc"]["value"])
    assert row.difference == pytest.approx(row.value - row.baseline)
    assert (row.difference > 0, row.p < 0.05, row.low > 0) == (True, True, True)


def test_compare_several_with_holm(run, other_run, tmp_path, capsys):
    table = pd.read_parquet(run / "predictions.parquet")
    third = tmp_path / "third"
    third.mkdir()
    for name in ("metrics.json", "environment.json"):
        (third / name).write_bytes((run / name).read_bytes())
    table[table.patient_id != table.patient_id[0]].to_parquet(third / "predictions.parquet")
    assert main(["compare", str(other_run), str(run), str(third), f"out={tmp_path / 'd.csv'}"]) == 0
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "1 patient left out, not predicted by all runs" in text
    found = pd.read_csv(tmp_path / "d.csv")
    delong = found[found.test == "DeLong"]
    assert len(delong) == 2
    assert delong.p_holm.tolist() == pytest.approx([min(1, 2 * delong.p.min())] * 2)  # both runs are the same


def test_what_cannot_be_compared(run, cohort, tmp_path, capsys):
    def refused(*folders):
        assert main(["compare", *map(str, folders)]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    def changed(name, change):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "environment.json").write_bytes((run / "environment.json").read_bytes())
        (folder / "metrics.json").write_bytes((run / "metrics.json").read_bytes())
        change(pd.read_parquet(run / "predictions.parquet")).to_parquet(folder / "predictions.parquet")
        return folder

    assert "expected two or more" in refused(run)
    assert "named twice" in refused(run, f"{run}/")
    assert "expected the out= folder of a crossval run" in refused(run, cohort)
    others = changed("others", lambda table: table.assign(patient_id="Q" + table.patient_id))
    assert "no patient is in all of" in refused(run, others)
    swapped = changed("swapped", lambda table: table.assign(y_true=table.y_true.replace({"IDC": "ILC", "ILC": "IDC"})))
    assert "24 patients with another true value" in refused(run, swapped)
    renamed = changed("renamed", lambda table: table.rename(columns={"prob_IDC": "prob_NST"}))
    assert "classes NST, ILC, and IDC, ILC in" in refused(run, renamed)
    unfinished = changed("unfinished", lambda table: table)
    (unfinished / "metrics.json").unlink()
    assert "not finished" in refused(run, unfinished)


def test_folds_of_one_class_have_no_auroc_and_spoil_no_average(tmp_path):
    rng = np.random.default_rng(0)
    truth = np.array(["a", "b"] * 10 + ["a"] * 5)
    p = np.clip((truth == "b") * 0.4 + rng.random(25) * 0.6, 0, 1)
    table = pd.DataFrame(
        {
            "patient_id": [f"P{number}" for number in range(25)],
            "slide_ids": "s",
            "seed": 0,
            "fold": ["0"] * 10 + ["1"] * 10 + ["2"] * 5,
            "y_true": truth,
            "prob_a": 1 - p,
            "prob_b": p,
        }
    )
    predictions = HeldOutPredictions(table)
    found = evaluate(predictions)
    assert np.isnan(found.folds[2].metrics["auroc"].value)
    expected = np.mean([roc_auc_score(truth[rows] == "b", p[rows]) for rows in (slice(0, 10), slice(10, 20))])
    assert found.averaged["auroc"].value == pytest.approx(expected)
    assert found.to_json()["folds"][2]["metrics"]["auroc"] == {"value": None, "low": None, "high": None}
    assert found.seed_averaged is None
    assert len(draw_figures(predictions, found, tmp_path)) == 3


@pytest.mark.shared_data
def test_real_labels_refuse_the_leaky_folds_from_the_command_line(shared, tmp_path, capsys):
    """The HIPT splits of TCGA-BRCA, with tiny bags for all patients of several slides and a hundred others."""
    folder = shared / "labels"
    table = pd.read_csv(folder / "brca_histotypes.csv")
    several = table.case_id.duplicated(keep=False)
    chosen = pd.concat([table[several], table[~several][:100]])
    names = chosen.ID
    (tmp_path / "bags").mkdir()
    rng = np.random.default_rng(0)
    for name in names:
        with h5py.File(tmp_path / "bags" / f"{name}.h5", "w") as file:
            file["features"] = rng.normal(size=(1, 2)).astype(np.float32)
    with zipfile.ZipFile(folder / "hipt_tcga_brca_10fold.zip") as archive:
        archive.extractall(tmp_path / "splits")
    command = [
        "crossval",
        f"bags={tmp_path / 'bags'}",
        f"labels={folder / 'brca_histotypes.csv'}",
        f"out={tmp_path / 'out'}",
    ]
    assert main([*command, f"split={tmp_path / 'splits'}"]) == 2
    assert "12 patients in both train and test: TCGA-A7-A0CJ" in capsys.readouterr().err
    assert (
        main([*command, "split=column", "fold_column=test", "head=mean", "epochs=1", "width=2", "batch_size=512"]) == 0
    )
    assert "5 folds, 1 seed, no patient in two parts" in capsys.readouterr().out
    assert len(pd.read_parquet(tmp_path / "out" / "predictions.parquet")) == chosen.case_id.nunique()

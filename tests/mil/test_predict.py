"""`zoomfeat predict`: one model, ensembles, the models of a cross-validation, bags of every layout, bad bags."""

from __future__ import annotations

import shutil
from pathlib import Path
from urllib.parse import quote

import h5py
import numpy as np
import pandas as pd
import pytest

from mil.dataset import load_instances
from mil.ensemble import FoldOfModel, load_ensemble
from mil.estimators import MILClassifier, MILRegressor, MILSurvival, load_model
from mil.resampling import resample
from zoomfeat.bags import Bag, convert, stored_bags
from zoomfeat.cli import main
from zoomfeat.errors import CheckpointMismatchError, ConfigurationError


def predict(model: Path, bags: Path, out: Path, *words: str) -> pd.DataFrame:
    assert main(["predict", f"model={model}", f"bags={bags}", f"out={out}", *words]) == 0
    return pd.read_csv(out)


def test_one_model_gives_its_own_probabilities(study, tmp_path):
    table = predict(study.model, study.bags, tmp_path / "new" / "p.csv")
    assert table.slide_id.tolist() == [f"case.{number}" for number in range(4)]
    estimator = load_model(study.model)
    expected = estimator.predict_proba(sorted(study.bags.glob("*.h5")))
    np.testing.assert_allclose(table[["prob_IDC", "prob_ILC"]], expected, rtol=1e-6)
    assert table.prediction.tolist() == estimator.classes_[expected.argmax(axis=1)].tolist()
    assert (table.models == 1).all()
    assert "error" not in table
    assert "prob_IDC_low" not in table


def test_several_models_are_an_ensemble_with_their_range(study, tmp_path):
    table = predict(study.models, study.bags, tmp_path / "p.csv")
    paths = sorted(study.bags.glob("*.h5"))
    each = np.stack([load_model(path).predict_proba(paths)[:, 1] for path in sorted(study.models.iterdir())])
    np.testing.assert_allclose(table.prob_ILC, each.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(table.prob_ILC_low, each.min(axis=0), rtol=1e-6)
    np.testing.assert_allclose(table.prob_ILC_high, each.max(axis=0), rtol=1e-6)
    assert (table.models == 3).all()
    assert (table.training == "unknown").all()
    two = predict(study.models / "seed-[01].safetensors", study.bags / "case.1.h5", tmp_path / "two.csv")
    assert two[["slide_id", "models"]].values.tolist() == [["case.1", 2]]


def test_parquet_holds_the_same(study, tmp_path):
    table = predict(study.models, study.bags, tmp_path / "p.csv")
    assert main(["predict", f"model={study.models}", f"bags={study.bags}", f"out={tmp_path / 'p.parquet'}"]) == 0
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "p.parquet"), table, check_dtype=False)


def test_a_bad_bag_is_a_row_and_the_others_go_on(study, tmp_path, capsys):
    bags = tmp_path / "bags"
    shutil.copytree(study.bags, bags)
    whole = (bags / "case.1.h5").read_bytes()
    (bags / "case.1.h5").write_bytes(whole[: len(whole) // 2])
    bag = Bag.open(study.bags / "case.2.h5")
    features = np.array(bag.features)
    features[3, 0] = np.nan
    with h5py.File(bags / "case.2.h5", "a") as file:
        file["features"][...] = features
    assert main(["predict", f"model={study.model}", f"bags={bags}", f"out={tmp_path / 'p.csv'}"]) == 1
    table = pd.read_csv(tmp_path / "p.csv").set_index("slide_id")
    assert table.prob_IDC.notna().tolist() == [True, False, False, True]
    assert "truncated or damaged" in table.error["case.1"]
    assert "1 of" in table.error["case.2"]
    assert "not finite" in table.error["case.2"]
    assert "4 slides: 2 done, 2 failed" in capsys.readouterr().out


def test_bags_of_another_encoder_are_refused_by_name(study, tmp_path):
    other = tmp_path / "other"
    convert(study.bags / "case.0.h5", other / "clam", to="clam")  # states no encoder
    convert(other / "clam", other / "bags", encoder_name="uni")
    assert main(["predict", f"model={study.model}", f"bags={other / 'bags'}", f"out={tmp_path / 'p.csv'}"]) == 1
    error = pd.read_csv(tmp_path / "p.csv").error[0]
    assert "uni" in error
    assert "color-stats" in error


@pytest.mark.parametrize("layout", ["trident", "clam"])
def test_layouts_of_other_tools_give_the_same(study, tmp_path, layout):
    convert(study.bags, tmp_path / layout, to=layout)
    table = predict(study.model, tmp_path / layout, tmp_path / "p.csv")
    expected = predict(study.model, study.bags, tmp_path / "own.csv")
    assert table.slide_id.tolist() == expected.slide_id.tolist()
    np.testing.assert_allclose(table.prob_IDC, expected.prob_IDC, rtol=1e-6)


def test_a_model_of_plain_matrices_reads_files_without_magnification(study, tmp_path):
    convert(study.bags, tmp_path / "clam", to="clam", features="20x")
    matrices = sorted((tmp_path / "clam" / "20x" / "pt_files").glob("*.pt"))
    model = MILClassifier(epochs=2, width=8).fit(matrices, ["IDC", "ILC"] * 2)
    model.save(tmp_path / "plain.safetensors")
    table = predict(tmp_path / "plain.safetensors", matrices[0].parent, tmp_path / "p.csv")
    np.testing.assert_allclose(table.prob_ILC, model.predict_proba(matrices)[:, 1], rtol=1e-6)
    assert table.slide_id.tolist() == [path.stem for path in matrices]
    # Explained from the folder that has coordinates, the same values lie on its only magnification.
    bag = stored_bags(tmp_path / "clam" / "20x")[0].open()
    ensemble = load_ensemble(tmp_path / "plain.safetensors")
    np.testing.assert_allclose(ensemble.attention(bag)["20x"], model.attention(matrices[0])[""], rtol=1e-5)
    assert ensemble.predict(bag).outputs[1].value == pytest.approx(table.prob_ILC[0], rel=1e-6)


@pytest.mark.parametrize(
    ("estimator", "y", "column"),
    [
        (MILRegressor(epochs=2, width=8), [10.0, 40.0, 22.0, 63.0], "score"),
        (MILSurvival(epochs=2, width=8), [[1, 1], [2, 0], [3, 1], [4, 1]], "risk"),
    ],
)
def test_scores_and_risks(study, tmp_path, estimator, y, column):
    paths = sorted(study.bags.glob("*.h5"))
    estimator.fit(paths, y).save(tmp_path / "model.safetensors")
    table = predict(tmp_path / "model.safetensors", study.bags, tmp_path / "p.csv")
    np.testing.assert_allclose(table[column], estimator.predict(paths), rtol=1e-5)
    assert "prediction" not in table


def test_models_of_a_crossval_speak_only_on_slides_that_they_did_not_see(study, tmp_path):
    run = tmp_path / "run"
    (run / "models").mkdir(parents=True)
    names = {("0", "A"): "seed-0", ("0", "B C"): "seed-1", ("1", "A"): "seed-2"}
    rows = []
    for (seed, fold), model in names.items():
        file = f"seed-{seed}-fold-{quote(fold)}.safetensors"
        shutil.copy(study.models / f"{model}.safetensors", run / "models" / file)
        tested = {"A": ("case.0", "case.1"), "B C": ("case.2",)}[fold]
        parts = [(slide, "test" if slide in tested else "train") for slide in ("case.0", "case.1", "case.2")]
        parts.append(("case.3", "validation"))
        rows += [(seed, fold, part, slide) for slide, part in parts]
    pd.DataFrame(rows, columns=["seed", "fold", "part", "slide_id"]).to_csv(run / "splits.csv", index=False)

    table = predict(run, study.bags, tmp_path / "p.csv").set_index("slide_id")
    assert table.models.tolist() == [2, 2, 1, 3]
    assert table.training.tolist() == ["unseen", "unseen", "unseen", "seen"]
    seed_1 = predict(study.models / "seed-1.safetensors", study.bags, tmp_path / "one.csv").set_index("slide_id")
    assert table.prob_IDC["case.2"] == pytest.approx(seed_1.prob_IDC["case.2"], rel=1e-6)
    assert load_ensemble(run).for_slide("never seen").training == "unseen"


@pytest.mark.parametrize(
    ("slide_id", "saw"),
    [
        ("A-1.uuid", True),
        ("A-1", True),
        ("A-1.other", True),
        ("B-2", False),
        ("C.0", True),
        ("C.1", False),
        ("C.7", False),
    ],
)
def test_slides_are_known_by_their_name_before_the_first_dot_where_that_is_unambiguous(slide_id, saw):
    slides = frozenset({"A-1.uuid", "B-2.uuid", "C.0", "C.1"})
    assert FoldOfModel(frozenset({"A-1.uuid", "C.0"}), slides).saw(slide_id) is saw


def test_run_of_crossval(study, tmp_path):
    """The probabilities of the run itself come back, each from the model that had the slide in its test fold."""
    labels = pd.DataFrame({"slide_id": [f"case.{n}" for n in range(4)], "patient_id": list("abcd")})
    labels["label"] = ["IDC", "ILC"] * 2
    labels.to_csv(tmp_path / "labels.csv", index=False)
    words = [f"bags={study.bags}", f"labels={tmp_path / 'labels.csv'}", f"out={tmp_path / 'run'}"]
    assert main(["crossval", *words, "folds=2", "epochs=2", "width=8"]) == 0
    table = predict(tmp_path / "run", study.bags, tmp_path / "p.csv")
    assert (table.training == "unseen").all()
    assert (table.models == 1).all()
    own = pd.read_parquet(tmp_path / "run" / "predictions.parquet").sort_values("patient_id")
    np.testing.assert_allclose(table.prob_ILC, own.prob_ILC, rtol=1e-5)


def test_interval_of_one_model_is_the_spread_over_resamples(study):
    path = study.bags / "case.0.h5"
    ensemble = load_ensemble(study.model)
    told = []
    prediction = ensemble.predict_resampled(path, 50, seed=1, advance=lambda done, total: told.append((done, total)))
    output = prediction.outputs[0]
    assert told == [(20, 50), (40, 50), (50, 50)]
    assert output.value == pytest.approx(ensemble.predict(path).outputs[0].value, rel=1e-6)
    assert 0 <= output.low < output.high <= 1
    assert prediction == ensemble.predict_resampled(path, 50, seed=1)
    # The percentiles of predictions on the very resamples.
    one, rng = load_instances(path), np.random.default_rng(1)
    drawn = load_model(study.model).predict_proba([resample(one, rng) for _ in range(50)])[:, 0]
    assert (output.low, output.high) == pytest.approx(np.percentile(drawn, (2.5, 97.5)))
    count = len(one.features["5x"])
    assert f"50 bootstrap resamples of the slide's {count} 5x patches, each with the finer" in prediction.interval
    # A bag of one patch has nothing to vary.
    same = type(one)({"20x": one.features["20x"][:1], "5x": one.features["5x"][:1]}, {"5x": np.zeros(1, int)})
    flat = ensemble.predict_resampled(same, 10).outputs[0]
    assert flat.low == pytest.approx(flat.high)


def test_what_cannot_run_is_refused_before_any_bag(study, tmp_path):
    bags, out = f"bags={study.bags}", f"out={tmp_path / 'p.csv'}"
    assert main(["predict", f"model={study.model}", bags, f"out={tmp_path / 'p.txt'}"]) == 2
    assert main(["predict", f"model={tmp_path}", bags, out]) == 2
    assert main(["predict", f"model={study.model}", f"bags={tmp_path}", out]) == 2
    assert main(["predict", f"model={study.model}", bags, out, "device=tpu"]) == 2
    (tmp_path / "junk.safetensors").write_bytes(b"no model")
    with pytest.raises(CheckpointMismatchError, match=r"junk\.safetensors"):
        load_ensemble(tmp_path / "junk.safetensors")
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    shutil.copy(study.model, mixed / "a.safetensors")
    other = MILClassifier(epochs=1, width=8, scales=["5x"]).fit(sorted(study.bags.glob("*.h5")), ["IDC", "ILC"] * 2)
    other.save(mixed / "b.safetensors")
    with pytest.raises(ConfigurationError, match=r"b\.safetensors: scales .*5x.* and .*20x"):
        load_ensemble(mixed)
    assert not list(tmp_path.glob("*.csv"))

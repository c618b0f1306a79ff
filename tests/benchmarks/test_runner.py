"""The runner: from bags or slides to records, tests and a table; killed and restarted; changed inputs; bad input."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

from benchmarks import runner
from benchmarks.bags import content_sha256, given_bags
from benchmarks.localisation import LOCALISATION, attention_auroc
from benchmarks.phantom import Truth
from benchmarks.phantom.truth import PlantedLesion
from benchmarks.recomputation import differing_metrics, recomputed
from benchmarks.record import Record, load_records
from benchmarks.tasks import brca, load_task
from mil.crossval import cross_validate, open_study
from mil.heads import base as head_registry
from mil.labels import read_labels
from mil.splits import load_splits
from tests.mil.bags import make_bag, saved, two_scale_bags
from zoomfeat import Bag
from zoomfeat.cli import main
from zoomfeat.conf.schema import CrossvalConfig
from zoomfeat.encoders import encoder_info
from zoomfeat.errors import ConfigurationError

TASK = """
name: mine
title: "A label that needs two magnifications"
kind: classification
metric: auroc
higher_is_better: true
source: the tests
licence: none
access: nothing to get
cohort: table
labels: mine.csv
classes: ["no", "yes"]
encoders: [one, two]
magnifications: [20x, 20x+5x]
heads: [mean]
protocol: {split: stratified, folds: 2, training: {epochs: 10, width: 8, learning_rate: 0.01}}
published:
  - {row: Theirs, encoder: one, magnification: 20x+5x, value: 0.75, source: "a book"}
  - {row: Others, magnification: 20x, value: 0.5, source: "a book"}
"""


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """A task of the user's, labels, and bags of two encoders: ``one`` tells the classes apart, ``two`` is noise."""
    folder = tmp_path_factory.mktemp("cohort")
    bags, labels = two_scale_bags(24, regions=(4, 6))
    rng = np.random.default_rng(1)
    for name in ("one", "two"):
        (folder / "bags" / name).mkdir(parents=True)
    for number, (bag, label) in enumerate(zip(bags, labels, strict=True)):
        fine, coarse = (scale.features.copy() for scale in bag.scales)
        coarse += 2.0 * label
        parents = bag.parents["5x"]
        saved(make_bag(fine, coarse, parents=parents, slide_id=f"s{number}", encoder="one"), folder / "bags" / "one")
        noise = rng.normal(size=fine.shape)
        saved(
            make_bag(noise, coarse * 0, parents=parents, slide_id=f"s{number}", encoder="two"), folder / "bags" / "two"
        )
    names = [f"s{number}" for number in range(24)]
    table = {"slide_id": names, "patient_id": [f"p{n}" for n in range(24)], "label": np.array(["no", "yes"])[labels]}
    pd.DataFrame(table).to_csv(folder / "mine.csv", index=False)
    (folder / "mine.yaml").write_text(TASK)
    return folder


@pytest.fixture
def copy(cohort, tmp_path):
    shutil.copytree(cohort, tmp_path / "cohort")
    return tmp_path / "cohort"


def words(cohort, out, *more):
    return ["benchmark", f"task={cohort}/mine.yaml", f"bags={cohort}/bags", f"out={out}", "site=false", *more]


@pytest.fixture(scope="module")
def finished(cohort, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    assert main(words(cohort, out)) == 0
    return out / "mine"


def test_every_encoder_magnification_and_head_becomes_a_record_that_follows_from_its_predictions(finished, cohort):
    records = load_records(finished / "records")
    assert sorted(record.label for record in records) == [
        "one 20x mean", "one 20x+5x mean", "two 20x mean", "two 20x+5x mean",
    ]  # fmt: skip
    task = load_task(str(cohort / "mine.yaml"))
    for record in records:
        assert not differing_metrics(record.metrics, recomputed(record))
        assert record.task.version == task.version
        assert record.hash == record.content_hash
        assert len(record.predictions) == 24
        assert record.metrics["auroc"].low is not None
        assert record.cost.patches_per_second is None  # the bags were given
        assert record.cost.training_seconds > 0
        assert record.software["versions"]["zoomfeat"]
    by_label = {record.label: record for record in records}
    assert by_label["one 20x+5x mean"].metrics["auroc"].value > by_label["one 20x mean"].metrics["auroc"].value


def test_all_results_are_on_the_same_folds(finished):
    folds = [{row.patient: row.fold for row in record.predictions} for record in load_records(finished / "records")]
    assert all(each == folds[0] for each in folds)
    assert len({record.configuration["splits_sha256"] for record in load_records(finished / "records")}) == 1


def test_the_table_holds_ours_published_and_difference_and_the_tests(finished):
    text = (finished / "results.md").read_text()
    value = next(r for r in load_records(finished / "records") if r.label == "one 20x+5x mean").metrics["auroc"].value
    (row,) = [line for line in text.splitlines() if line.startswith("| one | 20x+5x | mean | auroc")]
    assert row.split(" | ")[5:7] == ["0.75", f"{value - 0.75:+.3f} |"]
    assert "| Others | 20x |  | auroc |  | 0.5 |" in text
    tests = pd.read_csv(finished / "tests.csv")
    assert len(tests) == 4
    scales = tests[(tests["first"] == "one 20x mean") & (tests["second"] == "one 20x+5x mean")]
    assert scales.p.item() < 0.05 < tests[tests["first"] == "two 20x mean"].p.item()
    assert (tests.p_holm >= tests.p).all()


def test_a_killed_run_goes_on_and_does_only_what_is_missing(copy, tmp_path, monkeypatch, capsys):
    calls = []

    def killed_at_the_third(config, study, *rest):
        calls.append((config.head, tuple(config.scales), config.bags))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return cross_validate(config, study, *rest)

    monkeypatch.setattr(runner, "cross_validate", killed_at_the_third)
    assert main(words(copy, tmp_path / "out")) == 130
    assert len(load_records(tmp_path / "out" / "mine" / "records")) == 2
    assert main(words(copy, tmp_path / "out")) == 0
    assert len(calls) == 5
    assert calls[2] == calls[3]
    assert main(words(copy, tmp_path / "out")) == 0
    assert len(calls) == 5
    assert capsys.readouterr().out.count("done before") == 2 + 4


def test_changed_bags_are_trained_again_and_others_not(copy, tmp_path, monkeypatch):
    assert main(words(copy, tmp_path / "out", "encoders=[one]")) == 0
    before = {record.label: record for record in load_records(tmp_path / "out" / "mine" / "records")}
    path = copy / "bags" / "one" / "s3.h5"
    bag = Bag.open(path)
    coarse = bag.scale("5x").features + 1
    saved(make_bag(bag.features, coarse, parents=bag.parents["5x"], slide_id="s3", encoder="one"), path.parent)
    assert main(words(copy, tmp_path / "out", "encoders=[one]")) == 0
    after = {record.label: record for record in load_records(tmp_path / "out" / "mine" / "records")}
    assert after["one 20x mean"] == before["one 20x mean"]
    assert after["one 20x+5x mean"].hash != before["one 20x+5x mean"].hash


def test_equal_features_have_one_hash_wherever_they_lie(copy, tmp_path):
    shutil.copytree(copy / "bags" / "one", tmp_path / "elsewhere")
    slides = [f"s{number}" for number in range(24)]
    hashes = [
        content_sha256(folder, slides, scales, tmp_path / "cache.json")
        for folder in (copy / "bags" / "one", tmp_path / "elsewhere")
        for scales in (("20x",), ("20x", "5x"))
    ]
    assert hashes[:2] == hashes[2:]
    assert hashes[0] != hashes[1]
    assert content_sha256(copy / "bags" / "one", slides[:-1], ("20x",), tmp_path / "cache.json") != hashes[0]


def test_an_edited_record_is_made_again(copy, tmp_path):
    assert main(words(copy, tmp_path / "out", "encoders=[one]", "magnifications=[20x]")) == 0
    (path,) = (tmp_path / "out" / "mine" / "records").iterdir()
    content = json.loads(path.read_text())
    content["metrics"]["auroc"]["value"] = 1.0
    path.write_text(json.dumps(content))
    assert main(words(copy, tmp_path / "out", "encoders=[one]", "magnifications=[20x]")) == 0
    assert not differing_metrics(Record.load(path).metrics, recomputed(Record.load(path)))


def test_keys_that_change_the_protocol_make_another_version(copy, tmp_path):
    assert main(words(copy, tmp_path / "out", "encoders=[one]", "magnifications=[20x]", "epochs=1", "seeds=[0,1]")) == 0
    (record,) = load_records(tmp_path / "out" / "mine" / "records")
    assert record.task.version != load_task(str(copy / "mine.yaml")).version
    assert record.head.settings["epochs"] == 1
    assert {row.run for row in record.predictions} == {0, 1}
    assert "epochs=1" in (tmp_path / "out" / "mine" / "results.md").read_text()


def test_bags_of_one_encoder_fail_by_themselves(copy, tmp_path, capsys):
    with h5py.File(copy / "bags" / "one" / "s7.h5", "r+") as file:
        file["features"][0, 0] = np.nan
    assert main(words(copy, tmp_path / "out")) == 1
    assert {r.encoder.name for r in load_records(tmp_path / "out" / "mine" / "records")} == {"two"}
    text = capsys.readouterr().out
    assert "s7.h5: 1 of" in text
    assert "not finite" in text


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["task=mine"], "no task 'mine'"),
        (["heads=[abmill]"], "no head 'abmill'"),
        (["encoders=[one,three]"], "no bags of three"),
        (["magnifications=[21x]"], "21x"),
        (["size=9"], "mine is not synthetic"),
        (["bags={one:nowhere}", "encoders=[one]"], "nowhere: no such folder"),
        (["bags=null", "encoders=[one]"], "no encoder 'one'"),
        (["bags=null", "encoders=[color-stats]"], "needs slides= or bags="),
        (["code=[nothing.py]"], "nothing.py: no such file"),
    ],
)
def test_bad_input_is_one_line_before_any_work(cohort, tmp_path, capsys, more, message):
    assert main([*words(cohort, tmp_path), *more]) in (1, 2)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]


def test_folders_of_bags_by_name_by_mapping_and_for_one_encoder(cohort):
    root = cohort / "bags"
    assert given_bags(str(root), ["two"]) == {"two": root / "two"}
    assert given_bags({"mine": str(root / "one")}, ["mine"]) == {"mine": root / "one"}
    assert given_bags(str(root / "one"), ["mine"]) == {"mine": root / "one"}
    with pytest.raises(ConfigurationError, match="no bags of two"):
        given_bags({"one": str(root / "one")}, ["one", "two"])


@pytest.mark.shared_data
def test_tcga_brca_runs_on_bags_of_some_slides_of_the_real_table(shared, tmp_path, capsys):
    brca.build_tables(shared / "labels", tmp_path / "tables")
    table = pd.read_csv(tmp_path / "tables" / "brca_subtyping.csv", dtype=str)
    some = pd.concat([rows.groupby("label").head(4) for _, rows in table.groupby("fold")])
    folder = tmp_path / "bags" / "uni"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for slide, label in zip(some.slide_id, some.label, strict=True):
        features = rng.normal(size=(8, 6)) + (label == "lobular")
        saved(make_bag(features, features[:1], slide_id=slide, encoder="uni"), folder)
    arguments = ["benchmark", "task=brca_subtyping", f"data={tmp_path}/tables", f"bags={tmp_path}/bags",
                 "encoders=[uni]", "heads=[mean]", "magnifications=[20x]", "epochs=5", "seeds=[0]",
                 f"out={tmp_path}/out"]  # fmt: skip
    assert main(arguments) == 0
    (record,) = load_records(tmp_path / "out" / "brca_subtyping" / "records")
    fold_of = dict(zip(table.patient_id, table.fold, strict=True))
    assert {row.patient: row.fold for row in record.predictions} == {p: fold_of[p] for p in some.patient_id}
    assert record.configuration["slides_without_bag"] == 1041 - len(some)
    assert record.encoder.licence == encoder_info("uni").licence
    assert record.encoder.parameters == encoder_info("uni").parameters
    text = capsys.readouterr().out
    assert "0.9409" in text
    assert f"{1041 - len(some)} labelled slides have no bag" in text
    assert "Not on the leaderboard" in text  # which takes whole cohorts only


def test_slides_are_extracted_once_and_stale_bags_again(tmp_path, capsys):
    arguments = ["benchmark", "task=phantom", "encoders=[color-stats]", "heads=[mean]", "magnifications=[20x]",
                 "size=5", "folds=2", "seeds=[0]", "epochs=2", f"out={tmp_path}"]  # fmt: skip
    assert main(arguments) == 0
    folder = tmp_path / "phantom"
    (record,) = load_records(folder / "records")
    assert record.cost.patches_per_second > 0
    assert record.cost.extraction_seconds > 0
    assert (record.encoder.dim, record.encoder.weights_hash) == (6, "none")
    assert (folder / "site" / "index.html").exists()
    times = {path.name: path.stat().st_mtime_ns for path in (folder / "bags" / "color-stats").glob("*.h5")}
    assert len(times) == 5
    path = folder / "bags" / "color-stats" / min(times)
    bag = Bag.open(path)
    saved(make_bag(np.zeros((3, 6)), slide_id=path.stem, encoder="color-stats", weights_hash="none"), path.parent)
    assert main(arguments) == 0
    again = {path.name: path.stat().st_mtime_ns for path in (folder / "bags" / "color-stats").glob("*.h5")}
    assert [name for name in times if times[name] != again[name]] == [path.name]
    np.testing.assert_array_equal(Bag.open(path).features, bag.features)
    assert load_records(folder / "records") == [record]
    assert "done before" in capsys.readouterr().out


def test_workers_of_dask_train_what_one_process_does(finished, cohort, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))  # which may decide the last bits
    more = ["encoders=[one]", "engine=dask", "engine.workers=2"]
    assert main(words(cohort, tmp_path, *more)) == 0
    known = {record.label: record for record in load_records(finished / "records")}
    made = load_records(tmp_path / "mine" / "records")
    assert len(made) == 2
    for record in made:
        assert record.predictions == known[record.label].predictions
        assert record.metrics == known[record.label].metrics
        assert record.configuration == known[record.label].configuration
    assert "engine=" not in (tmp_path / "mine" / "results.md").read_text()
    assert main(["benchmark", "task=patch_generation", f"out={tmp_path}", "engine=dask"]) == 2
    assert "draws images in this process" in capsys.readouterr().err


@pytest.mark.slow
def test_two_workers_of_dask_make_the_bags_and_predictions_of_one_process(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", str(torch.get_num_threads()))  # which may decide the last bits
    words = ["benchmark", "task=phantom", "encoders=[color-stats,resnet-random]", "heads=[mean]",
             "magnifications=[20x]", "size=5", "folds=2", "seeds=[0]", "epochs=2", "site=false"]  # fmt: skip
    assert main([*words, f"out={tmp_path / 'local'}"]) == 0
    shutil.copytree(tmp_path / "local" / "phantom" / "cohort", tmp_path / "dask" / "phantom" / "cohort")
    assert main([*words, f"out={tmp_path / 'dask'}", "engine=dask", "engine.workers=2"]) == 0
    bags, records = ([], [])
    for name in ("local", "dask"):
        folder = tmp_path / name / "phantom"
        bags.append({str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("bags/*/*.h5")})
        records.append(
            {record.label: (record.predictions, record.metrics) for record in load_records(folder / "records")}
        )
    assert len(bags[0]) == 10
    assert bags[0] == bags[1]
    assert len(records[0]) == 2
    assert records[0] == records[1]


def test_attention_that_finds_planted_lesions_scores_high_and_equal_attention_nothing(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    (tmp_path / "bags").mkdir()
    (tmp_path / "truth").mkdir()
    for number in range(40):
        label, slide = number % 2, f"s{number:02d}"
        features = rng.normal(size=(16, 4))
        features[4:8, 0] += 5.0 * label  # the second row of a 4 x 4 square of patches
        saved(make_bag(features, slide_id=slide), tmp_path / "bags")
        lesion = PlantedLesion(True, True, True, (0, 256, 1024, 512), [(0, 256), (1024, 256), (1024, 512), (0, 512)])
        truth = Truth(slide, 1024, 1024, 0.5, label, "both" if label else "neither", [lesion] * label)
        truth.save(tmp_path / "truth" / f"{slide}.json")
        rows.append((slide, f"p{number:02d}", str(label)))
    pd.DataFrame(rows, columns=["slide_id", "patient_id", "label"]).to_csv(tmp_path / "labels.csv", index=False)
    found = {}
    for head in ("abmil", "mean"):
        config = CrossvalConfig(
            bags=str(tmp_path / "bags"), labels=str(tmp_path / "labels.csv"), out=str(tmp_path / head), folds=2,
            head=head, epochs=15, learning_rate=1e-2,
        )  # fmt: skip
        cross_validate(config, open_study(config), Console(quiet=True))
        found[head] = attention_auroc(tmp_path / head, tmp_path / "bags", tmp_path / "labels.csv", tmp_path / "truth")
    interval = found["abmil"][LOCALISATION]
    assert interval.value > 0.9
    assert interval.low < interval.value <= interval.high
    assert found["mean"] == {}


def test_the_guide_adds_a_task_and_a_head_as_it_says(tmp_path, monkeypatch, capsys):
    guide = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text()
    (task,), (head,) = re.findall(r"```yaml\n(.*?)```", guide, re.S), re.findall(r"```python\n(.*?)```", guide, re.S)
    assert max(len(task.splitlines()), len(head.splitlines())) < 30
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(head_registry, "_BUILDERS", dict(head_registry._BUILDERS))  # forgets the head afterwards
    Path("grade.yaml").write_text(task)
    Path("smooth_max.py").write_text(head)
    Path("bags").mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for number in range(20):
        features = rng.normal(size=(20, 6)) + (np.arange(20) < 4)[:, None] * 8.0 * (number % 2)
        saved(make_bag(features, slide_id=f"s{number}", encoder="uni"), Path("bags"))
        rows.append((f"s{number}", f"p{number}", ["low", "high"][number % 2]))
    pd.DataFrame(rows, columns=["slide_id", "patient_id", "label"]).to_csv("grade.csv", index=False)
    (command,) = re.findall(r"zoomfeat (benchmark task=grade.yaml .* code=.*)", guide)
    assert main([*command.split(), "seeds=[0]", "folds=2", "epochs=60"]) == 0
    records = {record.head.name: record for record in load_records(tmp_path / "results" / "grade" / "records")}
    assert records.keys() == {"abmil", "smooth-max"}
    assert records["smooth-max"].metrics["auroc"].value > 0.8
    assert (tmp_path / "results" / "grade" / "site" / "index.html").exists()
    assert "Somebody" not in capsys.readouterr().out  # its row is ours: same encoder and magnification


def test_fixed_splits_of_the_run_are_those_that_it_wrote(finished, cohort):
    labels = read_labels(cohort / "mine.csv", classes=("no", "yes"))
    splits = load_splits(finished / "splits.csv", labels)
    tested = {slide: fold.name for fold in splits.folds for slide in fold.test}
    for record in load_records(finished / "records"):
        assert {row.slide: row.fold for row in record.predictions} == tested

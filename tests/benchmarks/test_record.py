"""Records come back as they were written and follow from their predictions; those that do not are refused."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from benchmarks.recomputation import differing_metrics, recomputed
from benchmarks.record import (
    EncoderFacts,
    HeadFacts,
    Interval,
    Measurement,
    Prediction,
    Record,
    RecordInvalidError,
    TaskFacts,
    held_out,
    load_records,
    predictions_of,
)
from mil.evaluation import evaluate


def make_record(seed: int = 0, patients: int = 24, runs: int = 2, skill: float = 1.0, **changes) -> Record:
    """A record of two classes whose predictions are drawn: a logistic score that is higher for the second class."""
    rng = np.random.default_rng(seed)
    rows = []
    for run in range(runs):
        for number in range(patients):
            label = number % 2
            p = float(1 / (1 + np.exp(-rng.normal(skill * (2 * label - 1)))))
            name = f"patient-{number:02d}"
            rows.append(
                Prediction(name, f"{name}-a;{name}-b", str(number // 2 % 4), run, ["no", "yes"][label], (1 - p, p))
            )
    record = Record(
        task=TaskFacts("made", "0" * 64, "classification", "auroc", True, ("no", "yes")),
        encoder=EncoderFacts("color-stats", "none", dim=6),
        magnification="20x+5x",
        head=HeadFacts("abmil", {"epochs": 3}),
        configuration={"seeds": list(range(runs))},
        predictions=tuple(rows),
        metrics={},
        created="2026-01-01T00:00:00+00:00",
        submitter="the tests",
    )
    return dataclasses.replace(record, **({"metrics": recomputed(record)} | changes))


def test_a_record_comes_back_as_it_was_saved(tmp_path):
    record = make_record()
    path = record.save(tmp_path)
    assert path.name == "made__color-stats__20x+5x__abmil.json"
    found = Record.load(path)
    assert found == record.sealed()
    assert found.hash == found.content_hash
    assert load_records(tmp_path) == [found]


def test_the_hash_is_of_the_content_whatever_the_layout_of_the_file(tmp_path):
    path = make_record().save(tmp_path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(content.items()))))
    again = Record.load(path)
    assert again.content_hash == again.hash
    content["predictions"][0]["probabilities"] = [0.5, 0.5]
    path.write_text(json.dumps(content))
    assert Record.load(path).content_hash != content["hash"]


def test_metrics_are_those_of_mil_on_the_predictions_as_stored(tmp_path):
    record = Record.load(make_record().save(tmp_path))
    evaluation = evaluate(held_out(record))
    found = recomputed(record)
    assert found["auroc"].value == evaluation.pooled["auroc"].value
    assert found["auroc"].low == evaluation.pooled["auroc"].low < found["auroc"].value < found["auroc"].high
    assert found["auroc_by_fold"].value == evaluation.averaged["auroc"].value
    assert not differing_metrics(record.metrics, found)
    assert predictions_of(held_out(record)) == record.predictions


def test_a_changed_prediction_changes_the_metrics():
    record = make_record()
    rows = list(record.predictions)
    rows[0] = dataclasses.replace(rows[0], probabilities=(0.01, 0.99))
    changed = dataclasses.replace(record, predictions=tuple(rows))
    assert "brier" in differing_metrics(record.metrics, recomputed(changed))
    assert differing_metrics(record.metrics, {}) == sorted(record.metrics)


def test_means_over_images_and_values_of_sets_with_their_intervals():
    images = [Measurement(f"image {i}", "image", {"psnr": 20.0 + i}) for i in range(11)]
    whole = Measurement("all", "set", {"fid": 10.4, "kid": 0.1}, {"fid": (10.0, 11.0)})
    task = TaskFacts("made", "0" * 64, "superres", "psnr", True)
    record = make_record(task=task, head=None, predictions=(*images, whole), metrics={})
    found = recomputed(record)
    assert found["psnr"].value == 25
    assert 22 < found["psnr"].low < 25 < found["psnr"].high < 28
    assert found["fid"] == Interval(10.4, 10.0, 11.0)
    assert found["kid"] == Interval(0.1)
    assert record.file_name == "made__color-stats__20x+5x.json"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 2}, "schema"),
        ({"surprise": 1}, "surprise"),
        ({"metrics": {"auroc": {"value": "high"}}}, "metrics.auroc.value"),
        ({"encoder": {}}, "encoder.name"),
    ],
)
def test_a_file_of_another_layout_is_refused_by_the_field(tmp_path, change, words):
    path = make_record().save(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RecordInvalidError, match=words):
        Record.load(path)


def test_no_file_no_json_and_an_empty_folder_are_refused(tmp_path):
    with pytest.raises(RecordInvalidError, match="not readable"):
        Record.load(tmp_path / "none.json")
    with pytest.raises(RecordInvalidError, match="no records"):
        load_records(tmp_path)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(RecordInvalidError, match=r"broken\.json"):
        load_records(tmp_path)


def test_predictions_that_are_not_of_the_task_are_refused():
    record = make_record()
    rows = (dataclasses.replace(record.predictions[0], label="perhaps"), *record.predictions[1:])
    with pytest.raises(RecordInvalidError, match="perhaps"):
        recomputed(dataclasses.replace(record, predictions=rows))
    with pytest.raises(RecordInvalidError, match="without predictions"):
        recomputed(dataclasses.replace(record, predictions=()))

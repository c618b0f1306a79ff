"""Records that say something else than their predictions, or that are no records, are refused, and said why."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from benchmarks.recomputation import recomputed
from benchmarks.record import Cost, Interval, Record
from benchmarks.submission import check_file, check_record, known_tasks, printable
from benchmarks.tasks import patients_sha256
from tests.benchmarks.records import PATIENTS, SMALL, make_record
from zoomfeat.cli import main


@pytest.fixture(scope="module")
def honest() -> Record:
    """Two runs of three folds."""
    return make_record()


def problems(record: Record, *further) -> list[str]:
    return list(check_record(record.sealed(), Path("record.json"), known_tasks([SMALL, *further])).problems)


def with_prediction(record: Record, place: int, **changes: object) -> Record:
    predictions = list(record.predictions)
    predictions[place] = dataclasses.replace(predictions[place], **changes)
    return dataclasses.replace(record, predictions=tuple(predictions))


def measured_again(record: Record) -> Record:
    """With the metrics of its predictions: what a forger would do who knows how records are checked."""
    return dataclasses.replace(record, metrics=recomputed(record)).sealed()


def test_an_honest_record_passes(honest, tmp_path, capsys):
    path = honest.save(tmp_path)
    checked = check_file(path, known_tasks([SMALL]))
    assert checked.problems == ()
    assert checked.record == honest
    assert checked.metrics == recomputed(honest)
    assert main(["submit-check", str(path), f"tasks=[{SMALL}]"]) == 0
    out = capsys.readouterr().out
    assert f"in order: bags: made-up 20x abmil, auroc {honest.metrics['auroc']}" in out.replace("\n", " ")


@pytest.mark.parametrize("place", [0, PATIENTS, 2 * PATIENTS - 1])
@pytest.mark.parametrize("change", [0.2, 1e-4])
def test_a_changed_prediction_is_refused(honest, tmp_path, capsys, place, change):
    """Whether or not whoever changed it sealed the record again."""
    negative, positive = honest.predictions[place].probabilities
    change = change if positive < 0.5 else -change
    tampered = with_prediction(honest, place, probabilities=(negative - change, positive + change))
    found = problems(tampered)
    assert any(line.startswith("metric brier is ") and "the predictions give" in line for line in found)

    path = honest.save(tmp_path)
    content = json.loads(path.read_text())
    content["predictions"][place]["probabilities"] = [negative - change, positive + change]
    path.write_text(json.dumps(content))
    assert main(["submit-check", str(path), f"tasks=[{SMALL}]"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith(f"{path}: ") for line in lines)
    assert "changed after it was written" in lines[0]
    assert any("metric brier is" in line for line in lines)


@pytest.mark.parametrize(
    ("name", "change", "refused"),
    [
        ("auroc", {"value": 0.999}, True),
        ("auroc", {"value": None}, True),
        ("auroc", {"low": 0.9, "high": 0.91}, True),
        ("auroc", {"low": None, "high": None}, True),
        ("auroc", {"level": 0.5}, True),
        ("ece_by_fold", {"high": 0.0}, True),
    ],
)
def test_a_changed_metric_is_refused(honest, name, change, refused):
    metrics = honest.metrics | {name: dataclasses.replace(honest.metrics[name], **change)}
    found = problems(dataclasses.replace(honest, metrics=metrics))
    assert any(line.startswith(f"metric {name} is ") for line in found) == refused


def test_missing_and_invented_metrics_are_refused(honest):
    metrics = {name: interval for name, interval in honest.metrics.items() if name != "auroc"}
    found = problems(dataclasses.replace(honest, metrics=metrics | {"usefulness": Interval(1.0)}))
    assert any(line.startswith("metric auroc is missing") for line in found)
    assert "no value of auroc, which ranks the task" in found
    assert any(line.startswith("metric usefulness is 1 ") for line in found)


def test_another_draw_of_the_bootstrap_is_no_tampering(honest):
    """A machine with another NumPy may resample otherwise: ends may move by a little, values may not."""
    found = honest.metrics["auroc"]
    width = found.high - found.low
    moved = dataclasses.replace(found, low=found.low + 0.03 * width, high=found.high - 0.03 * width)
    assert problems(dataclasses.replace(honest, metrics=honest.metrics | {"auroc": moved})) == []
    narrow = dataclasses.replace(found, low=found.low + 0.2 * width)
    assert problems(dataclasses.replace(honest, metrics=honest.metrics | {"auroc": narrow})) != []
    better = dataclasses.replace(found, value=found.value + 1e-4)
    assert problems(dataclasses.replace(honest, metrics=honest.metrics | {"auroc": better})) != []


@pytest.fixture(scope="module")
def pinned(honest, tmp_path_factory) -> tuple[Path, Record]:
    """A task that says who its patients are and what is true of them, and a record of it."""
    content = yaml.safe_load(Path(SMALL).read_text(encoding="utf-8"))
    content["name"] = "pinned"
    content["patients_sha256"] = patients_sha256((each.patient, each.label) for each in honest.predictions)
    path = tmp_path_factory.mktemp("tasks") / "pinned.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path, make_record(task=str(path))


def test_patients_are_held_against_the_task(pinned):
    task, record = pinned
    assert problems(record, str(task)) == []
    hard = record.predictions[0].patient
    without = dataclasses.replace(record, predictions=tuple(p for p in record.predictions if p.patient != hard))
    flipped = tuple(
        dataclasses.replace(p, label="1" if p.label == "0" else "0") if p.patient == hard else p
        for p in record.predictions
    )
    for forged in (without, dataclasses.replace(record, predictions=flipped)):
        (found,) = problems(measured_again(forged), str(task))
        assert "patients are missing, added or of another class" in found


def test_unknown_tasks_and_versions(honest, pinned):
    _, record = pinned
    (found,) = problems(record)
    assert found.startswith("task 'pinned' is not known")
    other = dataclasses.replace(honest, task=dataclasses.replace(honest.task, version="0" * 64))
    (found,) = problems(other)
    assert found.startswith("task version is 000000000000..., that of bags is")
    easier = dataclasses.replace(honest, task=dataclasses.replace(honest.task, metric="accuracy"))
    assert "task.metric is 'accuracy', expected 'auroc'" in problems(easier)


def test_all_runs_of_the_task_and_no_others(honest):
    """Or somebody could show the best of several runs, or of several ways to fold."""
    first = measured_again(dataclasses.replace(honest, predictions=honest.predictions[:PATIENTS]))
    assert "runs 0, expected 0, 1" in problems(first)
    renamed = tuple(dataclasses.replace(each, run=each.run + 1) for each in honest.predictions)
    assert "runs 1, 2, expected 0, 1" in problems(dataclasses.replace(honest, predictions=renamed))
    merged = tuple(
        dataclasses.replace(each, fold="0" if each.fold == "2" else each.fold) for each in honest.predictions
    )
    found = problems(measured_again(dataclasses.replace(honest, predictions=merged)))
    assert found == ["run 0 has 2 folds, expected 3", "run 1 has 2 folds, expected 3"]
    again = dataclasses.replace(honest.predictions[0], fold="1" if honest.predictions[0].fold != "1" else "2")
    twice = measured_again(dataclasses.replace(honest, predictions=(*honest.predictions, again)))
    assert any(line.startswith("several folds of one run have 1 patient") for line in problems(twice))


def dropped(record: Record) -> Record:
    return dataclasses.replace(record, predictions=record.predictions[1:])


def repeated(record: Record) -> Record:
    return dataclasses.replace(record, predictions=(*record.predictions, record.predictions[0]))


@pytest.mark.parametrize(
    ("forge", "expected"),
    [
        (dropped, "run 0 lacks 1 patient"),
        (repeated, "two predictions in one run and fold of 1 patient"),
        (lambda r: with_prediction(r, 3, probabilities=(-0.5, 1.5)), "probabilities outside 0 to 1 of 1 patient"),
        (lambda r: with_prediction(r, 3, probabilities=(0.4, 0.4)), "probabilities that do not sum to 1 of 1 patient"),
        (lambda r: with_prediction(r, 3, probabilities=(0.1, 0.2, 0.7)), "3 probabilities, expected one of 0, 1 and 2"),
        (lambda r: with_prediction(r, 3, label="2"), "label '2' and 2 probabilities"),
        (
            lambda r: with_prediction(r, 3, label=str(1 - int(r.predictions[3].label))),
            "different true classes of 1 patient",
        ),
        (lambda r: dataclasses.replace(r, predictions=()), "a classification without predictions"),
        (lambda r: dataclasses.replace(r, created="yesterday"), "created is 'yesterday', expected a time in ISO 8601"),
        (lambda r: dataclasses.replace(r, created="2026-01-02T03:04:05+02:00"), "expected a time in UTC"),
        (lambda r: dataclasses.replace(r, created="2026-01-02T03:04:05"), "expected a time in UTC"),
        (lambda r: dataclasses.replace(r, extra={"x": Interval(0.9, 0.1, 0.2)}), "extra.x is 0.9 [0.1, 0.2]"),
        (lambda r: dataclasses.replace(r, cost=Cost(training_seconds=-1)), "cost.training_seconds is -1.0"),
        (
            lambda r: dataclasses.replace(r, encoder=dataclasses.replace(r.encoder, parameters=-5)),
            "encoder.parameters is -5",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(honest, forge: Callable[[Record], Record], expected):
    assert any(expected in line for line in problems(forge(honest)))


def edited(content: dict, **changes: object) -> str:
    return json.dumps(content | changes)


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda text: text[: len(text) // 2], "Invalid JSON"),
        (lambda text: "", "Invalid JSON"),
        (lambda text: "[1, 2]", "file: Input should be"),
        (lambda text: "[" * 100_000, "Invalid JSON"),
        (lambda text: edited(json.loads(text), schema=2), "schema: Input should be 1"),
        (lambda text: edited(json.loads(text), surprise=1), "surprise: "),
        (lambda text: text.replace('"probabilities"', '"chances"', 1), "chances"),
        (lambda text: edited(json.loads(text), cost={"training_seconds": "long"}), "cost.training_seconds: "),
        (lambda text: edited(json.loads(text), cost={"training_seconds": float("nan")}), "cost.training_seconds"),
    ],
)
def test_what_is_no_record_is_refused(honest, tmp_path, edit, expected):
    path = honest.save(tmp_path)
    path.write_text(edit(path.read_text()))
    checked = check_file(path, known_tasks([SMALL]))
    assert checked.record is None
    assert any(expected in line for line in checked.problems), checked.problems
    assert all("\n" not in line for line in checked.problems)
    assert len(checked.problems) <= 11


def test_several_files_and_ones_that_are_not_there(honest, tmp_path, capsys):
    good = honest.save(tmp_path)
    assert main(["submit-check", str(good), str(tmp_path / "none.json"), f"tasks=[{SMALL}]"]) == 1
    out = capsys.readouterr().out
    assert "in order" in out
    assert "none.json: " in out
    assert "not readable" in out
    assert main(["submit-check"]) == 2


def test_texts_of_a_record_do_not_reach_the_terminal_raw(honest, tmp_path, capsys):
    """Escape sequences, which can hide a line or write another, and rich's own markup."""
    hostile = "\x1b[2K\x1b[1Anice \u202e[bold]"
    record = with_prediction(
        dataclasses.replace(honest, encoder=dataclasses.replace(honest.encoder, name=hostile)), 0, patient=hostile
    )
    path = tmp_path / "record.json"
    path.write_text(json.dumps(dataclasses.asdict(record.sealed())))
    assert main(["submit-check", str(path), f"tasks=[{SMALL}]"]) == 1
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert "run 1 lacks 1 patient (\ufffd[2K\ufffd[1Anice \ufffd[bold])" in out
    assert printable("naïve Ünit µm 20x") == "naïve Ünit µm 20x"

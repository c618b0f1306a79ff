"""Result records that tests make: real cross-validations of heads on small bags that are drawn, one a patient."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from sklearn.model_selection import StratifiedKFold

from benchmarks.recomputation import recomputed
from benchmarks.record import Cost, EncoderFacts, HeadFacts, Interval, Measurement, Record, TaskFacts, predictions_of
from benchmarks.tasks import Task, load_task
from mil import MILClassifier
from mil.held_out import HeldOutPredictions
from tests.mil.bags import flat_bags

PATIENTS = 48

SMALL = str(Path(__file__).with_name("small.yaml"))
"""The task of the records: three folds, two runs."""

HOSTILE = '=HYPERLINK("http://x")</script><img src=x onerror=alert(1)>'
"""The name of an encoder that is a formula in a spreadsheet and a program in a page."""


@functools.cache
def cross_validated(signal: float, head: str, seeds: tuple[int, ...] = (0, 1)) -> HeldOutPredictions:
    """Held-out predictions of three folds a seed, in the classes 0 and 1.

    Args:
        signal: how far one patch of a positive bag is off; 0 leaves nothing to find, as a useless encoder would.
        head: its name.
        seeds: of folds and training.
    """
    bags, labels = flat_bags(PATIENTS, seed=3, dim=6, sizes=(3, 6), shift=signal)
    rows = []
    for seed in seeds:
        folds = StratifiedKFold(3, shuffle=True, random_state=seed).split(labels, labels)
        for fold, (training, test) in enumerate(folds):
            model = MILClassifier(head=head, seed=seed, epochs=8, width=8, learning_rate=1e-2)
            model.fit([bags[place] for place in training], labels[training])
            chances = model.predict_proba([bags[place] for place in test])
            rows += [
                (f"patient-{place}", f"slide-{place}", seed, str(fold), str(labels[place]), *map(float, chance))
                for place, chance in zip(test, chances, strict=True)
            ]
    names = ["patient_id", "slide_ids", "seed", "fold", "y_true", "prob_0", "prob_1"]
    return HeldOutPredictions(pd.DataFrame(rows, columns=names))


def facts(task: Task) -> TaskFacts:
    """What a record says of its task."""
    return TaskFacts(
        **{name: getattr(task, name) for name in ("name", "version", "kind", "metric", "higher_is_better", "classes")}
    )


def make_record(
    magnification: str = "20x",
    head: str = "abmil",
    *,
    signal: float = 3.0,
    encoder: str = "made-up",
    licence: str | None = "MIT",
    seeds: tuple[int, ...] = (0, 1),
    task: str = SMALL,
    **changes: object,
) -> Record:
    """A sealed record of a cross-validation; all that is not prediction or metric is made up.

    Args:
        magnification: what the record says.
        head: its name.
        signal: see `cross_validated`.
        encoder: what the record calls the maker of the features.
        licence: of it.
        seeds: see `cross_validated`.
        task: path of a YAML file.
        changes: other fields of the record.
    """
    settings = {"signal": signal, "taps": ["mid", "up_blocks.0"]}
    record = Record(
        task=facts(load_task(task)),
        encoder=EncoderFacts(encoder, "a" * 64, settings, "", licence, 12_345_678, 4.2e9, 6),
        magnification=magnification,
        head=HeadFacts(head, {"epochs": 8}),
        configuration={"folds": 3, "seeds": list(seeds), "splits_sha256": "of three folds"},
        predictions=predictions_of(cross_validated(signal, head, seeds)),
        metrics={},
        extra={"localisation_auroc": Interval(0.75, 0.7, 0.8)},
        cost=Cost(patches_per_second=12.5, bytes_per_slide=40_000.0, training_seconds=3.0),
        hardware={"cpu": "a processor", "gpu": None},
        software={"python": "3.11"},
        created="2026-01-02T03:04:05+00:00",
        submitter="tests",
    )
    record = dataclasses.replace(record, metrics=recomputed(record))
    return dataclasses.replace(record, **changes).sealed()


def save(record: Record, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{record.hash[:10]}.json"
    path.write_text(json.dumps(dataclasses.asdict(record)), encoding="utf-8")
    return path


def superres_task(path: Path) -> Path:
    """A task whose results are measured image by image; lower is better."""
    content = yaml.safe_load(Path(SMALL).read_text(encoding="utf-8"))
    content |= {
        "name": "restoring",
        "kind": "superres",
        "metric": "rmse",
        "higher_is_better": False,
        "classes": [],
        "heads": [],
    }
    content["published"] = [
        {"row": "Bicubic <b>", "value": 0.09, "source": "A paper", "magnification": "20x", "encoder": "averaging"}
    ]
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def generation_task(path: Path) -> Path:
    """A task whose results are distances of sets of images."""
    content = yaml.safe_load(Path(SMALL).read_text(encoding="utf-8"))
    content |= {"name": "drawing", "kind": "generation", "metric": "distance", "higher_is_better": False}
    content |= {"classes": [], "heads": []}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def drawn(task: Path, shift: float, metric: str = "distance") -> Record:
    """How far the mean of random images that are shifted lies from that of others, with an interval over images."""
    rng = np.random.default_rng(0)
    real, made = rng.normal(size=(50, 64)), rng.normal(loc=shift, size=(50, 64))

    def distance(rows: np.ndarray) -> float:
        return float(np.linalg.norm(real.mean(axis=0) - made[rows].mean(axis=0)))

    resampled = [distance(rng.integers(50, size=50)) for _ in range(200)]
    low, high = map(float, np.quantile(resampled, [0.025, 0.975]))
    whole = Measurement("all", "set", {metric: distance(np.arange(50))}, {metric: (low, high)})
    record = dataclasses.replace(
        make_record(),
        task=facts(load_task(str(task))),
        encoder=EncoderFacts("painter", settings={"shift": shift}),
        head=None,
        predictions=(whole,),
        extra={},
        submitter=f"shift of {shift}",
    )
    return dataclasses.replace(record, metrics=recomputed(record)).sealed()


def restored(task: Path, window: int, magnification: str = "20x") -> Record:
    """How far noisy random images are from the true ones after averaging over a window of rows."""
    rng = np.random.default_rng(0)
    measured = []
    for number in range(20):
        truth = np.repeat(rng.random((8, 16)), 4, axis=0)
        noisy = truth + rng.normal(scale=0.1, size=truth.shape)
        smooth = np.mean([np.roll(noisy, -shift, axis=0) for shift in range(window)], axis=0)
        measured.append(
            Measurement(f"image-{number}", "image", {"rmse": float(np.sqrt(np.mean((smooth - truth) ** 2)))})
        )
    base = make_record()
    record = dataclasses.replace(
        base,
        task=facts(load_task(str(task))),
        encoder=EncoderFacts("averaging", settings={"window": window}),
        magnification=magnification,
        head=None,
        predictions=tuple(measured),
        extra={},
        submitter=f"window of {window}",
    )
    return dataclasses.replace(record, metrics=recomputed(record)).sealed()

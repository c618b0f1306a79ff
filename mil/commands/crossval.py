"""``zoomfeat crossval``: folds and seeds trained, tested, evaluated, drawn; goes on where it was stopped."""

from __future__ import annotations

import json
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mil.crossval import Study, cross_validate, open_study
from mil.evaluation import Evaluation, evaluate
from mil.figures import draw_figures
from mil.held_out import HeldOutPredictions
from mil.runs import RunFolder
from zoomfeat.bags.files import trying_first
from zoomfeat.conf.schema import CrossvalConfig
from zoomfeat.files import replacing
from zoomfeat.words import counted, shown

SHORT_NAMES = {
    "auroc": "AUROC",
    "average_precision": "AP",
    "accuracy": "accuracy",
    "balanced_accuracy": "bal. acc.",
    "f1": "F1",
    "brier": "Brier",
    "ece": "ECE",
    "r2": "R2",
    "pearson": "Pearson",
    "mae": "MAE",
    "concordance": "c-index",
}
"""The metrics as tables call them."""


@trying_first()
def run(config: CrossvalConfig) -> int:
    """Cross-validates, prints the metrics and fills ``out``."""
    console = Console()
    study = open_study(config)
    for line in describe(study, config):
        console.print(escape(line), soft_wrap=True, highlight=False)
    predictions = cross_validate(config, study, console)
    folder = RunFolder(Path(config.out))
    with console.status("bootstrap and figures"):
        evaluation = evaluate(predictions)
        draw_figures(predictions, evaluation, folder.folder)
        record = {
            "task": predictions.task,
            "classes": list(predictions.classes),
            "splits_sha256": study.splits.sha256,
            **evaluation.to_json(),
        }
        with replacing(folder.metrics) as path:
            path.write_text(json.dumps(record, indent=1), encoding="utf-8")
    console.print(metrics_table(predictions, evaluation, config))
    if len(config.seeds) > 1:
        first = next(iter(evaluation.between_seeds))
        values = ", ".join(f"{value:.3f}" for value in evaluation.between_seeds[first])
        console.print(f"{SHORT_NAMES[first]} of each seed, pooled: {values}", highlight=False)
    console.print(f"Predictions, models and figures: {escape(config.out)}", soft_wrap=True, highlight=False)
    return 0


def describe(study: Study, config: CrossvalConfig) -> list[str]:
    """What will be trained on what, a line each."""
    cohort = study.cohort
    patients = cohort.patients
    lines = study.report.lines()
    if cohort.classes:
        counts = ", ".join(f"{name} {int((patients.y == name).sum())}" for name in cohort.classes)
        lines.append(f"{counted(len(patients.names), 'patient')}: {counts}")
    else:
        lines.append(counted(len(patients.names), "patient"))
    folds = study.splits.of_seed(config.seeds[0])
    sizes = f"{counted(len(folds), 'fold')}, {counted(len(config.seeds), 'seed')}, no patient in two parts of a fold"
    lines.append(f"{config.split} splits: {sizes} (sha256 {study.splits.sha256[:12]})")
    tested = {slide for fold in study.splits.folds for slide in fold.test}
    untested = sorted(set(cohort.slide_ids.tolist()) - tested)
    if untested:
        lines.append(f"{counted(len(untested), 'slide')} in no test part: {shown(untested)}")
    return lines


def metrics_table(predictions: HeldOutPredictions, evaluation: Evaluation, config: CrossvalConfig) -> Table:
    """The metrics as a table, a row each; columns are named as in ``metrics.json``."""
    classes = predictions.classes
    what = f"{classes[1]} against {classes[0]}" if len(classes) == 2 else config.label
    title = f"{config.head}, {what}: {evaluation.patients} patients, value [95 % interval]"
    table = Table(title=title, title_justify="left", min_width=len(title), box=box.SIMPLE_HEAD, pad_edge=False)
    views = {"pooled": evaluation.pooled, "averaged": evaluation.averaged}
    if evaluation.seed_averaged is not None:
        views["seed-averaged"] = evaluation.seed_averaged
    table.add_column("", no_wrap=True)
    for name in views:
        table.add_column(name, justify="right", no_wrap=True)
    for metric in evaluation.pooled:
        table.add_row(SHORT_NAMES[metric], *(str(view[metric]) for view in views.values()))
    return table

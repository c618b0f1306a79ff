"""Figures of a cross-validation as PNG: ROC, precision and recall, calibration; for numbers and survival their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import beta
from sklearn.metrics import precision_recall_curve, roc_curve

from mil.evaluation import Evaluation
from mil.held_out import HeldOutPredictions
from mil.metrics import LEVEL, RESAMPLES, bootstrap_weights
from zoomfeat.files import replacing
from zoomfeat.palette import BLUE, CYCLE, GREY, as_hex

_BLUE, _GREY = as_hex(BLUE), as_hex(GREY)
_COLORS = tuple(as_hex(color) for color in CYCLE)
_GRID = np.linspace(0, 1, 201)


def draw_figures(predictions: HeldOutPredictions, evaluation: Evaluation, folder: Path) -> list[Path]:
    """Draws what fits the task.

    Thick lines are of each patient's prediction averaged over seeds, thin ones of each seed. Bands are 95 % percentile
    intervals of the bootstrap over patients, point by point.

    Args:
        predictions: of all seeds and folds.
        evaluation: of these.
        folder: to write to.

    Returns:
        ``roc.png``, ``pr.png`` and ``calibration.png``; ``scatter.png`` for regression, ``survival.png`` for survival.
    """
    drawings: dict[str, dict[str, Callable[[Axes, HeldOutPredictions, Evaluation], None]]] = {
        "classification": {"roc": _roc, "pr": _precision_recall, "calibration": _calibration},
        "regression": {"scatter": _scatter},
        "survival": {"survival": _survival},
    }
    paths = []
    for name, draw in drawings[predictions.task].items():
        figure = Figure(figsize=(5.6, 5.6), dpi=150, layout="constrained")
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes, predictions, evaluation)
        path = folder / f"{name}.png"
        with replacing(path) as temporary:
            figure.savefig(temporary, format="png")
        paths.append(path)
    return paths


def _roc(axes: Axes, predictions: HeldOutPredictions, evaluation: Evaluation) -> None:
    average = predictions.by_patient()
    for color, (name, truth, scores) in zip(_cycle(average), _positives(average), strict=False):
        if len(average.classes) == 2:
            for label, seed in _seeds(predictions):
                fpr, tpr, _ = roc_curve(*_positives(seed)[0][1:], drop_intermediate=False)
                axes.plot(fpr, tpr, color=_GREY, linewidth=0.7, alpha=0.7, zorder=1, label=label)
            low, high = np.nanquantile(_roc_curves(truth, scores), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
            axes.fill_between(_GRID, low, high, color=color, alpha=0.15, linewidth=0, label="95 % of resamples")
        fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
        axes.plot(fpr, tpr, color=color, linewidth=2, label=name, zorder=3)
    axes.plot([0, 1], [0, 1], color=_GREY, linestyle=":", linewidth=1)
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.set_title(_title("AUROC", "auroc", evaluation), fontsize=10)
    axes.legend(frameon=False, loc="lower right", fontsize=9)


def _precision_recall(axes: Axes, predictions: HeldOutPredictions, evaluation: Evaluation) -> None:
    average = predictions.by_patient()
    for color, (name, truth, scores) in zip(_cycle(average), _positives(average), strict=False):
        if len(average.classes) == 2:
            for label, seed in _seeds(predictions):
                precision, recall, _ = precision_recall_curve(*_positives(seed)[0][1:])
                axes.step(recall, precision, where="post", color=_GREY, linewidth=0.7, zorder=1, label=label)
        precision, recall, _ = precision_recall_curve(truth, scores)
        axes.step(recall, precision, where="post", color=color, linewidth=2, label=name, zorder=3)
        share = truth.mean()
        axes.axhline(share, color=color, linestyle=":", linewidth=1, label=f"chance ({share:.2f})")
    axes.set(xlabel="recall (sensitivity)", ylabel="precision (positive predictive value)", aspect="equal")
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.set_title(_title("average precision", "average_precision", evaluation), fontsize=10)
    axes.legend(frameon=False, loc="lower left", fontsize=9)


def _calibration(axes: Axes, predictions: HeldOutPredictions, evaluation: Evaluation) -> None:
    average = predictions.by_patient()
    values = average.table[average.scores].to_numpy()
    indices = average.class_indices()
    if len(average.classes) == 2:
        confidence, happened = values[:, 1], indices == 1
        what = f"probability of {average.classes[1]}", f"share of patients that are {average.classes[1]}"
    else:
        confidence, happened = values.max(axis=1), indices == values.argmax(axis=1)
        what = "probability of the predicted class", "share of right predictions"
    place = np.minimum((confidence * 10).astype(int), 9)
    axes.plot([0, 1], [0, 1], color=_GREY, linestyle=":", linewidth=1)
    for number in np.unique(place):
        inside = place == number
        count, hits = int(inside.sum()), int(happened[inside].sum())
        # Clopper and Pearson's interval of a share.
        low = beta.ppf((1 - LEVEL) / 2, hits, count - hits + 1) if hits else 0.0
        high = beta.ppf((1 + LEVEL) / 2, hits + 1, count - hits) if hits < count else 1.0
        x, y = confidence[inside].mean(), hits / count
        axes.plot([x, x], [low, high], color=_BLUE, linewidth=1.2)
        axes.plot(x, y, "o", color=_BLUE, markersize=6)
        axes.annotate(str(count), (x, y), textcoords="offset points", xytext=(7, -3), fontsize=8, color="#444444")
    axes.set(xlabel=f"{what[0]}, mean of a bin", ylabel=what[1], aspect="equal")
    axes.set(xlim=(-0.01, 1.05), ylim=(-0.01, 1.01))
    axes.set_title(_title("calibration error", "ece", evaluation) + "\nnumbers: patients in the bin", fontsize=10)


def _scatter(axes: Axes, predictions: HeldOutPredictions, evaluation: Evaluation) -> None:
    table = predictions.by_patient().table
    ends = [table[["y_true", "prediction"]].min().min(), table[["y_true", "prediction"]].max().max()]
    axes.plot(ends, ends, color=_GREY, linestyle=":", linewidth=1)
    axes.plot(table.y_true, table.prediction, "o", color=_BLUE, markersize=4, alpha=0.6, markeredgewidth=0)
    axes.set(xlabel="true value", ylabel="predicted value")
    axes.set_title(_title("Pearson's r", "pearson", evaluation), fontsize=10)


def _survival(axes: Axes, predictions: HeldOutPredictions, evaluation: Evaluation) -> None:
    table = predictions.by_patient().table
    high = (table.prediction > table.prediction.median()).to_numpy()
    for rows, name, color in ((~high, "lower half of risk", _BLUE), (high, "upper half of risk", _COLORS[1])):
        time, event = table.y_true.to_numpy(dtype=float)[rows], table.event.to_numpy(dtype=bool)[rows]
        axes.step(*_kaplan_meier(time, event), where="post", color=color, linewidth=2, label=f"{name} ({rows.sum()})")
    axes.set(xlabel="time", ylabel="share without event (Kaplan-Meier)", ylim=(0, 1.02))
    axes.set_title(_title("concordance", "concordance", evaluation), fontsize=10)
    axes.legend(frameon=False, loc="upper right", fontsize=9)


def _kaplan_meier(time: NDArray[np.floating], event: NDArray[np.bool_]) -> tuple[NDArray, NDArray]:
    """Times of events, and the share that survives them (Kaplan and Meier 1958)."""
    times = np.unique(time[event])
    at_risk = (time[None, :] >= times[:, None]).sum(axis=1)
    events = ((time[None, :] == times[:, None]) & event[None, :]).sum(axis=1)
    return np.r_[0, times, time.max()], np.r_[1, np.cumprod(1 - events / at_risk), np.prod(1 - events / at_risk)]


def _title(name: str, metric: str, evaluation: Evaluation) -> str:
    """The value of what the thick lines show, with its interval, as in the table of results."""
    found = (evaluation.seed_averaged or evaluation.pooled)[metric]
    which = "" if evaluation.seed_averaged is None else ", mean of seeds"
    return f"{name} {found}, {evaluation.patients} patients{which}"


def _seeds(predictions: HeldOutPredictions) -> list[tuple[str, HeldOutPredictions]]:
    """The predictions of each seed where there are several, with a label for the first."""
    groups = [HeldOutPredictions(rows) for _, rows in predictions.table.groupby("seed")]
    labels = ["each seed"] + [""] * (len(groups) - 1)
    return list(zip(labels, groups, strict=True)) if len(groups) > 1 else []


def _positives(predictions: HeldOutPredictions) -> list[tuple[str, NDArray[np.bool_], NDArray[np.float64]]]:
    """Name, truth and score of each class that counts as positive: the second of two, else each against the rest."""
    places = [1] if len(predictions.classes) == 2 else range(len(predictions.classes))
    indices, values = predictions.class_indices(), predictions.table[predictions.scores].to_numpy()
    return [(predictions.classes[place], indices == place, values[:, place]) for place in places]


def _cycle(predictions: HeldOutPredictions) -> list[str]:
    return [_COLORS[place % len(_COLORS)] for place in range(len(predictions.classes))]


def _roc_curves(truth: NDArray[np.bool_], scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """(resamples, grid) sensitivity at each false positive rate of the grid."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    ends = np.flatnonzero(np.r_[ranked[1:] != ranked[:-1], True])
    weights = bootstrap_weights(len(scores), 0, RESAMPLES // 4)[:, order]
    tpr = np.cumsum(weights * truth[order], axis=1)[:, ends]
    fpr = np.cumsum(weights * ~truth[order], axis=1)[:, ends]
    with np.errstate(invalid="ignore"):
        tpr, fpr = tpr / tpr[:, -1:], fpr / fpr[:, -1:]
    zero = np.zeros((len(weights), 1))
    pairs = zip(np.hstack([zero, fpr]), np.hstack([zero, tpr]), strict=True)
    return np.array([np.interp(_GRID, x, y) for x, y in pairs])

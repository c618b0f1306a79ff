"""The columns of a leaderboard's table: what a cell shows, sorts by and tells a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.leaderboard import Board, Standing
from benchmarks.record import BY_FOLD, Interval
from benchmarks.results import published_of
from benchmarks.submission import printable
from benchmarks.tasks import Published
from mil.commands.crossval import SHORT_NAMES
from mil.metrics import LEVEL, LOWER_IS_BETTER

INTERVAL = f"{100 * LEVEL:.0f} % interval"
NOT_STATED = "not stated"

Value = str | float | None

_NAMES = SHORT_NAMES | {"fid": "FID", "kid": "KID", "psnr": "PSNR", "ssim": "SSIM", "lpips": "LPIPS"}
_MEANINGS = {
    "auroc": "Chance that a random positive patient has a higher probability than a random negative one; of several "
    "classes the mean of each against the rest. 0.5 is guessing.",
    "average_precision": "Mean positive predictive value over all sensitivities. Guessing gives the positives' share.",
    "accuracy": "Share of patients whose most probable class is the true one.",
    "balanced_accuracy": "Mean over the classes of the share of their patients that is predicted rightly.",
    "f1": "Harmonic mean of precision and sensitivity; of several classes their mean.",
    "brier": "Mean squared error of the probability. Lower is better.",
    "ece": "How far probabilities are from the shares that come true, in ten bins. Lower is better.",
}


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: what it shows.
        value: what it sorts by; None sorts last.
        small: a second line.
    """

    text: str
    value: Value
    small: str = ""


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        title: its heading.
        meaning: what its numbers are; empty where the heading says it.
        group: ``metrics``, ``cost`` or ``origin``, which readers may hide; empty for what is always there.
        number: whether its cells are numbers, and best sorted from the better end.
        cell: of a row.
        lower: whether lower is better.
    """

    title: str
    meaning: str
    group: str
    number: bool
    cell: Callable[[Standing], Cell]
    lower: bool = False


def columns(board: Board) -> list[Column]:
    """The columns of a board, without that of the encoder, which heads its rows.

    Of metrics of all predictions and their means over folds only the kind that ranks has columns; the CSV has both.
    """
    ranking = board.task.metric
    by_fold = ranking.endswith(BY_FOLD)
    named = {name for standing in board.standings for name in standing.entry.metrics} - {ranking}
    metrics = sorted((name for name in named if name.endswith(BY_FOLD) == by_fold), key=_metric_order)
    extra = sorted({name for standing in board.standings for name in standing.entry.record.extra})
    return [
        Column("Magnification", "", "", False, lambda row: Cell(*[row.entry.record.magnification] * 2)),
        *([Column("Head", "", "", False, _head)] if any(row.entry.record.head for row in board.standings) else []),
        Column(
            metric_name(ranking), f"{meaning(ranking)} Ranks this task. Below it the {INTERVAL}.",
            "", True, lambda row: _interval(row.entry.metrics.get(ranking)), not board.task.higher_is_better,
        ),
        *([_published_column(board)] if _has_published(board) else []),
        *([Column("Against first", _AGAINST, "", True, _against_first)] if board.pairs else []),
        *(
            Column(metric_name(name), meaning(name), "metrics", True, _metric(name), _lower(name)) for name in metrics
        ),
        *(
            Column(
                metric_name(name), "Stated by the submitter: it does not follow from the predictions.", "metrics", True,
                _extra(name),
            )
            for name in extra
        ),
        Column("Patches/s", _PATCHES, "cost", True, _cost("patches_per_second", 1)),
        Column("GB per slide", "Mean size of a bag, 10^9 bytes.", "cost", True, _cost("bytes_per_slide", 1e9), True),
        Column("Parameters", "Of the encoder.", "cost", True, lambda row: _amount(row.entry.record.encoder.parameters),
               True),
        Column("FLOPs/patch", "Floating-point operations of the encoder for one patch.", "cost", True,
               lambda row: _amount(row.entry.record.encoder.flops_per_patch), True),
        Column("Training, s", "Seconds for all folds and runs, predictions included.", "cost", True,
               _cost("training_seconds", 1), True),
        Column("Memory, GB", "Most memory that the process held, 10^9 bytes.", "cost", True,
               _cost("peak_memory_bytes", 1e9), True),
        Column("Licence", "Of the encoder's weights.", "origin", False, lambda row: _text(licence(row))),
        Column("Submitter", "", "origin", False, lambda row: _text(row.entry.record.submitter)),
        Column("Date", "When the record was made, UTC.", "origin", False,
               lambda row: Cell(row.entry.record.created[:10], row.entry.record.created)),
    ]  # fmt: skip


_AGAINST = (
    "Difference to the first row on what both have, by predictions averaged over the runs; below, p of a paired test, "
    "corrected for the number of pairs of the task (Holm)."
)
_PATCHES = "Of extraction, reading included, on the hardware of the row."


def published_values(board: Board) -> list[Published]:
    """The published numbers of the ranking metric at the magnification of the board."""
    return [
        each
        for each in board.task.published
        if each.metric in ("", board.task.metric) and board.magnification in ("", each.magnification)
    ]


def metric_name(name: str) -> str:
    """A metric as a heading."""
    base = name.removesuffix(BY_FOLD)
    shown = _NAMES.get(base, base.replace("_", " ").replace("auroc", "AUROC"))
    return f"{shown}, mean of folds" if name.endswith(BY_FOLD) else shown


def meaning(name: str) -> str:
    """What a metric says."""
    text = _MEANINGS.get(name.removesuffix(BY_FOLD), "")
    return f"Mean over the test folds of: {text}" if name.endswith(BY_FOLD) else text


def licence(row: Standing) -> str:
    """Of the encoder's weights, or that it is not stated."""
    return row.entry.record.encoder.licence or NOT_STATED


def head_name(row: Standing) -> str:
    """The head, or that there is none."""
    head = row.entry.record.head
    return head.name if head else "none"


def number(value: float) -> str:
    """A metric: three decimals, or four significant digits where it is large."""
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"


def signed(value: float) -> str:
    """A difference with its sign; what rounds to nothing has a plus."""
    return f"{round(value, 3) + 0.0:+.3f}"


def p_text(p: float) -> str:
    """A p-value."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def csv_lines(board: Board) -> tuple[str, list[str]]:
    """The heading and a line a standing, with full precision, as a spreadsheet may open them.

    A text that a spreadsheet would take for a formula (it begins with ``=``, ``+``, ``-`` or ``@``) is led by an
    apostrophe, as OWASP advises against CSV injection.
    """
    rows = [dict(_csv_values(board, standing)) for standing in board.standings]
    names = list(dict.fromkeys(name for row in rows for name in row))
    return _csv_line(names), [_csv_line([row.get(name) for name in names]) for row in rows]


def _csv_values(board: Board, row: Standing) -> Iterable[tuple[str, Value]]:
    record, pair = row.entry.record, row.against_best
    yield from (("task", board.task.name), ("rank", row.rank), ("encoder", record.encoder.name))
    yield from (("magnification", record.magnification), ("head", record.head.name if record.head else None))
    for name in sorted(row.entry.metrics, key=lambda each: (each != board.task.metric, *_metric_order(each))):
        interval = row.entry.metrics[name]
        yield from ((name, interval.value), (f"{name}_low", interval.low), (f"{name}_high", interval.high))
    if board.pairs:
        yield "p_holm_against_first", pair.p_holm if pair and pair.p_holm == pair.p_holm else None
    for name, interval in sorted(record.extra.items()):
        yield from ((name, interval.value), (f"{name}_low", interval.low), (f"{name}_high", interval.high))
    yield from vars(record.cost).items()
    for name in ("parameters", "flops_per_patch", "dim", "licence", "weights_hash", "note"):
        yield f"encoder_{name}" if name in ("dim", "note") else name, getattr(record.encoder, name)
    yield from (("submitter", record.submitter), ("created", record.created), ("task_version", record.task.version))
    yield from (("hash", record.hash), ("file", row.entry.file))


def _csv_line(values: Sequence[Value]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow([_spreadsheet(value) for value in values])
    return text.getvalue()


def _spreadsheet(value: Value) -> Value:
    if not isinstance(value, str):
        return value
    text = printable(value)  # a tab or a line break is a mark by now
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text


def _metric_order(name: str) -> tuple[bool, int, str]:
    known = list(_NAMES)
    base = name.removesuffix(BY_FOLD)
    return name.endswith(BY_FOLD), known.index(base) if base in known else len(known), name


def _lower(name: str) -> bool:
    return name.removesuffix(BY_FOLD) in (*LOWER_IS_BETTER, "fid", "kid", "lpips")


def _head(row: Standing) -> Cell:
    return Cell(head_name(row), head_name(row))


def _text(text: str) -> Cell:
    return Cell(text, text) if text and text != NOT_STATED else Cell(NOT_STATED, None)


def _metric(name: str) -> Callable[[Standing], Cell]:
    return lambda row: _interval(row.entry.metrics.get(name))


def _extra(name: str) -> Callable[[Standing], Cell]:
    return lambda row: _interval(row.entry.record.extra.get(name))


def _interval(interval: Interval | None) -> Cell:
    if interval is None or interval.value is None:
        return Cell(NOT_STATED if interval is None else "undefined", None)
    if interval.low is None or interval.high is None:
        return Cell(number(interval.value), interval.value)
    return Cell(number(interval.value), interval.value, f"{number(interval.low)} to {number(interval.high)}")


def _has_published(board: Board) -> bool:
    return any(published_of(board.task, row.entry.record, board.task.metric) for row in board.standings)


def _published_column(board: Board) -> Column:
    def cell(row: Standing) -> Cell:
        found = published_of(board.task, row.entry.record, board.task.metric)
        if found is None:
            return Cell("none", None)
        ours = row.entry.ranking
        return Cell(number(found.value), found.value, "" if ours is None else f"ours {signed(ours - found.value)}")

    return Column("Published", "As published for this method; below it ours less that.", "", True, cell)


def _against_first(row: Standing) -> Cell:
    if row.against_best is None:
        return Cell("first" if row.rank == 1 else "not compared", None)
    found = row.against_best.tested.difference
    if found is None:
        return Cell("no test", None, row.against_best.tested.test)
    p = row.against_best.p_holm
    return Cell(signed(found.difference), found.difference, p_text(p) if p == p else "p undefined")


def _cost(name: str, unit: float) -> Callable[[Standing], Cell]:
    def cell(row: Standing) -> Cell:
        value = getattr(row.entry.record.cost, name)
        return Cell(NOT_STATED, None) if value is None else Cell(f"{value / unit:.3g}", value)

    return cell


def _amount(value: Any) -> Cell:
    """A count with the prefix of SI: 401 M, 211 G."""
    if value is None:
        return Cell(NOT_STATED, None)
    for unit, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return Cell(f"{value / unit:.3g} {prefix}", value)
    return Cell(f"{value:.3g}", value)

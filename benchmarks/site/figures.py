"""The figures of a leaderboard as places on paper: a forest plot, and the matrix of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

from benchmarks.leaderboard import Board, Standing
from benchmarks.record import BY_FOLD
from benchmarks.significance import Pair
from benchmarks.site.columns import INTERVAL, metric_name, number, p_text, published_values, signed
from benchmarks.tasks import Published

LEFT, RIGHT = 350, 800  # of the axis of a forest plot, in px of its drawing; names are left of it, numbers right
GROUPS = 975  # where the first bar of a group stands
GROUP_WIDTH = 14
LINE = 26  # height of a row

_MOST_GROUPS = 16
_NAME = 50  # letters that fit left of the axis


@dataclass(frozen=True)
class Bar:
    """The part of a group's bar that stands beside one row.

    Attributes:
        x: its place.
        top: where it begins, within the row.
        bottom: where it ends.
        member: whether the row belongs to the group, and is not just between its members.
    """

    x: float
    top: float
    bottom: float
    member: bool


@dataclass(frozen=True)
class Mark:
    """One row of a forest plot.

    Attributes:
        id: of the record; empty for a published value.
        name: what it is of, as much as fits.
        text: value and interval.
        tip: all of it, in lines.
        x: place of the value.
        low: place of the lower end; None where there is no interval.
        high: place of the upper end.
        groups: bars that reach over this row.
    """

    id: str
    name: str
    text: str
    tip: str
    x: float
    low: float | None
    high: float | None
    groups: tuple[Bar, ...] = ()


@dataclass(frozen=True)
class Forest:
    """A forest plot.

    Attributes:
        title: of the axis.
        marks: best first.
        published: values of publications, without intervals.
        ticks: place and text.
        best: place of the best value of the records.
        chance: place of guessing; None where the axis does not reach it.
        group_count: bars of groups.
        left_out: groups without a bar, for want of room.
    """

    title: str
    marks: tuple[Mark, ...]
    published: tuple[Mark, ...]
    ticks: tuple[tuple[float, str], ...]
    best: float
    chance: float | None
    group_count: int
    left_out: int

    @property
    def width(self) -> float:
        """Of the drawing."""
        return GROUPS + GROUP_WIDTH * self.group_count


@dataclass(frozen=True)
class Compared:
    """One cell of the matrix.

    Attributes:
        text: difference of the row less the column.
        kind: ``better``, ``worse``, ``alike`` or ``self``.
        tip: the test, in lines.
    """

    text: str
    kind: str
    tip: str


def forest(board: Board) -> Forest:
    """The ranking metric of every standing with its interval, published values, and groups of which no pair differs."""
    metric = board.task.metric
    found = [row.entry.metrics[metric] for row in board.standings]
    published = published_values(board)
    numbers = [x for each in found for x in (each.value, each.low, each.high) if x is not None]
    low, high = _span([*numbers, *(each.value for each in published)])
    if board.task.kind == "classification":
        high = min(high, 1.0)  # nothing is better than always right
    ticks = [tick for tick in MaxNLocator(7, steps=[1, 2, 5, 10]).tick_values(low, high) if low <= tick <= high]

    def place(value: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * (value - low) / (high - low), 2)

    shown_groups = board.groups[:_MOST_GROUPS]
    marks = []
    for index, (row, interval) in enumerate(zip(board.standings, found, strict=True)):
        value = row.entry.ranking
        text = str(interval) if abs(value) < 10 else number(value)
        low_end, high_end = (None if end is None else place(end) for end in (interval.low, interval.high))
        tip = [f"{row.rank}. {row.name}", f"{metric_name(metric)} {text}", *_origin(row)]
        marks.append(
            Mark(
                row.entry.record.hash[:12], _short(row.name), text, "\n".join(tip), place(value), low_end, high_end,
                _bars(index, shown_groups),
            )
        )  # fmt: skip
    return Forest(
        title=f"{metric_name(metric)}, {INTERVAL}",
        marks=tuple(marks),
        published=tuple(
            _published_mark(f"{each.row} · {each.magnification}", metric, each, place(each.value)) for each in published
        ),
        ticks=tuple((place(float(tick)), f"{tick:.6g}") for tick in ticks),
        best=place(board.standings[0].entry.ranking),
        chance=place(0.5) if metric.removesuffix(BY_FOLD) == "auroc" and low <= 0.5 <= high else None,
        group_count=len(shown_groups),
        left_out=len(board.groups) - len(shown_groups),
    )  # fmt: skip


def matrix(board: Board) -> list[list[Compared]]:
    """A row and a column for each compared standing, in order; empty where nothing is compared."""
    if not board.pairs:
        return []
    count = board.pairs[-1].second + 1
    cells = [[Compared("", "self", row.name) for _ in range(count)] for row in board.standings[:count]]
    for pair in board.pairs:
        cells[pair.first][pair.second] = _compared(board, pair, -1)
        cells[pair.second][pair.first] = _compared(board, pair, 1)
    return cells


def _published_mark(name: str, metric: str, published: Published, x: float) -> Mark:
    text = number(published.value)
    return Mark(
        "", _short(name), text, f"{name}\n{metric_name(metric)} {text} as published\n{published.source}", x, None, None
    )


def _bars(index: int, groups: Sequence[tuple[int, ...]]) -> tuple[Bar, ...]:
    return tuple(
        Bar(
            GROUPS + GROUP_WIDTH * (column + 0.5),
            LINE / 2 if index == members[0] else 0,
            LINE / 2 if index == members[-1] else LINE,
            index in members,
        )
        for column, members in enumerate(groups)
        if members[0] <= index <= members[-1]
    )


def _compared(board: Board, pair: Pair, sign: int) -> Compared:
    """A pair as its second less its first (sign 1), or the reverse."""
    rows = [board.standings[place] for place in (pair.second, pair.first)][::sign]
    head = f"{rows[0].name}\nless {rows[1].name}"
    found, count = pair.tested.difference, pair.tested.count
    if found is None:
        return Compared("no test", "alike", f"{head}\n{pair.tested.test}")
    of_what = "patients" if board.task.kind == "classification" else "images"
    low, high = sorted((sign * found.low, sign * found.high))
    corrected = p_text(pair.p_holm) if pair.p_holm == pair.p_holm else "p undefined"
    tip = [
        head,
        f"{signed(sign * found.difference)} [{signed(low)}, {signed(high)}], {count} {of_what}",
        f"{pair.tested.test}: {p_text(found.p) if found.p == found.p else 'p undefined'}, corrected (Holm) {corrected}",
    ]
    folds = {row.entry.record.configuration.get("splits_sha256") for row in rows}
    if len(folds) > 1:
        tip.append("On other folds, so part of the difference may be theirs")
    text = signed(sign * found.difference)
    if not pair.differs:
        return Compared(text, "alike", "\n".join(tip))
    better = (sign * found.difference > 0) == board.task.higher_is_better
    return Compared(f"{'▲' if better else '▼'} {text}", "better" if better else "worse", "\n".join(tip))


def _origin(row: Standing) -> list[str]:
    record = row.entry.record
    return [" · ".join(part for part in (record.submitter, record.created[:10]) if part)]


def _span(numbers: Sequence[float]) -> tuple[float, float]:
    """Of the axis, a little wider than its numbers."""
    low, high = min(numbers), max(numbers)
    room = 0.04 * (high - low) or 0.05 * abs(high) or 0.05
    return low - room, high + room


def _short(name: str) -> str:
    return name if len(name) <= _NAME else f"{name[: _NAME - 1]}…"

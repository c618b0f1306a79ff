"""The figures of a leaderboard as places on paper: a forest plot, and the matrix of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.ticker import MaxNLocator

from benchmarks.leaderboard import Board, Standing
from benchmarks.record import BY_FOLD, Interval
from benchmarks.significance import Pair
from benchmarks.site.columns import INTERVAL, metric_name, number, p_text, published_values, signed

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


def forest(board: Board) -> Forest | None:
    """The ranking metric of every standing with its interval, published values, and groups of which no pair differs.

    None where no standing has a rank.
    """
    metric = board.task.metric
    rows = [row for row in board.standings if row.rank is not None]
    if not rows:
        return None
    found = [row.entry.metrics[metric] for row in rows]
    published = published_values(board)
    numbers = [x for each in found for x in (each.value, each.low, each.high) if x is not None]
    axis = _axis(
        [*numbers, *(each.value for each in published)], 1.0 if board.task.kind == "classification" else np.inf
    )
    shown_groups = board.groups[:_MOST_GROUPS]
    marks = [
        replace(
            _mark(
                row.name, interval, axis, [f"{metric_name(metric)} {_text(interval)}, rank {row.rank}", *_origin(row)]
            ),
            id=row.entry.record.hash[:12],
            groups=_bars(index, shown_groups),
        )
        for index, (row, interval) in enumerate(zip(rows, found, strict=True))
    ]
    return Forest(
        title=f"{metric_name(metric)}, {INTERVAL}",
        marks=tuple(marks),
        published=tuple(
            _mark(
                f"{each.row} · {each.magnification}",
                Interval(each.value),
                axis,
                [f"{metric_name(metric)} {number(each.value)} as published", each.source],
            )
            for each in published
        ),
        ticks=tuple((axis.place(tick), f"{tick:.6g}") for tick in axis.ticks),
        best=marks[0].x,
        chance=axis.place(0.5) if metric.removesuffix(BY_FOLD) == "auroc" and axis.low <= 0.5 <= axis.high else None,
        group_count=len(shown_groups),
        left_out=len(board.groups) - len(shown_groups),
    )


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


def _mark(name: str, interval: Interval, axis: _Axis, facts: Sequence[str]) -> Mark:
    assert interval.value is not None
    low, high = (None if end is None else axis.place(end) for end in (interval.low, interval.high))
    return Mark("", _short(name), _text(interval), "\n".join([name, *facts]), axis.place(interval.value), low, high)


def _text(interval: Interval) -> str:
    assert interval.value is not None
    if interval.low is None or interval.high is None:
        return number(interval.value)
    return f"{number(interval.value)} [{number(interval.low)}, {number(interval.high)}]"


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


@dataclass(frozen=True)
class _Axis:
    """Of a forest plot, from its lowest number to its highest.

    Attributes:
        low: at `LEFT`.
        high: at `RIGHT`.
        ticks: round numbers between them.
    """

    low: float
    high: float
    ticks: tuple[float, ...]

    def place(self, value: float) -> float:
        """In px."""
        return round(LEFT + (RIGHT - LEFT) * (value - self.low) / (self.high - self.low), 2)


def _axis(numbers: Sequence[float], most: float) -> _Axis:
    """A little wider than its numbers, but not beyond the most that there can be."""
    low, high = min(numbers), max(numbers)
    room = 0.04 * (high - low) or 0.05 * abs(high) or 0.05
    low, high = low - room, min(high + room, most)
    ticks = MaxNLocator(7, steps=[1, 2, 5, 10]).tick_values(low, high)
    return _Axis(low, high, tuple(float(tick) for tick in ticks if low <= tick <= high))


def _short(name: str) -> str:
    return name if len(name) <= _NAME else f"{name[: _NAME - 1]}…"

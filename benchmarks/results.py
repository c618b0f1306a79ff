"""The tables of a benchmark: ours, published, difference; which results differ; on the screen and as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.record import Interval, Record, held_out
from benchmarks.significance import Tested, prediction_test
from benchmarks.tasks import Published, Task
from mil.compare import Difference, holm, shown_p

Rows = list[tuple[str, ...]]

_WIDEST = 400  # columns of text

_PRIMARY = "primary comparisons, which the task names beforehand"
_SCALES, _ENCODERS = "magnifications of one encoder and head", "encoders at one magnification, one head"


@dataclass(frozen=True)
class PlannedTest:
    """Two results that were meant to be compared.

    Attributes:
        family: of tests that are corrected together.
        first: the one.
        second: the other.
        tested: what was found, of second less first.
        p_holm: corrected for the number of tests of the family.
    """

    family: str
    first: Record
    second: Record
    tested: Tested
    p_holm: float


def planned_tests(task: Task, records: Sequence[Record]) -> list[PlannedTest]:
    """Paired tests between the magnifications of one encoder and head, and between encoders at one magnification.

    Pairs of magnifications that the task names as primary are a family of their own. Each family is corrected by itself
    (Holm); pairs that differ in more than one thing are not tested.
    """
    test = prediction_test(task.compared)
    by_patient = {record.hash: held_out(record).by_patient() for record in records}
    of_family: dict[str, list[tuple[Record, Record]]] = {_PRIMARY: [], _SCALES: [], _ENCODERS: []}
    for a, b in combinations(records, 2):
        if (a.encoder.name, a.head) == (b.encoder.name, b.head) and a.magnification != b.magnification:
            named = any({a.magnification, b.magnification} == set(pair) for pair in task.primary)
            of_family[_PRIMARY if named else _SCALES].append((a, b))
        elif (a.magnification, a.head) == (b.magnification, b.head) and a.encoder.name != b.encoder.name:
            of_family[_ENCODERS].append((a, b))
    found = []
    for family, pairs in of_family.items():
        tested = [test(by_patient[a.hash], by_patient[b.hash]) for a, b in pairs]
        corrected = holm([np.nan if each.difference is None else each.difference.p for each in tested])
        found += [PlannedTest(family, a, b, t, p) for (a, b), t, p in zip(pairs, tested, corrected, strict=True)]
    return found


def result_rows(task: Task, records: Sequence[Record]) -> tuple[tuple[str, ...], Rows]:
    """Headings and rows: ours with intervals beside the published value of the same method, then the other ones."""
    extras = sorted({name for record in records for name in record.extra})
    heads = any(record.head for record in records)
    first = "encoder" if task.kind == "classification" else "model"
    headings = [first, "magnification", *(["head"] if heads else []), "metric", "ours [95 %]"]
    headings += [*(["published", "difference"] if task.published else []), *extras]
    rows: Rows = []
    shown: set[int] = set()
    for record in records:
        name = [record.encoder.name, record.magnification, *([record.head.name if record.head else ""] * heads)]
        for metric in _shown_metrics(task, record):
            match = published_of(task, record, metric)
            shown |= {id(match)} if match else set()
            ours = record.metrics[metric]
            row = [*name, metric, str(ours), *(_beside(ours, match) if task.published else [])]
            rows.append((*row, *(str(record.extra[name]) if name in record.extra else "" for name in extras)))
    for each in task.published:
        if id(each) not in shown:
            row = [each.row, each.magnification, *([""] * heads), each.metric, "", f"{each.value:g}", ""]
            rows.append((*row, *([""] * len(extras))))
    return tuple(headings), rows


def comparison_rows(tests: Sequence[PlannedTest]) -> tuple[tuple[str, ...], Rows]:
    """Headings and rows of the paired tests of one family: what both have in common, and what differs."""
    headings = ("of", "second less first", "first", "second", "difference [95 %]", "p", "p (Holm)", "test", "patients")
    rows: Rows = []
    for each in tests:
        d = each.tested.difference
        values = ("", "", "", "", "") if d is None else (
            f"{d.first:.3f}", f"{d.second:.3f}", f"{d.difference:+.3f} [{d.low:+.3f}, {d.high:+.3f}]",
            shown_p(d.p), shown_p(each.p_holm),
        )  # fmt: skip
        head = each.first.head.name if each.first.head else ""
        if each.family != _ENCODERS:
            common, differing = (
                f"{each.first.encoder.name} {head}",
                (each.first.magnification, each.second.magnification),
            )
        else:
            common, differing = (
                f"{each.first.magnification} {head}",
                (each.first.encoder.name, each.second.encoder.name),
            )
        rows.append((common, f"{differing[1]} - {differing[0]}", *values, each.tested.test, str(each.tested.count)))
    return headings, rows


def print_results(task: Task, records: Sequence[Record], tests: Sequence[PlannedTest], console: Console) -> None:
    """Prints the warning of the task, its results and the tests."""
    for warning in _warnings(task, records):
        console.print(f"NOTE {escape(warning)}", style="bold yellow", highlight=False)
    tables = [_table(f"{task.name}: {task.title}", *result_rows(task, records))]
    tables += [
        _table(f"{task.compared}, paired: {family}", *comparison_rows(mine)) for family, mine in _families(tests)
    ]
    for table in tables:
        console.print()
        _wide(console, table).print(table)


def markdown(task: Task, records: Sequence[Record], tests: Sequence[PlannedTest], command: str) -> str:
    """The same as a page of Markdown, with the command that made it."""
    # The comment is for the test that runs the commands of the documentation, where these pages end.
    made = f"<!-- not run: long, or its data are elsewhere -->\n```sh\n{command}\n```"
    parts = [f"# {task.name}", f"{task.title}. Made by:", made]
    parts += [f"Note: {warning}" for warning in _warnings(task, records)]
    parts.append(_markdown_table(*result_rows(task, records)))
    parts += [
        f"{part[0].upper()}{part[1:]}. `{task.compared}` of each patient's mean prediction over the runs, paired; "
        f"p corrected within the table (Holm).\n\n{_markdown_table(*comparison_rows(mine))}"
        for part, mine in _families(tests)
    ]
    parts += [f"Source of the data: {task.source}. Licence: {task.licence}."]
    if task.published:
        parts.append("Published values: " + "; ".join(dict.fromkeys(each.source for each in task.published)) + ".")
    first = records[0]
    parts.append(
        f"Measured on {first.hardware.get('processor') or 'a processor that the system does not name'}, "
        f"{first.hardware.get('cores')} cores, GPU: {first.hardware.get('gpu') or 'none'}. "
        "Seconds and memory stand in the records."
    )
    return "\n\n".join(parts) + "\n"


def tests_table(tests: Sequence[PlannedTest]) -> pd.DataFrame:
    """The tests with all digits."""
    return pd.DataFrame(
        [
            {
                "family": each.family,
                "first": each.first.label,
                "second": each.second.label,
                "test": each.tested.test,
                "patients": each.tested.count,
                **_values(each.tested.difference),
                "p_holm": each.p_holm,
            }
            for each in tests
        ]
    )


def _shown_metrics(task: Task, record: Record) -> list[str]:
    """That which ranks and those that are published; of images all, whose distances are named by their network."""
    if task.kind != "classification":
        return list(record.metrics)
    wanted = [task.metric, *(each.metric for each in task.published)]
    return [name for name in dict.fromkeys(wanted) if name in record.metrics]


def _beside(ours: Interval, published: Published | None) -> list[str]:
    if published is None:
        return ["", ""]
    return [f"{published.value:g}", "" if ours.value is None else f"{ours.value - published.value:+.3f}"]


def published_of(task: Task, record: Record, metric: str) -> Published | None:
    """The published value of a record's method; of super-resolution the method is the head, published as inferred."""
    for each in task.published:
        same = each.encoder == record.encoder.name and each.magnification == record.magnification
        if same and each.metric == metric and (record.head is None or _published_head(task, record)):
            return each
    return None


def _published_head(task: Task, record: Record) -> bool:
    return task.kind != "superres" or (record.head is not None and record.head.name == "inferred")


def _warnings(task: Task, records: Sequence[Record]) -> Iterator[str]:
    if task.warning:
        yield task.warning
    yield from dict.fromkeys(f"{r.encoder.name}: {r.encoder.note}" for r in records if r.encoder.note)
    for record in records:
        yield from (f"{record.label}: {note}" for note in record.configuration.get("notes", ()))
        if lacking := record.configuration.get("slides_without_bag"):
            yield f"{record.label}: {lacking} labelled slides have no bag, so this is not the whole cohort."


def _values(difference: Difference | None) -> dict[str, float]:
    if difference is None:
        return {}
    names = {"first": "first_value", "second": "second_value"}
    return {names.get(name, name): value for name, value in vars(difference).items()}


def _families(tests: Sequence[PlannedTest]) -> Iterator[tuple[str, list[PlannedTest]]]:
    for family in dict.fromkeys(each.family for each in tests):
        yield family, [each for each in tests if each.family == family]


def _wide(console: Console, table: Table) -> Console:
    """A console that fits the table: a line that the terminal breaks can be read, a cell that is cut off cannot."""
    needed = console.measure(table, options=console.options.update(width=_WIDEST)).maximum
    return Console(file=console.file, width=max(console.width, needed))


def _table(title: str, headings: Sequence[str], rows: Rows) -> Table:
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    return table


def _markdown_table(headings: Sequence[str], rows: Rows) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)

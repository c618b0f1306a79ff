"""A leaderboard as one HTML page that carries all it shows, and as CSV: no request leaves it, no network is needed."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from rich.console import Console

from benchmarks.leaderboard import MOST_COMPARED, Board, Collection, Entry, boards, collect
from benchmarks.significance import ALPHA
from benchmarks.site import figures
from benchmarks.site.columns import (
    INTERVAL,
    NOT_STATED,
    Cell,
    Column,
    columns,
    csv_lines,
    head_name,
    licence,
    metric_name,
)
from benchmarks.submission import known_tasks, printable
from benchmarks.tasks import Task
from zoomfeat.files import make_folder, replacing
from zoomfeat.words import counted


@dataclass(frozen=True)
class Site:
    """What was written.

    Attributes:
        collection: the records it was made of.
        boards: the standings of each task.
        page: path of the HTML file.
        table: path of the CSV with all rows.
    """

    collection: Collection
    boards: tuple[Board, ...]
    page: Path
    table: Path


def make_site(
    results: Path, out: Path, console: Console, tasks: Sequence[str | Task] = (), *, with_records: bool = False
) -> Site:
    """Checks the records under a folder and writes their leaderboard.

    The page depends on the records alone, so that the same records give the same bytes.

    Args:
        results: folder with records at any depth.
        out: folder for ``index.html`` and ``leaderboard.csv``, made where it is missing.
        console: where progress is shown.
        tasks: tasks beside those of the package, or YAML files of such.
        with_records: copy the records to ``records/`` and link them, patients and predictions included.

    Raises:
        ConfigurationError: no JSON file in the folder.
        ZoomfeatError: the site cannot be written.
    """
    known = known_tasks(tasks)
    inside = results.resolve() in out.resolve().parents
    collection = collect(results, known, console, without=out if inside else None)
    found = boards(collection.entries, known, console)
    make_folder(out)
    if with_records:
        _copy_records(collection.entries, results, out)
    site = Site(collection, tuple(found), out / "index.html", out / "leaderboard.csv")
    with replacing(site.page) as path:
        path.write_text(_render(collection, found, with_records), encoding="utf-8")
    with replacing(site.table) as path:
        path.write_text("".join(_all_lines(found)), encoding="utf-8")
    return site


def record_file(entry: Entry) -> str:
    """The name of a record's copy: its own, told from others of the same name by the hash."""
    return f"{entry.record.hash[:12]}.json"


def _copy_records(entries: Sequence[Entry], results: Path, out: Path) -> None:
    folder = make_folder(out / "records")
    for entry in entries:
        with replacing(folder / record_file(entry)) as path:
            shutil.copyfile(results / entry.file, path)


def _all_lines(found: Sequence[Board]) -> Iterator[str]:
    """A table a task, since tasks have other metrics; an empty line between them."""
    for place, board in enumerate(found):
        heading, lines = csv_lines(board)
        yield "\n" if place else ""
        yield from (f"{line}\n" for line in (heading, *lines))


def _render(collection: Collection, found: Sequence[Board], with_records: bool) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_visible,
    )
    environment.filters["counted"] = counted
    records = [entry.record for entry in collection.entries]
    facts = _facts(found)
    versions = {(board.task.name, board.task.version) for board in found}
    return environment.get_template("page.html").render(
        collection=collection,
        tables=[_table(board, versions) for board in found],
        encoders=len({record.encoder.name for record in records}),
        newest=max((record.created[:10] for record in records), default=""),
        choices={
            name: _choices(fact[name] for fact in facts.values()) for name in ("magnification", "head", "licence")
        },
        interval=INTERVAL,
        alpha=ALPHA,
        most=MOST_COMPARED,
        with_records=with_records,
        record_file=record_file,
        figures=figures,
        data={
            "records": facts,
            "csv": {f"{board.task.version} {board.magnification}": csv_lines(board)[0] for board in found},
        },
    )


@dataclass(frozen=True)
class Table:
    """A board as the template needs it.

    Attributes:
        board: the standings.
        name: of the task; with the magnification, and the version where there are several.
        metric: the ranking one as a heading.
        columns: all but that of the encoder.
        rows: the cells of each standing.
        provenance: of each standing, groups of names and values.
        forest: the forest plot; None where nothing has a rank.
        unranked: how many standings have no rank.
        matrix: of pairs.
    """

    board: Board
    name: str
    metric: str
    columns: list[Column]
    rows: list[list[Cell]]
    provenance: list[list[tuple[str, list[tuple[str, str]]]]]
    forest: figures.Forest | None
    unranked: int
    matrix: list[list[figures.Compared]]


def _table(board: Board, versions: set[tuple[str, str]]) -> Table:
    task = board.task
    version = task.version[:6] if sum(name == task.name for name, _ in versions) > 1 else ""
    heads = columns(board)
    return Table(
        board,
        " ".join(part for part in (task.name, board.magnification, version) if part),
        metric_name(board.task.metric),
        heads,
        [[column.cell(row) for column in heads] for row in board.standings],
        [_provenance(row.entry) for row in board.standings],
        figures.forest(board),
        sum(row.rank is None for row in board.standings),
        figures.matrix(board),
    )


def _facts(found: Sequence[Board]) -> dict[str, dict[str, str]]:
    """What the page filters a record by, and its line of CSV."""
    facts = {}
    for board in found:
        for row, line in zip(board.standings, csv_lines(board)[1], strict=True):
            facts[row.entry.record.hash[:12]] = {
                "encoder": printable(row.entry.record.encoder.name),
                "magnification": printable(row.entry.record.magnification),
                "head": printable(head_name(row)),
                "licence": printable(licence(row)),
                "csv": line,
            }
    return facts


def _provenance(entry: Entry) -> list[tuple[str, list[tuple[str, str]]]]:
    record = entry.record
    encoder, head = record.encoder, record.head
    stated: list[tuple[str, Mapping[str, Any]]] = [
        (
            "Record",
            {
                "SHA-256": record.hash,
                "created": record.created,
                "submitter": record.submitter,
                "file": entry.file,
                "task version": record.task.version,
                "predictions": len(record.predictions),
            },
        ),
        (
            "Encoder",
            {"name": encoder.name, "weights": encoder.weights_hash, "dimension": encoder.dim} | encoder.settings,
        ),
        ("Head", {"name": head.name} | head.settings if head else {}),
        ("Configuration", record.configuration),
        ("Cost", vars(record.cost)),
        ("Hardware", record.hardware),
        ("Software", record.software),
    ]
    return [(title, list(_flat(values))) for title, values in stated if values]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{name}", ", ".join(map(str, value)) or "none"
        else:
            yield f"{prefix}{name}", NOT_STATED if value is None or value == "" else str(value)


def _choices(values: Iterable[str]) -> list[str]:
    return sorted(set(values), key=lambda value: (value == NOT_STATED, value.lower()))


def _visible(value: Any) -> Any:
    """Control characters of a record's texts could turn the text around them; line breaks of tooltips stay."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return "\n".join(map(printable, value.split("\n")))
    return value

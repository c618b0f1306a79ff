"""``zoomfeat prepare``: slides to a training set, with progress, a report, and resuming."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from generation.index import INDEX, Index
from generation.prepare import Tools, check_config, open_index, prepare_slide, report_of, save_index
from zoomfeat.claims import Claims
from zoomfeat.commands.extract import conclude
from zoomfeat.conf.schema import PrepareConfig
from zoomfeat.errors import ConfigurationError
from zoomfeat.files import make_folder
from zoomfeat.progress import progress_bar
from zoomfeat.report import SlideReport
from zoomfeat.run_folder import write_report
from zoomfeat.slides import SlideEntry, slides


def run(config: PrepareConfig) -> int:
    """Prepares every slide; 1 when any failed."""
    console = Console()
    check_config(config)
    entries = slides(config.slides)
    out = make_folder(Path(config.out))
    with claimed(out):
        with console.status("loading the networks"):
            tools = Tools.load(config)
        index = open_index(config, tools)
        save_index(out, index)  # the folder is of this configuration from now on
        index, reports = prepare_all(entries, config, tools, index, console)
    console.print(counts_table(index, reports))
    if index.note:
        console.print(f"NOTE {escape(index.note)}", style="bold yellow", highlight=False)
    return conclude(reports, out, console)


@contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Holds a set, whose index one run at a time writes.

    Raises:
        ConfigurationError: another run does.
    """
    claims = Claims(out / ".claims")
    with claims.hold(INDEX) as mine:
        if not mine:
            holder = claims.holder(INDEX) or "another process"
            raise ConfigurationError(
                f"being made by {holder}",
                path=out,
                cure="Wait until it has ended and start again, or choose another out=",
            )
        yield


def prepare_all(
    entries: list[SlideEntry], config: PrepareConfig, tools: Tools, index: Index, console: Console
) -> tuple[Index, list[SlideReport]]:
    """Prepares slides one after the other, with progress; index and report grow with every slide."""
    out = Path(config.out)
    reports: list[SlideReport] = []
    with progress_bar(console) as progress:
        cohort = progress.add_task("slides", total=len(entries), unit="slides")
        patches = progress.add_task("", total=None, unit="patches")
        for entry in entries:
            progress.reset(patches, description=escape(entry.slide_id), total=None)
            existing = index.slides.get(entry.slide_id)
            if existing is not None and existing.is_whole(out):
                reports.append(report_of(entry, existing, "exists"))
            else:
                report, record = prepare_slide(
                    entry, config, tools, lambda done, total: progress.update(patches, completed=done, total=total)
                )
                reports.append(report)
                if record is None:
                    progress.console.print(f"[red]failed[/] {escape(report.slide_id)}", highlight=False)
                else:
                    index = index.with_slide(record)
                    save_index(out, index)
            write_report(reports, index.configuration["magnifications"], out)
            progress.advance(cohort)
        progress.remove_task(patches)
    return index, reports


def counts_table(index: Index, reports: list[SlideReport]) -> Table:
    """The whole set as a table, a row a magnification."""
    table = Table(
        title=f"{index.configuration['ssl_encoder']}: {index.embedding_dim}-d embeddings", title_justify="left"
    )
    for heading in ("magnification", "tissue at least", "patches", "of slides"):
        table.add_column(heading, justify="left" if heading == "magnification" else "right")
    for name, count in index.counts.items():
        slides_with = sum(bool(record.counts.get(name)) for record in index.slides.values())
        table.add_row(name, f"{index.configuration['min_tissue'][name]:g}", str(count), str(slides_with))
    return table

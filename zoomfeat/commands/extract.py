"""``zoomfeat extract``: a cohort of slides, with progress, a report, and resuming."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from zoomfeat.conf.schema import ExtractConfig
from zoomfeat.configuration import check_config
from zoomfeat.domains import load_domain
from zoomfeat.encoders import PatchEncoder
from zoomfeat.encoding import Advance
from zoomfeat.engines import open_engine
from zoomfeat.engines.slide_task import ExtractSlide, load_encoders
from zoomfeat.files import make_folder
from zoomfeat.magnification import Magnification, resolution
from zoomfeat.progress import progress_bar
from zoomfeat.report import SlideReport, failure
from zoomfeat.run_folder import RunFolder
from zoomfeat.slides import SlideEntry, check_apart, slides
from zoomfeat.words import counted

_LOOK_AGAIN = 3.0  # seconds between two looks at slides that other runs work on


def run(config: ExtractConfig) -> int:
    """Extracts every slide; 1 when any failed."""
    console = Console()
    check_config(config)
    entries = slides(config.slides)
    check_apart(entries, config.out)
    make_folder(Path(config.out))
    with console.status("") as status:
        encoders = load_encoders(config, lambda name: status.update(f"loading {name}"))
    reports = extract_all(entries, config, encoders, console)
    console.print(summary_table(reports, config, encoders))
    for encoder in encoders:
        if encoder.note:
            about = f"{encoder.name}: " if config.encoders else ""
            console.print(f"NOTE {escape(about + encoder.note)}", style="bold yellow", highlight=False)
    return conclude(reports, Path(config.out), console)


def extract_all(
    entries: Sequence[SlideEntry], config: ExtractConfig, encoders: Sequence[PatchEncoder], console: Console
) -> list[SlideReport]:
    """Extracts slides on the engine of the configuration, with progress; the report file grows meanwhile.

    Slides that other runs work on come last: they are waited for, and done here if their run ends without them.
    """
    folder = RunFolder(config, encoders, entries)
    remote = config.engine.name != "local"
    try:
        with progress_bar(console) as progress, open_engine(config.engine, folder.out) as engine:
            cohort = progress.add_task("slides", total=len(entries), unit="slides")
            patches = progress.add_task("", total=None, unit="patches")

            def watch(entry: SlideEntry) -> Advance:
                progress.reset(patches, description=escape(entry.slide_id), total=None)
                return lambda done, total: progress.update(patches, completed=done, total=total)

            task = ExtractSlide(config, encoders, watch)
            left = [replace(entry, path=entry.path.absolute()) for entry in entries] if remote else list(entries)
            said = False
            while left:
                claimed = []
                for entry, result in engine.map(task, left):
                    made = result
                    if isinstance(made, Exception):
                        made = [failure(entry, made, "engine", encoder=encoder.name) for encoder in encoders]
                    folder.add(made)
                    for report in made:
                        if report.status == "failed":
                            what = f"{_subject(report, several=bool(config.encoders))} ({report.stage})"
                            progress.console.print(f"[red]failed[/] {escape(what)}", highlight=False)
                    if any(report.status == "claimed" for report in made):
                        claimed.append(entry)
                    else:
                        progress.advance(cohort)
                left = claimed
                if left:
                    if not said:
                        holders = ", ".join(sorted({r.error for r in folder.reports if r.status == "claimed"}))
                        progress.console.print(f"waiting for slides of another run: {escape(holders)}", highlight=False)
                        said = True
                    time.sleep(_LOOK_AGAIN)
            progress.remove_task(patches)
    finally:
        folder.write()  # of a run that is interrupted, too
    folder.finish()
    return folder.reports


def _subject(report: SlideReport, several: bool) -> str:
    return f"{report.slide_id}, {report.encoder}" if several else report.slide_id


def _steps(config: ExtractConfig) -> tuple[Magnification, ...]:
    return load_domain(config.domain).steps(config.magnifications)


def summary_table(reports: list[SlideReport], config: ExtractConfig, encoders: Sequence[PatchEncoder]) -> Table:
    """The run as a table, a row a bag."""
    names = [str(m) for m in _steps(config)]
    title = "; ".join(
        f"{encoder.name}: {encoder.dim} features" + (f", {encoder.dim * len(names)} fused" if len(names) > 1 else "")
        for encoder in encoders
    )
    table = Table(title=title, title_justify="left")
    left = ["slide", "encoder", "status"] if config.encoders else ["slide", "status"]
    for heading in (*left, *names, "pixel", "seconds"):
        table.add_column(heading, justify="left" if heading in left else "right")
    for report in reports:
        mpp = "" if report.mpp is None else " x ".join(resolution(value) for value in dict.fromkeys(report.mpp))
        counts = (str(report.patches.get(name, "")) for name in names)
        subject = [report.slide_id, report.encoder] if config.encoders else [report.slide_id]
        table.add_row(*map(escape, subject), report.status, *counts, mpp, f"{sum(report.seconds.values()):.1f}")
    return table


def conclude(reports: list[SlideReport], out: Path, console: Console) -> int:
    """Prints the failed slides with their cures and the counts of all; the exit code, 1 where any failed."""
    failed = [report for report in reports if report.status == "failed"]
    count = len({report.slide_id for report in reports})
    several = count < len(reports)
    if failed:
        table = Table(title="failed", title_justify="left", title_style="red")
        for heading in ("slide", "stage", "error", "cure"):
            table.add_column(heading, overflow="fold")
        for report in failed:
            subject = _subject(report, several)
            table.add_row(*(escape(text) for text in (subject, report.stage, report.error, report.cure)))
        console.print(table)
    done = sum(report.status == "done" for report in reports)
    exists = sum(report.status == "exists" for report in reports)
    kept = sum(report.status == "kept" for report in reports)
    subjects = counted(count, "slide")
    if several:
        subjects = f"{counted(len(reports), 'bag')} of {subjects}"
    console.print(
        f"{subjects}: {done} done, {exists} existed, {f'{kept} kept, ' if kept else ''}{len(failed)} failed. "
        f"Report: {out / 'report.csv'}",
        soft_wrap=True,
        highlight=False,
    )
    return 1 if failed else 0

"""``zoomfeat extract``: a cohort of slides, with progress, a report, and resuming."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import yaml
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from zoomfeat.conf.schema import ExtractConfig
from zoomfeat.domains import load_domain
from zoomfeat.encoders import PatchEncoder, load_encoder
from zoomfeat.extraction import SlideReport, check_config, extract_slide, report_row
from zoomfeat.files import make_folder, replacing
from zoomfeat.magnification import Magnification, resolution
from zoomfeat.progress import progress_bar
from zoomfeat.slides import SlideEntry, slides


def run(config: ExtractConfig) -> int:
    """Extracts every slide; 1 when any failed."""
    console = Console()
    check_config(config)
    entries = slides(config.slides)
    out = make_folder(Path(config.out))
    options = {key: value for key, value in asdict(config.encoder).items() if key != "name"}
    with console.status(f"loading {config.encoder.name}"):
        encoder = load_encoder(config.encoder.name, _steps(config)[0], config.device, **options)
    _write_config(config, out)
    reports = extract_all(entries, config, encoder, console)
    console.print(summary_table(reports, config, encoder))
    if encoder.note:
        console.print(f"NOTE {escape(encoder.note)}", style="bold yellow", highlight=False)
    return conclude(reports, out, console)


def extract_all(
    entries: list[SlideEntry], config: ExtractConfig, encoder: PatchEncoder, console: Console
) -> list[SlideReport]:
    """Extracts slides one after the other, with progress; the report file grows with every slide."""
    reports: list[SlideReport] = []
    with progress_bar(console) as progress:
        cohort = progress.add_task("slides", total=len(entries), unit="slides")
        patches = progress.add_task("", total=None, unit="patches")
        for entry in entries:
            progress.reset(patches, description=escape(entry.slide_id), total=None)
            report = extract_slide(
                entry, config, encoder, lambda done, total: progress.update(patches, completed=done, total=total)
            )
            reports.append(report)
            if report.status == "failed":
                progress.console.print(f"[red]failed[/] {escape(report.slide_id)} ({report.stage})", highlight=False)
            write_report(reports, [str(m) for m in _steps(config)], Path(config.out))
            progress.advance(cohort)
        progress.remove_task(patches)
    return reports


def _steps(config: ExtractConfig) -> tuple[Magnification, ...]:
    return load_domain(config.domain).steps(config.magnifications)


def _write_config(config: ExtractConfig, out: Path) -> None:
    with replacing(out / "config.yaml") as path:
        path.write_text(yaml.safe_dump(asdict(config), sort_keys=False), encoding="utf-8")


def write_report(reports: list[SlideReport], magnifications: Sequence[str], out: Path) -> None:
    """Writes ``report.csv``, and the traceback of the last slide where it has one."""
    with replacing(out / "report.csv") as path:
        pd.DataFrame([report_row(report, magnifications) for report in reports]).to_csv(path, index=False)
    last = reports[-1]
    if last.details:
        with replacing(make_folder(out / "failures") / f"{last.slide_id}.txt") as path:
            path.write_text(last.details, encoding="utf-8")


def summary_table(reports: list[SlideReport], config: ExtractConfig, encoder: PatchEncoder) -> Table:
    """The run as a table, a row a slide."""
    names = [str(m) for m in _steps(config)]
    width = (
        f"{encoder.dim} features" if len(names) == 1 else f"{encoder.dim} features, {encoder.dim * len(names)} fused"
    )
    table = Table(title=f"{encoder.name}: {width}", title_justify="left")
    for heading in ("slide", "status", *names, "pixel", "seconds"):
        table.add_column(heading, justify="left" if heading in ("slide", "status") else "right")
    for report in reports:
        mpp = "" if report.mpp is None else " x ".join(resolution(value) for value in dict.fromkeys(report.mpp))
        counts = (str(report.patches.get(name, "")) for name in names)
        table.add_row(escape(report.slide_id), report.status, *counts, mpp, f"{sum(report.seconds.values()):.1f}")
    return table


def conclude(reports: list[SlideReport], out: Path, console: Console) -> int:
    """Prints the failed slides with their cures and the counts of all; the exit code, 1 where any failed."""
    failed = [report for report in reports if report.status == "failed"]
    if failed:
        table = Table(title="failed", title_justify="left", title_style="red")
        for heading in ("slide", "stage", "error", "cure"):
            table.add_column(heading, overflow="fold")
        for report in failed:
            table.add_row(*(escape(text) for text in (report.slide_id, report.stage, report.error, report.cure)))
        console.print(table)
    done = sum(report.status == "done" for report in reports)
    exists = sum(report.status == "exists" for report in reports)
    slides_word = "slide" if len(reports) == 1 else "slides"
    console.print(
        f"{len(reports)} {slides_word}: {done} done, {exists} existed, {len(failed)} failed. "
        f"Report: {out / 'report.csv'}",
        soft_wrap=True,
        highlight=False,
    )
    return 1 if failed else 0

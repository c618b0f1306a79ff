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

from zoomfeat.conf.schema import EncoderConfig, ExtractConfig
from zoomfeat.configuration import check_config
from zoomfeat.domains import load_domain
from zoomfeat.encoders import PatchEncoder, encoder_options, load_encoder
from zoomfeat.extraction import extract_bags
from zoomfeat.files import make_folder, replacing
from zoomfeat.magnification import Magnification, resolution
from zoomfeat.progress import progress_bar
from zoomfeat.report import SlideReport, report_row
from zoomfeat.slides import SlideEntry, slides


def run(config: ExtractConfig) -> int:
    """Extracts every slide; 1 when any failed."""
    console = Console()
    check_config(config)
    choices = chosen_encoders(config)
    entries = slides(config.slides)
    out = make_folder(Path(config.out))
    encoders = []
    for choice in choices:
        options = {key: value for key, value in asdict(choice).items() if key != "name"}
        with console.status(f"loading {choice.name}"):
            encoders.append(load_encoder(choice.name, _steps(config)[0], config.device, **options))
    _write_config(config, out)
    reports = extract_all(entries, config, encoders, console)
    console.print(summary_table(reports, config, encoders))
    for encoder in encoders:
        if encoder.note:
            about = f"{encoder.name}: " if config.encoders else ""
            console.print(f"NOTE {escape(about + encoder.note)}", style="bold yellow", highlight=False)
    return conclude(reports, out, console)


def chosen_encoders(config: ExtractConfig) -> list[EncoderConfig]:
    """The encoders that ``encoder=`` or ``encoders=`` names, each with its options.

    Raises:
        ConfigurationError: an unknown encoder or option.
    """
    if config.encoder is not None:
        return [config.encoder]
    return [encoder_options(name, **config.encoder_options.get(name, {})) for name in config.encoders]


def extract_all(
    entries: list[SlideEntry], config: ExtractConfig, encoders: Sequence[PatchEncoder], console: Console
) -> list[SlideReport]:
    """Extracts slides one after the other, with progress; the report file grows with every slide."""
    reports: list[SlideReport] = []
    with progress_bar(console) as progress:
        cohort = progress.add_task("slides", total=len(entries), unit="slides")
        patches = progress.add_task("", total=None, unit="patches")
        for entry in entries:
            progress.reset(patches, description=escape(entry.slide_id), total=None)
            made = extract_bags(
                entry, config, encoders, lambda done, total: progress.update(patches, completed=done, total=total)
            )
            reports += made
            for report in made:
                if report.status == "failed":
                    what = f"{_subject(report, several=bool(config.encoders))} ({report.stage})"
                    progress.console.print(f"[red]failed[/] {escape(what)}", highlight=False)
            write_report(reports, [str(m) for m in _steps(config)], Path(config.out))
            progress.advance(cohort)
        progress.remove_task(patches)
    return reports


def _subject(report: SlideReport, several: bool) -> str:
    return f"{report.slide_id}, {report.encoder}" if several else report.slide_id


def _steps(config: ExtractConfig) -> tuple[Magnification, ...]:
    return load_domain(config.domain).steps(config.magnifications)


def _write_config(config: ExtractConfig, out: Path) -> None:
    with replacing(out / "config.yaml") as path:
        path.write_text(yaml.safe_dump(asdict(config), sort_keys=False), encoding="utf-8")


def write_report(reports: list[SlideReport], magnifications: Sequence[str], out: Path) -> None:
    """Writes ``report.csv``, and the tracebacks of the last slide where it has any."""
    with replacing(out / "report.csv") as path:
        pd.DataFrame([report_row(report, magnifications) for report in reports]).to_csv(path, index=False)
    last = reports[-1].slide_id
    if details := dict.fromkeys(report.details for report in reports if report.slide_id == last and report.details):
        with replacing(make_folder(out / "failures") / f"{last}.txt") as path:
            path.write_text("\n".join(details), encoding="utf-8")


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
    subjects = f"{count} slide" if count == 1 else f"{count} slides"
    if several:
        subjects = f"{len(reports)} bags of {subjects}"
    console.print(
        f"{subjects}: {done} done, {exists} existed, {len(failed)} failed. Report: {out / 'report.csv'}",
        soft_wrap=True,
        highlight=False,
    )
    return 1 if failed else 0

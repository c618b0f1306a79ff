"""What a run leaves beside its bags: report.csv, run.json and summary.md, each whole at any moment."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from zoomfeat.claims import EXPIRES, sweep, this_process
from zoomfeat.conf.schema import ExtractConfig
from zoomfeat.configuration import bag_configuration, bag_path, configuration_hash
from zoomfeat.domains import load_domain
from zoomfeat.encoders import PatchEncoder
from zoomfeat.errors import ZoomfeatError
from zoomfeat.extraction import package_versions
from zoomfeat.files import make_folder, replacing, unguarded
from zoomfeat.report import SlideReport, report_row
from zoomfeat.slides import SlideEntry

REPORT, RUN, SUMMARY = "report.csv", "run.json", "summary.md"

_PERIOD = 2.0  # seconds between two writes while slides finish
_SHOWN = 100  # rows of failed slides in the summary


class RunFolder:
    """The reports of a run, written as they come.

    Args:
        config: of the run.
        encoders: of the run.
        entries: its slides; reports are kept in their order.
    """

    def __init__(self, config: ExtractConfig, encoders: Sequence[PatchEncoder], entries: Sequence[SlideEntry]) -> None:
        self.out = make_folder(Path(config.out))
        self._config = config
        self._magnifications = [str(m) for m in load_domain(config.domain).steps(config.magnifications)]
        self._places = {entry.slide_id: place for place, entry in enumerate(entries)}
        self._reports: dict[tuple[str, str], SlideReport] = {}
        self._start = time.monotonic()
        self._written = 0.0
        self._run: dict[str, Any] = {
            "started": now(),
            "ended": None,
            "process": asdict(this_process()),
            "slides": len(entries),
            "bags": len(entries) * len(encoders),
            "configuration": asdict(config),
            "configuration_hashes": {e.name: configuration_hash(bag_configuration(config, e)) for e in encoders},
            "versions": package_versions(),
        }
        for folder in [self.out, self.out / "previews", *(self.out / encoder.name for encoder in encoders)]:
            sweep(folder, unchanged_for=EXPIRES)
        with replacing(self.out / "config.yaml") as path:
            path.write_text(yaml.safe_dump(asdict(config), sort_keys=False), encoding="utf-8")
        self.write()

    @property
    def reports(self) -> list[SlideReport]:
        """The last report of each bag, in the order of the slides."""
        return sorted(self._reports.values(), key=lambda report: self._places[report.slide_id])

    def add(self, reports: Sequence[SlideReport]) -> None:
        """Takes the reports of a slide, in place of earlier ones of it."""
        self._reports |= {(report.slide_id, report.encoder): report for report in reports}
        if time.monotonic() - self._written > _PERIOD:
            self.write()

    def finish(self) -> None:
        """Writes everything, the summary too."""
        self._run["ended"] = now()
        self.write()
        with replacing(self.out / SUMMARY) as path:
            path.write_text(summary(self._run, self.reports), encoding="utf-8")

    def write(self) -> None:
        """Writes ``report.csv`` and ``run.json`` as things stand."""
        rows = [report_row(report, self._magnifications) for report in self.reports]
        write_rows(rows + self._other_rows(), self.out)
        self._run["seconds"] = round(time.monotonic() - self._start, 1)
        self._run["counts"] = dict(Counter(report.status for report in self._reports.values()))
        with replacing(self.out / RUN) as path:
            path.write_text(json.dumps(self._run, indent=1), encoding="utf-8")
        self._written = time.monotonic()

    def _other_rows(self) -> list[dict[str, Any]]:
        """Rows of bags that are not this run's business: of other slides, by runs before it or beside it."""
        rows = []
        for row in read_report(self.out):
            slide_id, encoder = unguarded(row.get("slide_id", "")), row.get("encoder", "")
            if slide_id and slide_id not in self._places and bag_path(self._config, encoder, slide_id).exists():
                rows.append(row)
        return rows


def write_rows(rows: Sequence[dict[str, Any]], out: Path) -> None:
    """Writes the rows of :func:`zoomfeat.report.report_row` as ``report.csv``."""
    with replacing(out / REPORT) as path:
        pd.DataFrame(rows).to_csv(path, index=False, errors="backslashreplace")


def write_report(reports: list[SlideReport], magnifications: Sequence[str], out: Path) -> None:
    """Writes ``report.csv``, and the tracebacks of the last slide where it has any."""
    write_rows([report_row(report, magnifications) for report in reports], out)
    last = reports[-1].slide_id
    if details := dict.fromkeys(report.details for report in reports if report.slide_id == last and report.details):
        with replacing(make_folder(out / "logs") / f"{last}.log") as path:
            path.write_text("\n".join(details), encoding="utf-8")


def read_report(out: Path) -> list[dict[str, str]]:
    """The rows of ``report.csv`` as text; none where it is missing or is no table."""
    try:
        table = pd.read_csv(out / REPORT, dtype=str, keep_default_na=False)
    except (OSError, ValueError):  # pandas' own errors of parsing are ValueErrors
        return []
    return [{str(name): cell for name, cell in row.items()} for row in table.to_dict("records")]


def read_run(out: Path) -> dict[str, Any]:
    """What ``run.json`` says.

    Raises:
        ZoomfeatError: it is missing or damaged.
    """
    path = out / RUN
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        if run.keys() >= {"started", "ended", "process", "bags", "counts", "seconds"}:
            return run
        problem = "not a record of a run"
    except (OSError, ValueError, AttributeError) as error:
        problem = "no such file" if isinstance(error, FileNotFoundError) else f"not readable ({error})"
    raise ZoomfeatError(problem, cure="Give the out= folder of `zoomfeat extract`", path=path)


def summary(run: dict[str, Any], reports: Sequence[SlideReport]) -> str:
    """A run for people to read, as Markdown."""
    counts = Counter(report.status for report in reports)
    failed = [report for report in reports if report.status == "failed"]
    done = [report for report in reports if report.status == "done"]
    seconds: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    patches: Counter[str] = Counter()
    for report in done:
        seconds.update(report.seconds)
        dropped.update(report.dropped)
        patches.update(report.patches)
    lines = [
        f"# {run['slides']} slides, {counts['failed']} bags failed" if failed else f"# {run['slides']} slides",
        "",
        f"From {run['started']} to {run['ended']} ({run['seconds']} s) on {run['process']['host']}.",
        "",
        *_table(["bags", "count"], sorted(counts.items())),
        *_table(["encoder", "hash of the configuration"], run["configuration_hashes"].items()),
        *_table(
            ["patches of this run", "count"], [*patches.items(), *((f"left out: {k}", n) for k, n in dropped.items())]
        ),
        *_table(["stage", "seconds"], [(stage, round(value, 1)) for stage, value in seconds.items()]),
    ]
    if failed:
        rows = [(report.slide_id, report.stage, report.error, report.cure) for report in failed[:_SHOWN]]
        lines += ["## Failed", "", *_table(["slide", "stage", "error", "cure"], rows)]
        lines += [f"And {len(failed) - _SHOWN} more in report.csv.", ""] if len(failed) > _SHOWN else []
    slowest = sorted(done, key=lambda report: -sum(report.seconds.values()))[:5]
    if slowest:
        took = [(report.slide_id, round(sum(report.seconds.values()), 1)) for report in slowest]
        lines += ["## Slowest", "", *_table(["slide", "seconds"], took)]
    return "\n".join(lines)


def _table(heading: Sequence[str], rows: Any) -> list[str]:
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    if not cells:
        return []
    lines = [heading, ["---"] * len(heading), *cells]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


def now() -> str:
    """UTC to the second, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")

"""What became of a slide: a row of the report of a run."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from zoomfeat.errors import ZoomfeatError
from zoomfeat.files import guarded
from zoomfeat.slides import SlideEntry


@dataclass(frozen=True)
class SlideReport:
    """What became of one slide: a row of the report.

    Attributes:
        slide_id: the slide.
        path: its file.
        status: ``done``, ``exists`` (an earlier run made the same bag), ``kept`` (another one, see ``on_mismatch``),
            ``claimed`` (another process is at it) or ``failed``.
        patches: magnification name to patches kept.
        dropped: reason to finest patches left out.
        mpp: um/px of level 0 along x and y.
        mpp_source: where that is from.
        seconds: stage to seconds.
        stage: where it failed.
        error: what was found, one line.
        cure: what helps.
        details: the traceback of an error that zoomfeat does not know.
        encoder: whose bag it is about.
    """

    slide_id: str
    path: Path
    status: str
    patches: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    mpp: tuple[float, float] | None = None
    mpp_source: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    stage: str = ""
    error: str = ""
    cure: str = ""
    details: str = ""
    encoder: str = ""


def failure(
    entry: SlideEntry, error: Exception, stage: str = "", seconds: dict[str, float] | None = None, encoder: str = ""
) -> SlideReport:
    """The report of a slide that an error ended; of one that zoomfeat does not know it keeps type, text and traceback.

    Args:
        entry: the slide.
        error: what ended it, being handled.
        stage: where.
        seconds: stage to seconds until then.
        encoder: whose bag it is about.
    """
    report = SlideReport(entry.slide_id, entry.path, "failed", seconds=seconds or {}, stage=stage, encoder=encoder)
    if isinstance(error, ZoomfeatError):
        return replace(report, error=error.problem, cure=error.cure)
    return replace(
        report,
        error=f"{type(error).__name__}: {error}".replace("\n", " "),
        cure="Unexpected: see the traceback in logs/, and report it",
        details="".join(traceback.format_exception(error)),
    )


def report_row(report: SlideReport, magnifications: Sequence[str]) -> dict[str, Any]:
    """A report as a flat row of a table; the magnifications fix its columns."""
    row = asdict(report) | {"path": str(report.path)}
    patches, dropped, seconds, mpp = (row.pop(name) for name in ("patches", "dropped", "seconds", "mpp"))
    row.pop("details")
    if not row["encoder"]:
        row.pop("encoder")
    row["mpp_x"], row["mpp_y"] = mpp or ("", "")
    row |= {f"patches_{name}": patches.get(name, "") for name in magnifications}
    row["dropped"] = "; ".join(f"{reason} {count}" for reason, count in dropped.items())
    row["seconds"] = round(sum(seconds.values()), 2)
    row |= {name: guarded(value) for name, value in row.items() if isinstance(value, str)}
    return row | {f"seconds_{stage}": value for stage, value in seconds.items()}


def log_text(report: SlideReport) -> str:
    """A report as a line of a log, the traceback below where there is one."""
    about = [report.encoder, report.status, *(f"{name} {count}" for name, count in report.patches.items())]
    about += [f"at {report.stage}: {report.error}. {report.cure}"] if report.status == "failed" else []
    about += [f"{stage} {seconds} s" for stage, seconds in report.seconds.items()]
    return "; ".join(filter(None, about)) + (f"\n{report.details}" if report.details else "")

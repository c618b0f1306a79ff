"""What every part of the benchmark leaves: a record in ``results/<part>.json`` and a page for docs/performance.md."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.runner import hardware
from zoomfeat.files import make_folder, replacing

PACKAGES = ("torch", "diffusers", "openslide-python", "simplejpeg", "opencv-python-headless", "numpy", "h5py")


def conditions() -> dict[str, Any]:
    """The machine, how busy it is with other work, and versions."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return hardware() | {
        "cores_used": len(allowed) or os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
    }


def described(machine: dict[str, Any]) -> str:
    """The conditions of a run in a line."""
    busy = "shared with other work" if machine["load_average"] > machine["cores_used"] + 0.5 else "otherwise idle"
    cores = f"{machine['cores_used']} of {machine['cores']} cores"
    return f"{cores}, {machine['processor']}, {busy} (load {machine['load_average']:g} at the start)"


def clock(machine: dict[str, Any]) -> tuple[Callable[[], float], str]:
    """What to time with, and its name: the wall clock, or on a machine that does other work CPU time of all threads."""
    if machine["load_average"] > machine["cores_used"] + 0.5:
        return time.process_time, "CPU time of all threads"
    return time.perf_counter, "wall time"


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def show(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints the same table."""
    table = Table(title=title)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def save(folder: Path, part: str, record: dict[str, Any], page: str) -> None:
    """Writes the record of a part and its page.

    Args:
        folder: of results.
        part: its name.
        record: JSON-able; ``ratios`` in it maps names to numbers.
        page: Markdown.
    """
    make_folder(folder)
    for suffix, text in ((".json", json.dumps(record, indent=1) + "\n"), (".md", page)):
        with replacing(folder / f"{part}{suffix}") as temporary:
            temporary.write_text(text, encoding="utf-8")

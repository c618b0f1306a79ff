"""All parts of the benchmark, one after the other, each in a process of its own: ``python -m benchmarks.speed``.

Leaves ``results/bench.json``: the machine, every part's record, and in ``ratios`` the figures that are tracked, each a
ratio to an alternative that was measured in the same run. Then fills the tables of docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.generation.tables import filled
from benchmarks.speed import node, report
from zoomfeat.files import make_folder, replacing
from zoomfeat.progress import progress_bar

RESULTS = Path(__file__).parent / "results"
GUIDE = Path(__file__).parents[2] / "docs" / "performance.md"
PARTS = ("reading", "network", "extraction", "memory", "bags", "mil", "sampling", "decoding", "preparation")
NOT_QUICK = ("decoding", "preparation")
"""Parts that a quick run leaves out, and shows as the last full run left them."""
TRACKED = (
    "reading_vs_per_patch",
    "reading_dct_vs_per_patch",
    "reading_vs_jpeg_limit",
    "extraction_vs_plain",
    "mil_vs_torchmil",
    "guidance_vs_backprop",
)
"""Ratios that a complete run has."""


def run_part(part: str, *, quick: bool) -> float:
    """Runs one part.

    Returns:
        Seconds that it took.

    Raises:
        SystemExit: it failed; its output is shown.
    """
    start = time.perf_counter()
    words = [sys.executable, "-m", f"benchmarks.speed.{part}", *(["--quick"] if quick else [])]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{part} failed:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - start


def gather(folder: Path, conditions: dict[str, Any], seconds: dict[str, float], *, quick: bool) -> dict[str, Any]:
    """The record of a run from those of its parts; one of an earlier run counts where this one left a part out."""
    paths = {part: folder / f"{part}.json" for part in PARTS}
    parts = {part: json.loads(path.read_text(encoding="utf-8")) for part, path in paths.items() if path.is_file()}
    return {
        "machine": conditions,
        "quick": quick,
        "seconds": {part: round(took, 1) for part, took in seconds.items()},
        "ratios": {name: round(ratio, 4) for record in parts.values() for name, ratio in record["ratios"].items()},
        "parts": parts,
    }


def summary(record: dict[str, Any]) -> str:
    """The page with the run's conditions and its tracked ratios."""
    rows = [(f"`{name}`", f"{ratio:.3g}") for name, ratio in record["ratios"].items()]
    took = sum(record["seconds"].values()) / 60
    size = "quick run" if record["quick"] else "full run"
    lead = f"{report.described(record['machine'])}; {size}, {took:.1f} min; parts: {', '.join(record['seconds'])}.\n\n"
    return lead + report.markdown(("ratio", "value"), rows)


def main() -> None:
    """Runs the parts and writes what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller slides and bags, fewer repeats, fewer parts")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="only these")
    parser.add_argument("--no-guide", action="store_true", help="leave docs/performance.md as it is")
    options = parser.parse_args()
    parts = options.parts or [part for part in PARTS if not (options.quick and part in NOT_QUICK)]
    console = Console()
    conditions = report.conditions()
    seconds = {}
    with progress_bar(console) as progress:
        task = progress.add_task("parts", total=len(parts), unit="parts")
        for part in parts:
            progress.update(task, description=part)
            seconds[part] = run_part(part, quick=options.quick)
            progress.advance(task)
    record = gather(RESULTS, conditions, seconds, quick=options.quick)
    report.save(make_folder(RESULTS), "bench", record, summary(record))
    node.write(record, RESULTS)
    report.show("ratios", ("ratio", "value"), [(name, f"{ratio:.3g}") for name, ratio in record["ratios"].items()])
    if missing := [name for name in TRACKED if name not in record["ratios"]]:
        console.print(f"not measured: {', '.join(missing)}")
    if not options.no_guide and GUIDE.is_file():
        text = filled(GUIDE.read_text(encoding="utf-8"), RESULTS)
        with replacing(GUIDE) as temporary:
            temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()

"""The most memory that extraction holds, by the size of the slide: ``python -m benchmarks.speed.memory``.

Synthetic 40x slides, 20x and 5x, two reading threads, an encoder that holds next to nothing (``color-stats``); each
slide in a process of its own. What may grow with a slide are the picture that tissue is sought in, coordinates and
features, and the list of its tiles. Also shown is what a process holds before it has opened a slide.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before PyTorch is imported

from benchmarks.runner import peak_memory_bytes
from benchmarks.speed import report
from benchmarks.speed.textured_slide import usual_texture, write_textured_slide
from zoomfeat.conf.compose import compose_config
from zoomfeat.encoders import load_encoder
from zoomfeat.extraction import extract_slide
from zoomfeat.slides import SlideEntry

RESULTS = Path(__file__).parent / "results"
SIDES = (20_000, 40_000, 100_000)
RADIUS = 0.3
"""Of the tissue, in sides of the slide."""
QUICK_RADIUS = 6000
"""Level-0 px of tissue around the middle of each slide of a quick run: the slides are large, their tissue is not."""
ENCODER = "color-stats"


def extract(path: Path, out: Path, decode: str) -> dict[str, int]:
    """Extracts a slide in this process: its 20x patches, and the peak of memory before and after, in bytes."""
    words = [f"slides={path}", f"out={out}", f"encoder={ENCODER}", f"decode={decode}", "workers=2", "device=cpu"]
    config = compose_config("extract", words)
    encoder = load_encoder(ENCODER, device="cpu")
    before = peak_memory_bytes()
    extracted = extract_slide(SlideEntry("slide", path), config, encoder)
    if extracted.status != "done":
        raise SystemExit(extracted.error)
    return {"patches": extracted.patches["20x"], "before": before, "peak": peak_memory_bytes()}


def measure(path: Path, out: Path, decode: str) -> dict[str, int]:
    """The same in a process of its own."""
    words = [sys.executable, "-m", "benchmarks.speed.memory", "--slide", str(path), "--out", str(out)]
    done = subprocess.run([*words, "--decode", decode], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{path.name} failed:\n{done.stderr}")
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Prints the table and writes results/memory.json and memory.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="no more tissue in a larger slide")
    parser.add_argument("--sides", type=int, nargs="+", default=SIDES, help="of the slides in px")
    parser.add_argument("--slide", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--decode", default="exact", help="as the key of `zoomfeat extract`")
    options = parser.parse_args()
    if options.slide is not None:
        print(json.dumps(extract(options.slide, options.out, options.decode)))
        return
    if options.quick:
        options.sides = options.sides[::2]
    machine = report.conditions()
    texture, _ = usual_texture()
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for side in options.sides:
            path = Path(folder) / "slide.svs"
            radius = min(RADIUS, QUICK_RADIUS / side) if options.quick else RADIUS
            write_textured_slide(path, texture, side, 0.25, radius=radius)
            runs.append({"side": side} | measure(path, Path(folder) / str(side), options.decode))
            path.unlink()
    headings = ("px a side", "20x patches", "peak MB", "of it above the start")
    rows = [
        (
            f"{run['side']:,}",
            f"{run['patches']:,}",
            f"{run['peak'] / 1e6:.0f}",
            f"{run['peak'] / 1e6 - run['before'] / 1e6:.0f}",
        )
        for run in runs
    ]
    report.show("memory", headings, rows)
    ratios = {f"memory_{run['side']}_vs_{runs[0]['side']}": run["peak"] / runs[0]["peak"] for run in runs[1:]}
    closing = "".join(
        f"\nA slide of {run['side']:,} px a side takes {run['peak'] / runs[0]['peak']:.2f} times the memory of the "
        f"first.\n"
        for run in runs[1:]
    )
    lead = f"`{ENCODER}`, 20x + 5x, `decode={options.decode}`, two reading threads; {report.described(machine)}.\n\n"
    record = {"machine": machine, "decode": options.decode, "runs": runs, "ratios": ratios}
    report.save(RESULTS, "memory", record, lead + report.markdown(headings, rows) + closing)


if __name__ == "__main__":
    main()

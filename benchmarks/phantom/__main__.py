"""Draws a cohort: ``python -m benchmarks.phantom OUT``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.phantom.cohort import write_cohort
from zoomfeat.errors import ZoomfeatError


def main() -> int:
    """Writes ``OUT/slides``, ``OUT/truth``, ``OUT/labels.csv`` and ``OUT/README.txt``."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.phantom", description="Draws a synthetic cohort.")
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--slides", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes; the slides are the same whatever it is")
    options = parser.parse_args()
    try:
        write_cohort(options.out, options.slides, options.seed, workers=options.workers)
    except ZoomfeatError as error:
        print(f"zoomfeat: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How features should lie in a bag: ``python -m benchmarks.speed.bags``.

One matrix of features (20,000 x 960 float32) in several layouts of HDF5, written once and read as training does: whole,
and 2,000 random rows of it. Rows are read through h5py, which selects them in the file, and by zoomfeat's own way, that
reads the matrix whole and picks them in memory. Files are in the system's cache; what counts is CPU time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from benchmarks.speed import report
from mil.stored import read_matrix

RESULTS = Path(__file__).parent / "results"
LAYOUTS: dict[str, dict[str, Any]] = {
    "contiguous (bags)": {},
    "chunks of 1 row": {"chunks": (1, None)},
    "chunks of 64 rows": {"chunks": (64, None)},
    "chunks of 1024 rows": {"chunks": (1024, None)},
    "h5py's own chunks": {"chunks": True},
    "h5py's own chunks, gzip": {"chunks": True, "compression": "gzip"},
}


def seconds(call: Callable[[], object], repeats: int) -> float:
    """Median CPU time."""
    found = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        found.append(time.process_time() - start)
    return statistics.median(found)


def measure(folder: Path, rows: int, dim: int, sampled: int, repeats: int) -> dict[str, dict[str, float]]:
    """MB a second of writing and whole reads, rows a second of sub-sampled ones, and MB of the file, by layout."""
    rng = np.random.default_rng(0)
    features = rng.standard_normal((rows, dim), dtype=np.float32)
    chosen = np.sort(rng.choice(rows, sampled, replace=False))
    size = features.nbytes / 1e6
    found = {}
    for layout, options in LAYOUTS.items():
        path = folder / "bag.h5"
        chunks = options.get("chunks")
        if isinstance(chunks, tuple):
            options = options | {"chunks": (min(chunks[0], rows), dim)}

        written = seconds(partial(_write, path, features, options), 1 if "compression" in options else repeats)
        found[layout] = {
            "file_mb": path.stat().st_size / 1e6,
            "write_mb_s": size / written,
            "read_mb_s": size / seconds(partial(read_matrix, path), repeats),
            "rows_s_by_h5py": sampled / seconds(partial(_rows_by_h5py, path, chosen), repeats),
            "rows_s": sampled / seconds(partial(_rows_read_whole, path, chosen), repeats),
        }
    return found


def _write(path: Path, features: NDArray[np.float32], options: dict[str, Any]) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=features, **options)


def _rows_by_h5py(path: Path, rows: NDArray[np.integer]) -> NDArray[np.float32]:
    with h5py.File(path) as file:
        found: NDArray[np.float32] = file["features"][rows]
        return found


def _rows_read_whole(path: Path, rows: NDArray[np.integer]) -> NDArray[np.float32]:
    return read_matrix(path)[rows]


def main() -> None:
    """Prints the table and writes results/bags.json and bags.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three repeats")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=960)
    parser.add_argument("--sampled", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    if options.quick:
        options.repeats = 3
    machine = report.conditions()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), options.rows, options.dim, options.sampled, options.repeats)
    headings = (
        "layout",
        "file MB",
        "write MB / CPU-s",
        "read MB / CPU-s",
        "rows / CPU-s by h5py",
        "rows / CPU-s, read whole",
    )
    rows = [(layout, *(f"{value:,.0f}" for value in numbers.values())) for layout, numbers in found.items()]
    report.show("bags", headings, rows)
    ours, *others = found.values()
    ratios = {
        "bag_read_vs_best_chunked": ours["read_mb_s"] / max(other["read_mb_s"] for other in others),
        "bag_rows_vs_best_other_way": ours["rows_s"]
        / max(ours["rows_s_by_h5py"], *(max(other["rows_s_by_h5py"], other["rows_s"]) for other in others)),
    }
    lead = (
        f"{options.rows:,} x {options.dim} float32, {options.sampled:,} of its rows, median of {options.repeats}; "
        f"{report.described(machine)}.\n\n"
    )
    record = {"machine": machine, "layouts": found, "ratios": ratios}
    report.save(RESULTS, "bags", record, lead + report.markdown(headings, rows))


if __name__ == "__main__":
    main()

"""MUSK1, ELEPHANT and FOX as in Ilse, Tomczak and Welling (2018): ``python -m benchmarks.mil.classic [DATA]``.

Ten stratified folds, five runs, one configuration for all sets: the defaults of ``MILClassifier``. DATA is a folder of
``musk1.npz`` and the like with ``X`` (rows, features), ``bag`` (bag of each row, from 0) and ``y`` (label of each bag).
The defaults were chosen on splits of other seeds (100 and up); see docs/mil-heads.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from benchmarks.mil.table import BagSet, Protocol, fold_accuracy, mean_auroc, print_table, rows_by_head, run_cells
from zoomfeat.errors import ConfigurationError

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "mil"
RESULTS = Path(__file__).parent / "results"
SETS = ("musk1", "elephant", "fox")
HEADS = ("abmil", "abmil-gated")

PUBLISHED = {
    ("musk1", "abmil"): (0.892, 0.040),
    ("elephant", "abmil"): (0.868, 0.022),
    ("fox", "abmil"): (0.615, 0.043),
    ("musk1", "abmil-gated"): (0.900, 0.050),
    ("elephant", "abmil-gated"): (0.857, 0.027),
    ("fox", "abmil-gated"): (0.603, 0.029),
}
"""Mean accuracy and standard error of the publication's table of classic sets, by set and head."""


def read_set(path: Path) -> BagSet:
    """The bags of one file.

    Raises:
        ConfigurationError: no such file, or one without the three arrays.
    """
    if not path.is_file():
        raise ConfigurationError("no such file", cure="Give the folder of the sets", path=path)
    with np.load(path, allow_pickle=False) as file:
        if missing := {"X", "bag", "y"} - set(file.files):
            raise ConfigurationError(f"no array {', '.join(sorted(missing))}", cure="Expected X, bag, y", path=path)
        rows, bag, labels = file["X"].astype(np.float32), file["bag"], file["y"].astype(np.int64)
    return BagSet(path.stem, [rows[bag == number] for number in range(len(labels))], labels)


def main() -> None:
    """Prints the table; results/classic.json holds every held-out prediction."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="?", default=DATA, help="folder of the sets")
    parser.add_argument("--sets", nargs="+", default=list(SETS), help="files of that folder, without their suffix")
    parser.add_argument("--heads", nargs="+", default=list(HEADS), help="names of heads")
    parser.add_argument("--quick", action="store_true", help="two folds, one run, two epochs: to see that it runs")
    options = parser.parse_args()
    protocol = Protocol(2, 1, {"epochs": 2}) if options.quick else Protocol(10, 5, {})
    sets = [read_set(options.data / f"{name}.npz") for name in options.sets]
    name = "classic-quick.json" if options.quick else "classic.json"
    rows = []
    for bags, head, cells in rows_by_head(run_cells(sets, options.heads, protocol, RESULTS / name)):
        accuracy, error = fold_accuracy(cells)
        published = "{:.3f} ± {:.3f}".format(*PUBLISHED[bags, head]) if (bags, head) in PUBLISHED else ""
        rows.append((bags, head, f"{accuracy:.3f} ± {error:.3f}", published, str(mean_auroc(cells))))
    title = f"{protocol.folds} folds, {protocol.runs} runs"
    print_table(title, ("set", "head", "accuracy ± SE", "published", "AUROC [95 %]"), rows)


if __name__ == "__main__":
    main()

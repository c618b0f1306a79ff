"""Training on bags on disk against torchmil's own dataset and Trainer: ``python -m benchmarks.speed.mil``.

The same HDF5 files (5,000 x 960 float32), the same network (linear layer, ReLU, dropout, attention pooling, linear
layer), AdamW, one bag a step, the same number of epochs. Each measurement is a process of its own, so that its peak
memory is its own; the ways take turns. Timed from the first look at a file to the trained network: for zoomfeat that
includes the pass that checks every value and takes the moments for standardisation.

torchmil is shown twice. As it comes, its dataset also builds the graph of each bag from the coordinates, and its
Trainer ends each epoch with a second pass over the training bags. At the least, it is asked for features and labels
alone and given a single bag to validate on. Either way its dataset keeps every bag that it has read.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before PyTorch is imported

import h5py
import numpy as np
import torch

from benchmarks.speed import report
from zoomfeat.files import make_folder

RESULTS = Path(__file__).parent / "results"
WAYS = ("zoomfeat", "zoomfeat, mixed precision", "torchmil, least", "torchmil, as it comes")
WIDTH, ATTENTION_WIDTH, DROPOUT = 128, 64, 0.25


def make_bags(folder: Path, count: int, instances: int, dim: int) -> None:
    """Bags of normal noise in TRIDENT's layout, and their labels."""
    rng = np.random.default_rng(0)
    features = make_folder(folder / "features_noise")
    coords = np.stack(np.unravel_index(np.arange(instances), (100, -(-instances // 100))), axis=1) * 512
    patches = make_folder(folder / "patches")
    for number in range(count):
        with h5py.File(features / f"slide{number:03d}.h5", "w") as file:
            file["features"] = rng.standard_normal((instances, dim), dtype=np.float32)
            file["coords"] = coords
        with h5py.File(patches / f"slide{number:03d}_patches.h5", "w") as file:
            file["coords"] = coords
    rows = [f"slide{number:03d}.h5,{number % 2}" for number in range(count)]
    (folder / "labels.csv").write_text("\n".join(["slide,label", *rows]) + "\n", encoding="utf-8")


def train_zoomfeat(folder: Path, count: int, epochs: int, *, precision: str) -> None:
    """Trains with ``MILClassifier``."""
    from mil import MILClassifier

    paths = sorted((folder / "features_noise").glob("*.h5"))[:count]
    labels = np.arange(len(paths)) % 2
    options = {"attention_width": ATTENTION_WIDTH}
    MILClassifier(
        head="abmil",
        width=WIDTH,
        dropout=DROPOUT,
        head_options=options,
        epochs=epochs,
        batch_size=1,
        precision=precision,
        device="cpu",
    ).fit(paths, labels)


def train_torchmil(folder: Path, count: int, epochs: int, dim: int, *, least: bool) -> None:
    """Trains with torchmil's ``TridentWSIDataset`` and ``Trainer``."""
    from torch import nn
    from torch.utils.data import DataLoader
    from torchmil.data import collate_fn
    from torchmil.datasets import TridentWSIDataset
    from torchmil.models import ABMIL
    from torchmil.utils.trainer import Trainer

    dataset = TridentWSIDataset(
        base_path=f"{folder}/",
        labels_path=str(folder / "labels.csv"),
        feature_extractor="noise",
        wsi_names=[f"slide{number:03d}" for number in range(count)],
        bag_keys=["X", "Y"] if least else ["X", "Y", "adj", "coords"],
        load_at_init=False,
        wsi_name_col="slide",
        wsi_label_col="label",
    )
    torch.manual_seed(0)
    embed = nn.Sequential(nn.Linear(dim, WIDTH), nn.ReLU(), nn.Dropout(DROPOUT))
    model = ABMIL(in_shape=(dim,), att_dim=ATTENTION_WIDTH, feat_ext=embed)
    trainer = Trainer(
        model, torch.optim.AdamW(model.parameters(), lr=1e-3), device="cpu", disable_pbar=True, verbose=False
    )

    def collate(batch: list) -> object:
        padded = collate_fn(batch)
        padded["Y"] = padded["Y"].reshape(len(batch))  # one label a bag; those of a CSV come as arrays of one
        return padded

    def loader(bags: torch.utils.data.Dataset, *, shuffle: bool) -> DataLoader:
        return DataLoader(bags, batch_size=1, shuffle=shuffle, collate_fn=collate)

    validation = loader(torch.utils.data.Subset(dataset, [0]), shuffle=False) if least else None
    trainer.train(epochs, loader(dataset, shuffle=True), validation)


def measure(way: str, folder: Path, count: int, epochs: int, dim: int, *, alone: bool = True) -> dict[str, float]:
    """Runs one way, in a process of its own unless it shall only be seen to run.

    Returns:
        ``seconds``, ``bags_per_second`` and ``peak_mib``, the most memory the process held.
    """
    if not alone:
        found = run_way(way, folder, count, epochs, dim)
        return found | {"bags_per_second": count * epochs / found["seconds"]}
    words = [sys.executable, "-m", "benchmarks.speed.mil", "--worker", way, "--folder", str(folder)]
    words += ["--bags", str(count), "--epochs", str(epochs), "--dim", str(dim)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{way} failed:\n{done.stderr}")
    found = json.loads(done.stdout.splitlines()[-1])
    return found | {"bags_per_second": count * epochs / found["seconds"]}


def run_way(way: str, folder: Path, count: int, epochs: int, dim: int) -> dict[str, float]:
    """Trains once: ``seconds``, and ``peak_mib`` of this process with ``before_mib``, what its imports took."""
    import torchmil.datasets  # noqa: F401 (what importing costs is not the question)

    import mil.estimators  # noqa: F401

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.perf_counter()
    if way.startswith("zoomfeat"):
        train_zoomfeat(folder, count, epochs, precision="mixed" if "mixed" in way else "float32")
    else:
        train_torchmil(folder, count, epochs, dim, least="least" in way)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "peak_mib": peak, "before_mib": before}


def main() -> None:
    """Prints the table and writes results/mil.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer bags")
    parser.add_argument("--tiny", action="store_true", help="a few small bags, to see that the benchmark runs")
    parser.add_argument("--bags", type=int, default=16)
    parser.add_argument("--instances", type=int, default=5000)
    parser.add_argument("--dim", type=int, default=960)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--worker", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(run_way(options.worker, options.folder, options.bags, options.epochs, options.dim)))
        return
    if options.quick:
        options.bags, options.repeats = 8, 1
    if options.tiny:
        options.bags, options.instances, options.dim, options.epochs, options.repeats = 8, 50, 16, 1, 1
    machine = report.conditions()
    sizes = (options.bags,) if options.quick else (options.bags // 4, options.bags)
    runs: dict[tuple[str, int], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_bags(folder, options.bags, options.instances, options.dim)
        for _ in range(options.repeats):
            for count in sizes:
                for way in WAYS:
                    found = measure(way, folder, count, options.epochs, options.dim, alone=not options.tiny)
                    runs.setdefault((way, count), []).append(found)
    typical = {key: sorted(found, key=lambda run: run["seconds"])[len(found) // 2] for key, found in runs.items()}
    headings = ("way", "bags", "seconds", "bags/s", "peak MiB")
    rows = [
        (way, str(count), f"{found['seconds']:.1f}", f"{found['bags_per_second']:.1f}", f"{found['peak_mib']:.0f}")
        for (way, count), found in typical.items()
    ]
    seconds = {way: typical[way, options.bags]["seconds"] for way in WAYS}
    ratios = {
        "mil_vs_torchmil": seconds["torchmil, least"] / seconds["zoomfeat"],
        "mil_vs_torchmil_as_it_comes": seconds["torchmil, as it comes"] / seconds["zoomfeat"],
        "mil_mixed_precision_vs_torchmil": seconds["torchmil, least"] / seconds["zoomfeat, mixed precision"],
    }
    growth = (
        {way: typical[way, options.bags]["peak_mib"] - typical[way, sizes[0]]["peak_mib"] for way in WAYS}
        if len(sizes) > 1
        else {}
    )
    report.show("MIL training", headings, rows)
    lead = (
        f"Bags of {options.instances:,} x {options.dim} float32, {options.epochs} epochs, attention pooling, "
        f"{torch.get_num_threads()} threads, each run in a process of its own, median of {options.repeats}; "
        f"{report.described(machine)}.\n\n"
    )
    more = ", ".join(f"{way} {mib:.0f}" for way, mib in growth.items())
    closing = f"\nMiB more for {options.bags} than for {sizes[0]} bags: {more}.\n" if growth else ""
    record = {
        "machine": machine,
        "size": "tiny" if options.tiny else "quick" if options.quick else "full",
        "threads": torch.get_num_threads(),
        "epochs": options.epochs,
        "runs": [{"way": way, "bags": count, **found} for (way, count), found in typical.items()],
        "ratios": ratios,
        "memory_growth_mib": growth,
    }
    report.save(RESULTS, "mil", record, lead + report.markdown(headings, rows) + closing)


if __name__ == "__main__":
    main()

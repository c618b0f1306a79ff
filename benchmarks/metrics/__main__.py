"""Metrics of two folders of images: ``python -m benchmarks.metrics MADE REAL --metrics fid kid``."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.metrics.compare import compare_pairs, compare_sets
from benchmarks.metrics.crops import RandomCrops
from benchmarks.metrics.extractors import extractor_names
from benchmarks.metrics.frechet import FewImagesWarning
from benchmarks.metrics.images import image_paths
from benchmarks.metrics.registry import Measurement, find_pair_metric, pair_metric_names, set_metric_names
from zoomfeat.errors import ZoomfeatError


def main() -> int:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("made", type=Path, help="folder of generated images")
    parser.add_argument("real", type=Path, help="folder of what they should be like, or, one by one, be")
    parser.add_argument(
        "--metrics", nargs="+", default=["kid"], help=f"of sets: {set_metric_names()}; of pairs: {pair_metric_names()}"
    )
    parser.add_argument("--extractor", default="efficientnet-lite0", help=f"of set metrics: {extractor_names()}")
    parser.add_argument("--weights", help="of the extractor, a local file")
    parser.add_argument("--crops", type=int, default=0, help="random crops of each image instead of whole images")
    parser.add_argument("--mpp", type=float, help="um/px of the crops; default: the files' own pixels")
    parser.add_argument("--encoder", default="efficientnet-lite0", help="of embedding-similarity")
    parser.add_argument("--perceptual-weights", help="of lpips or st-lpips, a local file")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    try:
        show(measure(arguments), Console())
    except ZoomfeatError as error:
        Console(stderr=True).print(f"[red]error[/] {error}")
        return 1
    return 0


def measure(arguments: argparse.Namespace) -> list[Measurement]:
    """Set metrics, then pair metrics."""
    pairs = [name for name in arguments.metrics if name in pair_metric_names()]
    sets = [name for name in arguments.metrics if name not in pairs]
    found = []
    if sets:
        made, real = (
            RandomCrops(image_paths(folder), arguments.crops, mpp=arguments.mpp) if arguments.crops else folder
            for folder in (arguments.made, arguments.real)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FewImagesWarning)  # the table says it
            found += compare_sets(
                made, real, sets, arguments.extractor, weights=arguments.weights, device=arguments.device
            )
    settings = {
        "embedding-similarity": {"encoder": arguments.encoder, "device": arguments.device},
        "lpips": {"weights": arguments.perceptual_weights or "alexnet-owt-7be5be79.pth"},
        "st-lpips": {"weights": arguments.perceptual_weights or "alex_shift_tolerant.pth"},
    }
    if pairs:
        built = [find_pair_metric(name)(**settings.get(name, {})) for name in pairs]
        found += compare_pairs(arguments.made, arguments.real, built)
    return found


def show(found: list[Measurement], console: Console) -> None:
    """A row a measurement."""
    table = Table()
    for column in ("metric", "value", "95 % interval", "better", "images", "interval over", "note"):
        table.add_column(column, overflow="fold")
    for one in found:
        interval = "" if one.low != one.low else f"{one.low:.4g} to {one.high:.4g}"
        better = "higher" if one.higher_is_better else "lower"
        images = f"{one.made:,} / {one.real:,}"
        table.add_row(one.name, f"{one.value:.4g}", interval, better, images, one.resampled, one.note)
    console.print(table)


if __name__ == "__main__":
    raise SystemExit(main())

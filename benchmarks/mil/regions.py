"""Two lung cancers from 19 regions of ten patches: ``python -m benchmarks.mil.regions [DATA]``.

Each region of interest of the TCGA LUAD/LUSC patches is one bag (10 LUAD, 9 LUSC), its patches embedded by
EfficientNet-Lite0, which was trained on ImageNet and never on tissue. Two protocols:

- five stratified folds over regions, two runs. The names say no slide, but the original tile size is one for all
  regions of a class and split (521, 512, 507 and 515 px), as if each came from one slide; then regions of a slide are
  on both sides of a fold, and what is measured is how well slides are told apart.
- the set's own split held out either way: train on 13 regions and test on 6, and the reverse, two runs.

Nineteen bags say little: read the intervals.
"""

from __future__ import annotations

import argparse
import io
import re
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.mil.table import BagSet, Protocol, mean_auroc, print_table, rows_by_head, run_cells
from zoomfeat.encoders import load_encoder
from zoomfeat.errors import ConfigurationError
from zoomfeat.magnification import PATCH_SIZE

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "histology_patches" / "tcga_luad_lusc_190.zip"
RESULTS = Path(__file__).parent / "results"
HEADS = ("mean", "max", "abmil", "clam-sb", "transmil", "dsmil")

_NAME = re.compile(r".*/(?P<split>train|test)/(?P<label>LUAD|LUSC)/(?P<region>\d+)_(?P<tile>\d+)_(?P<size>\d+)\.jpg")


def read_regions(path: Path) -> tuple[BagSet, BagSet]:
    """The bags, one a class, split and region, with the embedding of each of its patches: for folds, and by split.

    Raises:
        ConfigurationError: no such archive, or no patch of the expected names in it.
    """
    if not path.is_file():
        raise ConfigurationError("no such file", cure="Give tcga_luad_lusc_190.zip", path=path)
    regions: dict[tuple[str, str, str], list[np.ndarray]] = {}
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if found := _NAME.fullmatch(name):
                picture = Image.open(io.BytesIO(archive.read(name))).convert("RGB")
                pixels = np.asarray(picture.resize((PATCH_SIZE, PATCH_SIZE), Image.Resampling.BICUBIC))
                regions.setdefault((found["label"], found["split"], found["region"]), []).append(pixels)
    if not regions:
        raise ConfigurationError("no patch named split/class/region_tile_size.jpg", cure="Give the archive", path=path)
    encoder = load_encoder("efficientnet-lite0", magnification="20x", device="cpu")
    bags = [encoder(np.stack(images)) for images in regions.values()]
    labels = np.array([int(label == "LUSC") for label, _, _ in regions])
    splits = np.array([split for _, split, _ in regions])
    return BagSet("luad-lusc", bags, labels), BagSet("luad-lusc, other split", bags, labels, splits)


def main() -> None:
    """Prints the table; results/regions.json holds every held-out prediction."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", default=DATA, help="the archive")
    parser.add_argument("--heads", nargs="+", default=list(HEADS), help="names of heads")
    parser.add_argument("--quick", action="store_true", help="two folds, one run, two epochs: to see that it runs")
    options = parser.parse_args()
    protocol = Protocol(2, 1, {"epochs": 2}) if options.quick else Protocol(5, 2, {})
    sets = read_regions(options.data)
    path = RESULTS / ("regions-quick.json" if options.quick else "regions.json")
    cells = run_cells(sets, options.heads, protocol, path)
    areas = {(name, head): str(mean_auroc(mine)) for name, head, mine in rows_by_head(cells)}
    rows = [(head, *(areas[bags.name, head] for bags in sets)) for head in options.heads]
    title = f"{len(sets[0].labels)} regions, AUROC [95 %] of {protocol.runs} runs"
    print_table(title, ("head", f"{protocol.folds} folds over regions", "the other split"), rows)


if __name__ == "__main__":
    main()

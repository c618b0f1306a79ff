"""What decoding JPEG tiles at half size does to pixels and features: ``python -m benchmarks.speed.decoding``.

The scan is taken for a 40x one, so that its 20x patches have twice as many slide pixels a side and ``decode=dct``
halves them within the JPEG. Its own tiles are read, and the same pixels coded again as YCbCr with the chroma of every
second column, as most scanners do. Compared with ``decode=exact``, patch by patch.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before PyTorch is imported

import numpy as np

from benchmarks.speed import report
from benchmarks.speed.textured_slide import SCAN, SVS, write_textured_slide
from zoomfeat.encoders import PatchEncoder, load_encoder
from zoomfeat.magnification import Magnification, parse
from zoomfeat.slides import Slide, find_tissue, make_grid, read_region, regions

RESULTS = Path(__file__).parent / "results"
ENCODERS = ("zoomldm-tiny", "efficientnet-lite0")
MAGNIFICATIONS = ("20x", "5x")
MIN_TISSUE = 0.25  # the scan is small: more patches are worth some glass in them


@dataclass(frozen=True)
class Effect:
    """The effect on the features of one encoder at one magnification.

    Attributes:
        tiles: of the slide, how they are coded.
        mpp: um/px that the slide is taken for.
        magnification: of the patches.
        encoder: the features.
        patches: compared.
        pixels: mean absolute difference in grey levels of 255.
        cosine: mean over the patches of the cosine between both features.
        worst: the least of them.
        others: mean cosine between the exact features of different patches, as a yardstick; None for a single one.
    """

    tiles: str
    mpp: float
    magnification: str
    encoder: str
    patches: int
    pixels: float
    cosine: float
    worst: float
    others: float | None


def patches(path: Path, mpp: float, decode: str) -> dict[Magnification, np.ndarray]:
    """The patches of a slide, uint8 (N, 256, 256, 3) a magnification, which are the same however they are decoded."""
    with Slide.open(path, mpp) as slide:  # tissue is found in the same pixels
        grid = make_grid(slide, find_tissue(slide), parse(list(MAGNIFICATIONS)), MIN_TISSUE)
    found = [np.empty((len(scale.coords), 256, 256, 3), np.uint8) for scale in grid.scales]
    with Slide.open(path, mpp, decode=decode) as slide:
        for region in regions(grid):
            for scale, rows, pixels in read_region(slide, region):
                found[scale][rows] = pixels
    return {scale.magnification: pixels for scale, pixels in zip(grid.scales, found, strict=True)}


def effects(path: Path, tiles: str, mpp: float, encoders: list[PatchEncoder]) -> list[Effect]:
    """Reads and encodes a slide in both ways."""
    exact, shrunk = (patches(path, mpp, decode) for decode in ("exact", "dct"))
    rows = []
    for magnification in exact:
        difference = np.abs(exact[magnification].astype(np.int16) - shrunk[magnification]).mean()
        for encoder in encoders:
            encode = encoder.at(magnification)
            a, b = (_unit(encode(each[magnification])) for each in (exact, shrunk))
            same = (a * b).sum(axis=1)
            between = (a @ a.T)[~np.eye(len(a), dtype=bool)]
            rows.append(
                Effect(
                    tiles,
                    mpp,
                    str(magnification),
                    encoder.name,
                    len(a),
                    float(difference),
                    float(same.mean()),
                    float(same.min()),
                    float(between.mean()) if len(a) > 1 else None,
                )
            )
    return rows


def _unit(features: np.ndarray) -> np.ndarray:
    wide = features.astype(np.float64)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


def main() -> None:
    """Prints the table and writes results/decoding.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scan", type=Path, nargs="?", help="a small H&E slide of JPEG tiles", default=SCAN)
    parser.add_argument("--quick", action="store_true", help="one um/px, one encoder")
    parser.add_argument("--encoders", nargs="+", default=ENCODERS)
    options = parser.parse_args()
    if not options.scan.is_file():
        report.save(RESULTS, "decoding", {"rows": [], "ratios": {}}, "Not measured: there was no scan.\n")
        return
    machine = report.conditions()
    encoders = [load_encoder(name, device="cpu") for name in options.encoders[: 1 if options.quick else None]]
    with Slide.open(options.scan) as slide:
        size = (slide.width, slide.height)
        (pixels,) = slide.read(0, 0, *size, [size])
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        again = Path(folder) / "again.svs"
        write_textured_slide(again, pixels, min(size) // SVS.tile * SVS.tile, 0.25, SVS, levels=1)
        for mpp in (0.25,) if options.quick else (0.25, 0.2527):
            rows += effects(options.scan, "as scanned", mpp, encoders)
            rows += effects(again, SVS.name, mpp, encoders)
    headings = ("tiles", "um/px", "at", "encoder", "patches", "grey levels off", "cosine", "worst", "between patches")
    cells = [
        tuple("" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value) for value in line)
        for line in (asdict(row).values() for row in rows)
    ]
    report.show("decode=dct against decode=exact", headings, cells)
    ratios = {
        f"dct_least_cosine: {encoder.name}": min(r.worst for r in rows if r.encoder == encoder.name)
        for encoder in encoders
    }
    record = {"machine": machine, "rows": [asdict(row) for row in rows], "ratios": ratios}
    report.save(RESULTS, "decoding", record, report.markdown(headings, cells))


if __name__ == "__main__":
    main()

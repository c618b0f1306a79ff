"""The cohort of `zoomldm-tiny`: ``python -m benchmarks.tiny.cohort DATA OUT``.

Makes ``OUT/pictures`` (variants of real tissue, PNG with a manifest) and ``OUT/collages`` (synthetic slides), which
`zoomfeat prepare` turns into training sets; files that exist are kept. Names that begin with ``held-out-`` are
validation's: other real pictures, and collages whose textures come from those.
"""

from __future__ import annotations

import argparse
import zlib
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from rich.console import Console

from benchmarks.tiny.collage import write_collage
from benchmarks.tiny.images import HELD_OUT_PREFIX, is_held_out, real_images, variants
from zoomfeat.files import make_folder, replacing
from zoomfeat.progress import progress_bar


def main() -> None:
    """Makes the cohort."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of the test data")
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--variants", type=int, default=12, help="of each real picture")
    parser.add_argument("--collages", type=int, default=24, help="synthetic slides to train on")
    parser.add_argument("--held-out-collages", type=int, default=6, help="synthetic slides for validation")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    _write_pictures(arguments.data, make_folder(arguments.out / "pictures"), arguments.variants)
    folder = make_folder(arguments.out / "collages")
    jobs = [(HELD_OUT_PREFIX, n) for n in range(arguments.held_out_collages)] + [
        ("", n) for n in range(arguments.collages)
    ]
    with progress_bar(Console()) as progress, ProcessPoolExecutor(arguments.workers) as pool:
        task = progress.add_task("collages", total=len(jobs), unit="slides")
        for _ in pool.map(_write_collage, [arguments.data] * len(jobs), [folder] * len(jobs), *zip(*jobs, strict=True)):
            progress.advance(task)


def _write_pictures(data: Path, folder: Path, count: int) -> None:
    rows = []
    for name, image in real_images(data):
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        prefix = HELD_OUT_PREFIX if is_held_out(name) else ""
        for number, variant in enumerate(variants(image, count, rng)):
            path = folder / f"{prefix}{name}-{number:02d}.png"
            with replacing(path) as temporary:
                Image.fromarray(variant).save(temporary, format="PNG")
            rows.append({"path": path.name, "slide_id": path.stem, "mpp": 0.5})
    with replacing(folder / "manifest.csv") as temporary:
        pd.DataFrame(rows).to_csv(temporary, index=False)


def _write_collage(data: Path, folder: Path, split: str, number: int) -> None:
    path = folder / f"{split or 'train-'}collage-{number:03d}.tiff"
    if not path.exists():
        textures = [image for name, image in real_images(data) if is_held_out(name) == bool(split)]
        write_collage(path, textures, np.random.default_rng([8 * bool(split), number]))


if __name__ == "__main__":
    main()

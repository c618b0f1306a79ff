"""Small sets of images that tests compare: drawn ones, and real tissue."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zoomfeat.slides.synthetic import draw_tissue


def drawn(count: int, seed: int) -> NDArray[np.uint8]:
    """Synthetic tissue, ``(count, 256, 256, 3)``."""
    side = int(np.ceil(count**0.5))
    image = draw_tissue((256 * side, 256 * side), 0.5, seed)
    patches = image.reshape(side, 256, side, 256, 3).swapaxes(1, 2).reshape(-1, 256, 256, 3)
    return np.ascontiguousarray(patches[:count])


def real_tissue(shared: Path, name: str, count: int) -> NDArray[np.uint8]:
    """Patches of TCGA lung tumours of one class, ``(count, 256, 256, 3)``."""
    with zipfile.ZipFile(shared / "histology_patches" / "tcga_luad_lusc_190.zip") as archive:
        names = sorted(each for each in archive.namelist() if f"/{name}/" in each and each.endswith((".png", ".jpg")))
        images = [Image.open(io.BytesIO(archive.read(each))).convert("RGB") for each in names[:count]]
    return np.stack([np.asarray(image) for image in images])


def write(folder: Path, images: NDArray[np.uint8]) -> Path:
    """As PNG files."""
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:04d}.png")
    return folder

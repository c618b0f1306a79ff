"""Tissue to measure on, none of which `zoomldm-tiny` was trained on: its pixels, and the embeddings of its patches.

Two kinds, both from the folder of test data: the pictures that training held out (up to 512 px), and the test patches
of LUAD and LUSC (256 px; for evaluation only). Neither states its um/px: 0.5 is assumed.
"""

from __future__ import annotations

import io
import itertools
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from benchmarks.tiny.images import is_held_out, real_images
from generation.pipelines.models import MODELS, load_pipeline
from generation.pipelines.patch import ZoomLDMPipeline
from zoomfeat.magnification import BRCA, PATCH_SIZE, Magnification

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
"""The folder of test data."""


@dataclass(frozen=True)
class TissueRegion:
    """A region of tissue.

    Attributes:
        name: of the picture.
        image: at 20x, ``(256 * rows, 256 * columns, 3)`` uint8.
        embeddings: of its 20x patches, ``(C, rows, columns)``.
    """

    name: str
    image: NDArray[np.uint8]
    embeddings: Tensor


def load(model: str) -> ZoomLDMPipeline:
    """A model on the CPU, quiet; one from a path is taken to be conditioned as `zoomldm-tiny` is."""
    pipe = load_pipeline(model, device="cpu")
    if pipe.config.ssl_encoder is None:
        pipe.register_to_config(ssl_encoder=MODELS["zoomldm-tiny"].ssl_encoder)
    pipe.set_progress_bar_config(disable=True)
    for module in (pipe.vae, pipe.unet, pipe.summarizer):
        module.requires_grad_(False)  # else backpropagation would also keep what only the weights' gradients need
    return pipe


def whole_pictures(pipe: ZoomLDMPipeline, data: Path, count: int) -> list[TissueRegion]:
    """Held-out pictures, cut to whole patches, and after them test patches, LUAD and LUSC in turn."""
    cut = ((name, _cut(image)) for name, image in itertools.chain(held_out_pictures(data), test_patches(data)))
    return _embedded(pipe, itertools.islice(cut, count), count)


def regions_at(pipe: ZoomLDMPipeline, data: Path, step: Magnification, count: int) -> list[TissueRegion]:
    """Regions that are one patch of a magnification each.

    At 20x they are test patches. Coarser ones are held-out pictures, smaller ones continued by their mirror image.
    """
    if step.grid == 1:
        found: Iterator[tuple[str, NDArray[np.uint8]]] = test_patches(data)
    else:
        side = PATCH_SIZE * step.grid
        found = ((name, _mirrored(image, side)) for name, image in held_out_pictures(data))
    return _embedded(pipe, itertools.islice(found, count), count)


def held_out_pictures(data: Path) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Names and pixels of the pictures that training held out."""
    return ((name, image) for name, image in real_images(data) if is_held_out(name))


def test_patches(data: Path) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Names and pixels of the test patches of lung cancer, LUAD and LUSC in turn, every third first."""
    with zipfile.ZipFile(data / "histology_patches" / "tcga_luad_lusc_190.zip") as archive:
        names = sorted(name for name in archive.namelist() if "/test/" in name and name.endswith(".jpg"))
        kinds = [[name for name in names if f"/{kind}/" in name] for kind in ("LUAD", "LUSC")]
        spread = [[name for start in range(3) for name in kind[start::3]] for kind in kinds]
        for name in itertools.chain.from_iterable(zip(*spread, strict=True)):
            with Image.open(io.BytesIO(archive.read(name))) as image:
                yield name.split("/test/")[1].removesuffix(".jpg"), np.asarray(image.convert("RGB"))


def _embedded(pipe: ZoomLDMPipeline, found: Iterator[tuple[str, NDArray[np.uint8]]], count: int) -> list[TissueRegion]:
    encoder = pipe.embedding_encoder().at(BRCA.steps[0])
    regions = []
    for name, image in found:
        rows, columns = (side // PATCH_SIZE for side in image.shape[:2])
        patches = image.reshape(rows, PATCH_SIZE, columns, PATCH_SIZE, 3).swapaxes(1, 2)
        embeddings = encoder(np.array(patches.reshape(-1, PATCH_SIZE, PATCH_SIZE, 3)))
        regions.append(TissueRegion(name, image, torch.from_numpy(embeddings).T.reshape(-1, rows, columns)))
    if len(regions) < count:
        raise SystemExit(f"there are {len(regions)} such regions; {count} were asked for")
    return regions


def _cut(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = (side // PATCH_SIZE * PATCH_SIZE for side in image.shape[:2])
    return image[:height, :width]


def _mirrored(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    height, width = (max(side - length, 0) for length in image.shape[:2])
    return np.pad(image, ((0, height), (0, width), (0, 0)), mode="symmetric")[:side, :side]

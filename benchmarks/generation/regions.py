"""Regions of tissue to measure on: their pixels, and the embeddings of their 20x patches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from generation.pipelines.models import MODELS, load_pipeline
from generation.pipelines.patch import ZoomLDMPipeline
from generation.region import region_embeddings
from zoomfeat.magnification import BRCA, PATCH_SIZE, Magnification
from zoomfeat.slides import Slide, find_tissue, make_grid


@dataclass(frozen=True)
class TissueRegion:
    """A patch of a coarse magnification.

    Attributes:
        name: slide and place.
        image: the patch at 20x, ``(256 * g, 256 * g, 3)`` uint8, g patches of 20x a side.
        embeddings: of its 20x patches, ``(C, g, g)``.
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
    return pipe


def tissue_regions(
    pipe: ZoomLDMPipeline, slides: Sequence[Path], magnification: str, count: int, seed: int = 0
) -> list[TissueRegion]:
    """Regions that hold much tissue, as many from each slide as from the next, at random.

    Args:
        pipe: its encoder embeds them.
        slides: slides or plain images.
        magnification: of the regions.
        count: how many.
        seed: decides which.
    """
    step = BRCA[magnification]
    encoder = pipe.embedding_encoder()
    rng = np.random.default_rng(seed)
    places = []
    for path in slides:
        with Slide.open(path, default_mpp=0.5) as slide:
            found = _places(slide, step)
        places.append([(path, x, y) for x, y in rng.permutation(found)])
    deepest = max(map(len, places), default=0)
    chosen = [each[depth] for depth in range(deepest) for each in places if depth < len(each)][:count]
    if len(chosen) < count:
        raise SystemExit(f"{len(chosen)} regions at {step} hold enough tissue; {count} were asked for")
    regions = []
    for path, x, y in chosen:
        with Slide.open(path, default_mpp=0.5) as slide:
            side = PATCH_SIZE * step.grid
            width, height = (round(side * 0.5 / mpp) for mpp in slide.mpp)
            image = slide.read(int(x), int(y), width, height, [(side, side)])[0]
            embeddings = region_embeddings(slide, int(x), int(y), step, encoder)
        regions.append(TissueRegion(f"{path.stem} x={x} y={y}", image, torch.from_numpy(embeddings)))
    return regions


def _places(slide: Slide, step: Magnification) -> NDArray[np.int64]:
    """Corners of the patches of which at least nine tenths of the 20x patches are tissue."""
    grid = make_grid(slide, find_tissue(slide), (BRCA.steps[0], step), min_tissue=0.3)
    counts = np.bincount(grid.parents[step.name], minlength=len(grid.scales[1].coords))
    return grid.scales[1].coords[counts >= 0.9 * step.grid**2]


def as_pixels(image: NDArray[np.uint8]) -> Tensor:
    """``(H, W, 3)`` uint8 to ``(1, 3, H, W)`` in [0, 1]."""
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255

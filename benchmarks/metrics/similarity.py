"""Are two images alike to a pathology encoder? The cosine of their embeddings."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.metrics.registry import PairMetric, pair_metric
from zoomfeat.encoders import PatchEncoder, load_encoder
from zoomfeat.errors import ConfigurationError
from zoomfeat.magnification import PATCH_SIZE


@pair_metric
def embedding_similarity(
    encoder: str | PatchEncoder, magnification: str = "20x", device: str = "auto", **options: Any
) -> PairMetric:
    """Mean cosine similarity of the embeddings of the 256 px patches that tile an image.

    Args:
        encoder: name in the registry, or one that is loaded.
        magnification: of the patches.
        device: where a named one runs.
        options: of a named one.
    """
    loaded = load_encoder(encoder, magnification, device, **options) if isinstance(encoder, str) else encoder

    def score(made: Tensor, real: Tensor) -> Tensor:
        cosine = functional.cosine_similarity(_embed(loaded, made), _embed(loaded, real), dim=1)
        return cosine.reshape(len(made), -1).mean(1)

    return PairMetric(f"cosine similarity ({loaded.name})", True, score)


def _embed(encoder: PatchEncoder, images: Tensor) -> Tensor:
    """Embeddings of the patches of each image, one image after the other."""
    count, _, height, width = images.shape
    if height % PATCH_SIZE or width % PATCH_SIZE:
        raise ConfigurationError(
            f"images of {width} x {height} px; {encoder.name} takes patches of {PATCH_SIZE} px",
            cure=f"Give images whose sides are multiples of {PATCH_SIZE}",
        )
    rows, columns = height // PATCH_SIZE, width // PATCH_SIZE
    pixels = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    patches = pixels.reshape(count, rows, PATCH_SIZE, columns, PATCH_SIZE, 3).swapaxes(2, 3)
    return torch.from_numpy(encoder(np.ascontiguousarray(patches.reshape(-1, PATCH_SIZE, PATCH_SIZE, 3))))

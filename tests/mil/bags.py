"""Bags that tests make: labels that instances carry, and labels that need two magnifications at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from zoomfeat.bags import Bag, BagMetadata, ScaleFeatures


def flat_bags(count: int, *, dim: int = 8, seed: int = 0, sizes: tuple[int, int] = (1, 20), shift: float = 4.0):
    """Bags (N, D) and their labels 0 and 1 in turn: one instance of a positive bag is shifted in two features."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    bags = []
    for label in labels:
        features = rng.normal(size=(rng.integers(*sizes), dim)).astype(np.float32)
        features[0, :2] += shift * label
        bags.append(features)
    return bags, labels


def make_bag(
    fine, coarse=None, *, parents=None, slide_id: str = "slide", encoder: str = "encoder", weights_hash: str = "a1"
) -> Bag:
    """A bag at 20x, and at 5x where ``coarse`` is given; each 5x patch is the parent of sixteen 20x patches or fewer.

    Args:
        fine: (N, D) features at 20x.
        coarse: (M, D) features at 5x, with N at most 16 M.
        parents: (N,) row of the 5x patch of each 20x patch; None for sixteen in a row each.
        slide_id: name of the slide.
        encoder: name of the encoder.
        weights_hash: of the encoder.
    """
    fine = np.asarray(fine, dtype=np.float32)
    parents = np.arange(len(fine)) // 16 if parents is None else np.asarray(parents)
    rank = np.array([np.sum(parents[:row] == parents[row]) for row in range(len(fine))])
    within = np.stack([rank % 4, rank // 4], axis=1)
    corners = np.stack([parents * 1024, np.zeros_like(parents)], axis=1)
    scales = [
        ScaleFeatures(
            magnification="20x", features=fine, coords=(corners + within * 256).astype(np.int64),
            patch_size_level0=(256, 256), mpp=0.5,
        )
    ]  # fmt: skip
    rows = {}
    if coarse is not None:
        coarse = np.asarray(coarse, dtype=np.float32)
        places = np.stack([np.arange(len(coarse)) * 1024, np.zeros(len(coarse), dtype=int)], axis=1)
        scales.append(
            ScaleFeatures(
                magnification="5x", features=coarse, coords=places.astype(np.int64), patch_size_level0=(1024, 1024),
                mpp=2.0,
            )
        )  # fmt: skip
        rows["5x"] = parents.astype(np.int32)
    metadata = BagMetadata(slide_id=slide_id, encoder=encoder, weights_hash=weights_hash)
    return Bag(tuple(scales), rows, metadata=metadata)


def saved(bag: Bag, folder: Path) -> Path:
    """The path of the bag, written into a folder."""
    path = folder / f"{bag.metadata.slide_id}.h5"
    bag.save(path)
    return path


def two_scale_bags(count: int, *, seed: int = 0, dim: int = 12, regions: tuple[int, int] = (10, 16)):
    """Bags at 20x and 5x whose label needs both: a kind of cell within a kind of architecture.

    Every bag has regions (5x patches) of two architectures, each with cells (20x patches) that are normal or atypical.
    A positive bag has atypical cells within one architecture, a negative one has them within the other; both have
    as many of each. What tells them apart is which cells lie where, so that neither magnification shows it alone.

    Returns:
        Bags and their labels, 0 and 1 in turn.
    """
    rng = np.random.default_rng(seed)
    atypical, glands = np.zeros(dim), np.zeros(dim)
    atypical[0], glands[1] = 4.0, 4.0
    labels = np.arange(count) % 2
    bags = []
    for number, label in enumerate(labels):
        half = int(rng.integers(*regions)) // 2
        is_gland = np.arange(2 * half) % 2 == 0  # as many of either kind
        coarse = rng.normal(size=(2 * half, dim)) + np.where(is_gland, 1, -1)[:, None] * glands / 2
        affected = rng.permutation(np.flatnonzero(is_gland == label))[: max(1, half // 2)]
        parents = np.repeat(np.arange(2 * half), 8)
        sick = np.isin(parents, affected) & (rng.random(len(parents)) < 0.5)
        sick[np.flatnonzero(parents == affected[0])[0]] = True
        fine = rng.normal(size=(len(parents), dim)) + sick[:, None] * atypical
        bags.append(make_bag(fine, coarse, parents=parents, slide_id=f"slide-{number}"))
    return bags, labels

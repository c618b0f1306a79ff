"""Bootstrap resamples of one bag: tissue drawn with replacement, a coarse patch with all that lies in it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mil.dataset import Instances


def resample(instances: Instances, rng: np.random.Generator) -> Instances:
    """Draws as many blocks as there are, with replacement.

    A block is a patch of the coarsest magnification with every finer patch in it, so that what is fused stays
    together and neighbours, which resemble each other, are drawn together (a block bootstrap). With one
    magnification each patch is a block. Coarse patches without a finest patch in them are left out.

    Args:
        instances: a bag.
        rng: draws the blocks.
    """
    finest, *coarser = instances.scales
    block_of = {finest: instances.parents[coarser[-1]] if coarser else np.arange(len(instances))}
    for name in coarser:
        block_of[name] = np.full(len(instances.features[name]), -1)
        block_of[name][instances.parents[name]] = block_of[finest]
    blocks = np.unique(block_of[finest])
    drawn = rng.choice(blocks, len(blocks))

    taken = {name: _Taken(owners, drawn) for name, owners in block_of.items()}
    fine = taken[finest]
    return Instances(
        {name: instances.features[name][part.rows] for name, part in taken.items()},
        {
            name: taken[name].starts[fine.copies] + taken[name].places[instances.parents[name][fine.rows]]
            for name in coarser
        },
    )


class _Taken:
    """The rows of one magnification that drawn blocks bring.

    Attributes:
        rows: of the bag, one draw after the other.
        copies: the draw that each of them belongs to.
        starts: where each draw begins in ``rows``.
        places: of each row of the bag, its place within its block.
    """

    def __init__(self, owners: NDArray[np.integer], drawn: NDArray[np.integer]) -> None:
        order = np.argsort(owners, kind="stable")
        first = np.searchsorted(owners[order], drawn)
        counts = np.searchsorted(owners[order], drawn, side="right") - first
        self.starts = np.cumsum(counts) - counts
        self.copies = np.repeat(np.arange(len(drawn)), counts)
        self.rows = order[np.repeat(first, counts) + np.arange(counts.sum()) - self.starts[self.copies]]
        self.places = np.empty(len(owners), dtype=np.intp)
        self.places[order] = np.arange(len(owners)) - np.searchsorted(owners[order], owners[order])

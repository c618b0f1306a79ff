"""Where a model looked: one attention value a patch and magnification, tied to boxes in level-0 pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import rankdata

from zoomfeat.bags import Bag
from zoomfeat.errors import ConfigurationError
from zoomfeat.georeference import Georeference

COLUMNS = ("magnification", "x", "y", "width", "height", "attention", "percentile")
"""Of the table of patches: a box in level-0 pixels, the model's own value, and its percentile rank."""


@dataclass(frozen=True, eq=False)
class ScaleAttention:
    """The attention of the patches of one magnification.

    Attributes:
        magnification: its name, for example ``"20x"``.
        coords: (N, 2) int64, x and y of the top-left corners in level-0 px, in the order of the bag.
        size: width and height of a patch in level-0 px.
        attention: (N,) float64, as the model gives it; which sum or range it has depends on the head.
        percentile: (N,) float64 in (0, 100), the percentile rank among the patches of this magnification.
    """

    magnification: str
    coords: NDArray[np.int64]
    size: tuple[int, int]
    attention: NDArray[np.float64]
    percentile: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        if self.attention.shape != (len(self.coords),):
            raise ConfigurationError(
                f"attention at {self.magnification} is of shape {self.attention.shape} for {len(self.coords)} patches",
                cure="Give one value a patch, in the order of the bag",
            )
        if not np.isfinite(self.attention).all():
            raise ConfigurationError(
                f"{np.count_nonzero(~np.isfinite(self.attention))} attention values at {self.magnification} are not "
                "finite",
                cure="Check the bag with `zoomfeat inspect`, and the model",
            )
        object.__setattr__(self, "percentile", percentile_rank(self.attention))

    def __len__(self) -> int:
        return len(self.coords)

    def strongest(self) -> NDArray[np.intp]:
        """Rows from the highest attention to the lowest; equal ones in the order of the bag."""
        return np.argsort(-self.attention, kind="stable")

    def patches_with_half(self) -> int:
        """The fewest patches that hold half of the attention: near N / 2 where the model weighs all alike."""
        sums = np.cumsum(self.attention[self.strongest()])
        return int(np.searchsorted(sums, sums[-1] / 2 * (1 - 1e-9))) + 1


@dataclass(frozen=True, eq=False)
class SlideAttention:
    """The attention of one slide.

    Attributes:
        slide_id: its name.
        scales: finest first.
        level0_size: width and height of level 0 in px; where the bag does not say, as far as its patches reach.
        size_known: False where that is so.
        mpp: um/px of level 0 along x and y; None where unknown.
        georeference: where level 0 lies on the map; None for slides.
    """

    slide_id: str
    scales: tuple[ScaleAttention, ...]
    level0_size: tuple[int, int]
    size_known: bool
    mpp: tuple[float, float] | None
    georeference: Georeference | None = None

    @property
    def magnifications(self) -> tuple[str, ...]:
        """Names of the magnifications, finest first."""
        return tuple(scale.magnification for scale in self.scales)

    def table(self) -> pd.DataFrame:
        """One row a patch, the columns `COLUMNS`; finest magnification first, patches in the order of the bag."""
        tables = [
            pd.DataFrame(
                {
                    "magnification": scale.magnification,
                    "x": scale.coords[:, 0],
                    "y": scale.coords[:, 1],
                    "width": scale.size[0],
                    "height": scale.size[1],
                    "attention": scale.attention,
                    "percentile": scale.percentile,
                },
                columns=list(COLUMNS),
            )
            for scale in self.scales
        ]
        return pd.concat(tables, ignore_index=True)


def slide_attention(
    bag: Bag,
    attention: Mapping[str, NDArray[np.floating]],
    level0_size: tuple[int, int] | None = None,
    mpp: tuple[float, float] | None = None,
) -> SlideAttention:
    """Ties attention to the places of a bag's patches.

    Args:
        bag: where the patches lie.
        attention: magnification to (N,) values in the order of the bag.
        level0_size: width and height of level 0 in px as the slide itself says; None takes the bag's word.
        mpp: um/px of level 0 as the slide says; None takes the bag's word.

    Raises:
        ConfigurationError: values and patches differ in number, or a value is not finite.
        MagnificationError: the bag lacks one of the magnifications.
    """
    scales = [
        ScaleAttention(
            name, bag.scale(name).coords, bag.scale(name).patch_size_level0, np.asarray(values, dtype=np.float64)
        )
        for name, values in attention.items()
    ]
    scales.sort(key=lambda scale: bag.magnifications.index(scale.magnification))
    size = level0_size or bag.metadata.level0_size
    if size is None:
        reach = np.max([(scale.coords + scale.size).max(axis=0) for scale in scales], axis=0)
        size = (int(reach[0]), int(reach[1]))
    known = bool(level0_size or bag.metadata.level0_size)
    where = bag.metadata.georeference
    return SlideAttention(bag.metadata.slide_id, tuple(scales), size, known, mpp or bag.metadata.mpp_level0, where)


def percentile_rank(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """The share of values below each one plus half of those equal to it, in percent.

    The "mean" percentile rank of `scipy.stats.percentileofscore`, for all values at once: equal values get equal
    ranks, and a model that weighs all patches alike puts them all at 50.

    Args:
        values: (N,).

    Returns:
        (N,) in (0, 100), its mean 50.
    """
    return (rankdata(values) - 0.5) / len(values) * 100

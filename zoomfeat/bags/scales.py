"""One magnification of a bag: where its patches lie, and their features in memory or on disk."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zoomfeat.bags.files import INCOMPLETE_CURE, reading, require_dataset
from zoomfeat.errors import BagInvalidError
from zoomfeat.magnification import PATCH_SIZE

FEATURE_TYPES = ("float32", "float16")
"""The types that features are stored in."""

_LARGEST = 2**31  # px, or um/px

ROUNDING = 2
"""Level-0 pixels by which a patch may stick out of its parent: corners and sizes are each rounded."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scale:
    """Where the patches of one magnification lie.

    Attributes:
        magnification: its name, for example ``"20x"`` or ``"0.3125x"``.
        coords: (N, 2) int64, x and y of the top-left corners in level-0 px.
        patch_size_level0: width and height of a patch in level-0 px, rounded.
        mpp: um/px that the magnification asks for.
        patch_size: width and height in px at that um/px.
    """

    magnification: str
    coords: NDArray[np.int64]
    patch_size_level0: tuple[int, int]
    mpp: float
    patch_size: int = PATCH_SIZE

    def __len__(self) -> int:
        return len(self.coords)

    @property
    def number(self) -> int | float:
        """The magnification as a number, an int where it is whole: 20 for ``"20x"``."""
        return plain_number(float(self.magnification.removesuffix("x")))

    def check(self, path: Path | None = None) -> None:
        """Refuse a scale that contradicts itself.

        Raises:
            BagInvalidError: naming ``path`` and what is wrong.
        """
        if not re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,12})?x", self.magnification):
            raise BagInvalidError(
                f"magnification {self.magnification!r}, expected a name such as 20x or 0.3125x",
                cure=INCOMPLETE_CURE,
                path=path,
            )
        if self.coords.ndim != 2 or self.coords.shape[1] != 2 or self.coords.dtype != np.int64:
            raise BagInvalidError(
                f"{self.magnification} coordinates are {self.coords.dtype} {self.coords.shape}, expected int64 (N, 2)",
                cure=INCOMPLETE_CURE,
                path=path,
            )
        if len(self) == 0:
            raise BagInvalidError(
                f"no patch at {self.magnification}, expected at least one",
                cure="Report a slide without tissue as a failure, not as a bag",
                path=path,
            )
        if not all(0 < size < _LARGEST for size in (*self.patch_size_level0, self.patch_size, self.mpp)):
            raise BagInvalidError(
                f"{self.magnification} patches of {self.patch_size_level0} level-0 px, {self.patch_size} px "
                f"at {self.mpp} um/px, expected positive sizes below {_LARGEST}",
                cure=INCOMPLETE_CURE,
                path=path,
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class ScaleFeatures(Scale):
    """One magnification with its features in memory.

    Attributes:
        features: (N, D) float32, one row a patch.
    """

    features: NDArray[np.float32]

    @property
    def dim(self) -> int:
        """Length D of a feature vector."""
        return self.features.shape[1]

    def check(self, path: Path | None = None) -> None:
        """Refuse a scale whose parts do not fit each other, or whose features are not finite.

        Raises:
            BagInvalidError: naming ``path`` and what is wrong.
        """
        super().check(path)
        found = (self.features.dtype.name, self.features.ndim, len(self.features))
        if found != ("float32", 2, len(self)) or not self.dim:
            raise BagInvalidError(
                f"{self.magnification} features are {self.features.dtype} {self.features.shape}, "
                f"expected float32 ({len(self)}, D)",
                cure=INCOMPLETE_CURE,
                path=path,
            )
        check_finite(self.features, self.magnification, path)


@dataclass(frozen=True, kw_only=True, eq=False)
class StoredScale(Scale):
    """One magnification whose features stay in the bag on disk until asked for.

    Attributes:
        path: the bag.
        dataset: name of the data set that holds the features.
        dim: length D of a feature vector.
    """

    path: Path
    dataset: str
    dim: int

    @property
    def features(self) -> NDArray[np.float32]:
        """(N, D) float32, read anew at each access, so that memory holds only what the caller keeps.

        Raises:
            BagInvalidError: the file is damaged, or has changed since it was opened.
        """
        with reading(self.path) as file:
            shape = (len(self), self.dim)
            stored = require_dataset(
                file, self.dataset, self.path, shape=shape, dtypes=FEATURE_TYPES, cure=INCOMPLETE_CURE
            )
            return stored.astype(np.float32)[...]


AnyScale = ScaleFeatures | StoredScale
"""A magnification of a bag; both kinds have ``features`` and ``dim``."""


def check_finite(features: NDArray[np.floating], magnification: str, path: Path | None) -> None:
    """Refuse features with NaN or infinite values.

    Raises:
        BagInvalidError: naming ``path``, the number of such rows and the first one.
    """
    damaged = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if damaged.size:
        raise BagInvalidError(
            f"{damaged.size} of {len(features)} {magnification} feature rows are not finite, the first is row "
            f"{damaged[0]}",
            cure="Extract the slide again in float32; check the encoder's weights",
            path=path,
        )


def outside_parent(child: Scale, parent: Scale, rows: NDArray[np.integer]) -> NDArray[np.intp]:
    """Rows of ``child`` that do not lie within their parent, up to rounding.

    Args:
        child: the finer scale, N patches.
        parent: the coarser scale.
        rows: (N,) row of ``parent`` for each patch of ``child``, all in range.
    """
    corners = parent.coords[rows]
    start = child.coords >= corners - ROUNDING
    end = child.coords + child.patch_size_level0 <= corners + parent.patch_size_level0 + np.array(ROUNDING)
    return np.flatnonzero(~(start & end).all(axis=1))


def find_parents(child: Scale, parent: Scale, path: Path | None = None) -> NDArray[np.int32]:
    """The row of the coarser scale whose patch contains each patch of the finer one.

    Args:
        child: the finer scale, N patches.
        parent: the coarser scale, on a grid of its own: patches of a column share x, of a row y.
        path: the file or folder the scales come from, for messages.

    Returns:
        (N,) int32.

    Raises:
        BagInvalidError: a patch lies in no patch of the coarser scale.
    """
    centres = child.coords + np.array(child.patch_size_level0) / 2
    cells, found = [], []
    for axis in range(2):
        starts = np.unique(parent.coords[:, axis])
        cells.append(np.searchsorted(starts, parent.coords[:, axis]))
        found.append(np.maximum(np.searchsorted(starts, centres[:, axis], side="right") - 1, 0))
    # Both axes in one number, so that a sorted search finds the cell.
    width = max(int(cells[1].max()), int(found[1].max())) + 1
    keys = cells[0] * width + cells[1]
    order = np.argsort(keys)
    at = np.searchsorted(keys[order], found[0] * width + found[1]).clip(max=len(keys) - 1)
    rows = order[at].astype(np.int32)

    orphans = outside_parent(child, parent, rows)
    if orphans.size:
        raise BagInvalidError(
            f"{orphans.size} of {len(child)} {child.magnification} patches lie in no {parent.magnification} patch, "
            f"the first is row {orphans[0]} at {tuple(child.coords[orphans[0]].tolist())}",
            cure="The grids are not aligned; convert each magnification by itself",
            path=path,
        )
    return rows


def with_features(scale: AnyScale, features: NDArray[np.float32]) -> ScaleFeatures:
    """The same patches with other features, in memory."""
    return ScaleFeatures(**{entry.name: getattr(scale, entry.name) for entry in fields(Scale)}, features=features)


def plain_number(value: float) -> int | float:
    """The value as an int where it is whole."""
    return int(value) if value == int(value) else value

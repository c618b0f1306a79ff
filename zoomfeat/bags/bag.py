"""The bag: what one slide becomes, at one or several magnifications."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zoomfeat.bags import hdf5
from zoomfeat.bags.files import INCOMPLETE_CURE
from zoomfeat.bags.metadata import BagMetadata
from zoomfeat.bags.scales import AnyScale, check_finite, outside_parent
from zoomfeat.errors import BagInvalidError, MagnificationError


@dataclass(frozen=True, eq=False)
class Bag:
    """The features of one slide, in memory after an extraction or left on disk by ``Bag.open``.

    A bag that exists is consistent: every check but the finiteness of features on disk has been made.

    Attributes:
        scales: the magnifications, finest first. Those of an opened bag read their features at each access.
        parents: coarser magnification name to (N,) int32, the row of that scale whose patch contains
            each of the N finest patches.
        metadata: slide, encoder, um/px, configuration.
        path: the file that the bag was opened from; None for one made in memory.

    Raises:
        BagInvalidError: the parts contradict each other.
    """

    scales: tuple[AnyScale, ...]
    parents: Mapping[str, NDArray[np.int32]] = field(default_factory=dict)
    metadata: BagMetadata = field(kw_only=True)
    path: Path | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        self._check_scales()
        self._check_parents()

    @classmethod
    def open(cls, path: str | Path) -> Bag:
        """The bag in a file: coordinates and metadata are read and checked, features when asked for.

        Raises:
            BagInvalidError: the file is not a complete, consistent zoomfeat bag.
        """
        path = Path(path)
        scales, parents, metadata = hdf5.read(path)
        return cls(scales, parents, metadata=metadata, path=path)

    def save(self, path: str | Path, *, dtype: str = "float32", fused: bool = False) -> None:
        """Write the bag as one HDF5 file, whole or not at all.

        Args:
            path: the file to write or replace; its folder must exist.
            dtype: ``"float32"``, or ``"float16"`` for half the size (CLAM's own heads then need a cast).
            fused: store ``features_fused`` too, for readers that cannot compute it.

        Raises:
            ConfigurationError: another dtype, or features too large for float16.
            ZoomfeatError: the file cannot be written.
        """
        hdf5.write(
            Path(path),
            self.scales,
            self.parents,
            self.metadata,
            dtype=dtype,
            fused=self.fused() if fused else None,
        )

    def __len__(self) -> int:
        """Number of patches at the finest magnification."""
        return len(self.scales[0])

    @property
    def magnifications(self) -> tuple[str, ...]:
        """Names of the magnifications, finest first."""
        return tuple(scale.magnification for scale in self.scales)

    @property
    def features(self) -> NDArray[np.float32]:
        """(N, D) float32, the finest features."""
        return self.scales[0].features

    @property
    def coords(self) -> NDArray[np.int64]:
        """(N, 2) int64, top-left corners of the finest patches in level-0 px."""
        return self.scales[0].coords

    def scale(self, magnification: str) -> AnyScale:
        """The scale of that name.

        Raises:
            MagnificationError: the bag does not hold it.
        """
        for scale in self.scales:
            if scale.magnification == magnification:
                return scale
        raise MagnificationError(
            f"no magnification {magnification!r} in the bag of {self.metadata.slide_id}",
            cure=f"Use one of {', '.join(self.magnifications)}",
            path=self.path,
        )

    def parent(self, magnification: str) -> NDArray[np.int32]:
        """(N,) int32, the row of a coarser scale whose patch contains each of the N finest patches.

        Raises:
            MagnificationError: the bag does not hold that scale, or it is the finest.
        """
        if magnification == self.magnifications[0]:
            raise MagnificationError(
                f"{magnification} is the finest magnification of the bag and has no parents",
                cure=f"Use one of {', '.join(self.magnifications[1:]) or 'a bag with several magnifications'}",
                path=self.path,
            )
        return self.parents[self.scale(magnification).magnification]

    def fused(self) -> NDArray[np.float32]:
        """(N, sum of D) float32: each finest patch's features, then those of its parent at each coarser scale."""
        ends = np.cumsum([scale.dim for scale in self.scales])
        fused = np.empty((len(self), ends[-1]), dtype=np.float32)
        fused[:, : ends[0]] = self.features
        for scale, start, end in zip(self.scales[1:], ends[:-1], ends[1:], strict=True):
            fused[:, start:end] = scale.features[self.parents[scale.magnification]]
        return fused

    def _check_scales(self) -> None:
        if not self.scales:
            raise BagInvalidError(
                "a bag without any magnification, expected at least one", cure=INCOMPLETE_CURE, path=self.path
            )
        for scale in self.scales:
            scale.check(self.path)
        steps = [scale.mpp for scale in self.scales]
        if steps != sorted(set(steps)) or len(set(self.magnifications)) < len(steps):
            raise BagInvalidError(
                f"magnifications {', '.join(self.magnifications)}, expected distinct ones, finest first",
                cure=INCOMPLETE_CURE,
                path=self.path,
            )
        size = self.metadata.level0_size
        for scale in self.scales:
            outside = (scale.coords < 0).any(axis=1)
            if size is not None:
                outside |= (scale.coords >= size).any(axis=1)
            if outside.any():
                row = int(outside.argmax())
                raise BagInvalidError(
                    f"{int(outside.sum())} {scale.magnification} patches start outside the slide, the first is row "
                    f"{row} at {tuple(scale.coords[row].tolist())}, expected coordinates within "
                    f"{size or 'positive numbers'}",
                    cure="Coordinates are level-0 px of the top-left corner; check the um/px of the slide",
                    path=self.path,
                )

    def _check_parents(self) -> None:
        if set(self.parents) != set(self.magnifications[1:]):
            raise BagInvalidError(
                f"parents for {sorted(self.parents)}, expected {list(self.magnifications[1:])}",
                cure=INCOMPLETE_CURE,
                path=self.path,
            )
        for scale in self.scales[1:]:
            name, rows = scale.magnification, self.parents[scale.magnification]
            if rows.dtype != np.int32 or rows.shape != (len(self),):
                raise BagInvalidError(
                    f"parent_{name} is {rows.dtype} {rows.shape}, expected int32 ({len(self)},)",
                    cure=INCOMPLETE_CURE,
                    path=self.path,
                )
            if rows.min() < 0 or rows.max() >= len(scale):
                raise BagInvalidError(
                    f"parent_{name} holds rows {rows.min()} to {rows.max()}, expected 0 to {len(scale) - 1}",
                    cure=INCOMPLETE_CURE,
                    path=self.path,
                )
            outside = outside_parent(self.scales[0], scale, rows)
            if outside.size:
                raise BagInvalidError(
                    f"{outside.size} patches do not lie in their {name} parent, the first is row {outside[0]}",
                    cure=INCOMPLETE_CURE,
                    path=self.path,
                )


def validate(path: str | Path) -> None:
    """Check a bag to the last value: all that ``Bag.open`` checks, and that every feature is finite.

    Raises:
        BagInvalidError: one line that names the file, what was found and what was expected.
    """
    bag = Bag.open(path)
    for scale in bag.scales:
        check_finite(scale.features, scale.magnification, bag.path)

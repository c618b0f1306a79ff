"""Random crops of large images, for a Frechet distance that sees detail ("crop FID")."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zoomfeat.errors import ConfigurationError
from zoomfeat.magnification import PATCH_SIZE
from zoomfeat.slides import Slide


@dataclass(frozen=True)
class RandomCrops:
    """Crops of slides or plain images, read one at a time from the file: no large image is decoded as a whole.

    Where an image's crops lie depends on the seed and the file's name alone, so that shards may be made anywhere.
    (Plain images that are no tiled slides have no other way than to be decoded once.)

    Attributes:
        paths: tiled TIFF or any slide, PNG, JPEG.
        per_image: crops of each.
        size: side in pixels.
        mpp: um/px of the crops; None: the file's own pixels, for sets of equal um/px.
        default_mpp: um/px of files that do not say.
        seed: of the places.
    """

    paths: Sequence[Path]
    per_image: int = 16
    size: int = PATCH_SIZE
    mpp: float | None = None
    default_mpp: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.per_image, self.size) < 1:
            raise ConfigurationError(
                f"{self.per_image} crops of {self.size} px", cure="Give at least one crop of at least one pixel"
            )

    @property
    def view(self) -> str:
        """Size and um/px."""
        return f"{self.size} px crops" + (f" at {self.mpp:g} um/px" if self.mpp else "")

    def __len__(self) -> int:
        return len(self.paths) * self.per_image

    def __iter__(self) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        for path in self.paths:
            default = self.default_mpp if self.mpp else self.default_mpp or 1.0
            with Slide.open(path, default_mpp=default) as slide:
                yield from self._crops(slide)

    def _crops(self, slide: Slide) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        width, height = (round(self.size * (self.mpp / each if self.mpp else 1)) for each in slide.mpp)
        if width > slide.width or height > slide.height:
            raise ConfigurationError(
                f"{slide.width} x {slide.height} px; a crop covers {width} x {height}",
                path=slide.path,
                cure="Crop smaller, or leave small images to the plain metric",
            )
        if width < self.size or height < self.size:
            raise ConfigurationError(
                f"{slide.mpp[0]:g} um/px; crops at {self.mpp:g} um/px would be magnified",
                path=slide.path,
                cure="Crop at the um/px of the coarsest image",
            )
        name = hashlib.blake2b(slide.path.name.encode(), digest_size=8).digest()
        rng = np.random.default_rng([self.seed, int.from_bytes(name, "little")])
        for number in range(self.per_image):
            x, y = int(rng.integers(slide.width - width + 1)), int(rng.integers(slide.height - height + 1))
            crop = slide.read(x, y, width, height, [(self.size, self.size)])[0]
            yield f"{slide.path.parent.name}/{slide.path.name} {self.seed} {number}", crop

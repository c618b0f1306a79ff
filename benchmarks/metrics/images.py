"""Where images come from: a folder, files, an array. All are 8-bit RGB, and each has a key that names it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from zoomfeat.errors import ConfigurationError
from zoomfeat.slides import Slide

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")


class ImageSource(Protocol):
    """Images one after the other."""

    @property
    def view(self) -> str:
        """What they are, where they are not whole files; else empty."""
        ...

    def __len__(self) -> int:
        """How many."""
        ...

    def __iter__(self) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        """Key and image ``(H, W, 3)``."""
        ...


@dataclass(frozen=True)
class ImageFiles:
    """Whole files, decoded as slides are: transparent pixels on white, no more than 8 bits.

    Attributes:
        paths: of the files.
    """

    paths: Sequence[Path]
    view = ""

    @classmethod
    def of(cls, folder: str | Path) -> ImageFiles:
        """All images of a folder, by name, not of the folders in it."""
        return cls(image_paths(folder))

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        for path in self.paths:
            # What a pixel measures does not matter here, but a slide has to know.
            with Slide.open(path, default_mpp=1.0) as slide:
                size = (slide.width, slide.height)
                yield f"{path.parent.name}/{path.name}", slide.read(0, 0, *size, [size])[0]


@dataclass(frozen=True)
class ImageArray:
    """Images in memory.

    Attributes:
        images: ``(N, H, W, 3)`` uint8.
        prefix: of their keys; give each shard its own.
    """

    images: NDArray[np.uint8]
    prefix: str = ""
    view = ""

    def __post_init__(self) -> None:
        if self.images.dtype != np.uint8 or self.images.ndim != 4 or self.images.shape[-1] != 3:
            raise ConfigurationError(
                f"images of {self.images.dtype} {self.images.shape}; expected uint8 (N, H, W, 3)",
                cure="Scale to 0..255 and round: metrics see what a file would hold",
            )

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        for index, image in enumerate(self.images):
            yield f"{self.prefix}{index}", image


Images = ImageSource | str | Path | NDArray[np.uint8]


def as_source(images: Images) -> ImageSource:
    """A folder or an array as a source."""
    if isinstance(images, str | Path):
        return ImageFiles.of(images)
    return ImageArray(images) if isinstance(images, np.ndarray) else images


def image_paths(folder: str | Path) -> list[Path]:
    """Image files of a folder, by name.

    Raises:
        ConfigurationError: no such folder, or no image in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigurationError("no such folder", path=folder, cure="Check the path")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ConfigurationError("holds no image", path=folder, cure=f"Images end in {', '.join(SUFFIXES)}")
    return paths


def batches(source: ImageSource, count: int) -> Iterator[tuple[list[str], NDArray[np.uint8]]]:
    """Keys and images ``(B, H, W, 3)`` of one size, B at most ``count``."""
    keys: list[str] = []
    images: list[NDArray[np.uint8]] = []
    for key, image in source:
        if images and (len(images) == count or image.shape != images[0].shape):
            yield keys, np.stack(images)
            keys, images = [], []
        keys.append(key)
        images.append(image)
    if images:
        yield keys, np.stack(images)

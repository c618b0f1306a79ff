"""Slides written for a test, and the real ones that live beside the project."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import tifffile

SHARED_DATA = Path(__file__).resolve().parents[3] / ".." / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED_DATA.is_dir():
        pytest.skip("the folder ../shared/data with the real slides is absent")
    return SHARED_DATA.resolve()


@pytest.fixture(scope="session")
def cmu(shared_data: Path) -> Path:
    return shared_data / "slides" / "CMU-1-Small-Region.svs"


@pytest.fixture
def write_slide(tmp_path: Path) -> Callable[..., Path]:
    """A tiled, pyramidal TIFF that OpenSlide opens, from the pixels of its levels."""

    def write(
        levels: Sequence[np.ndarray],
        mpp: tuple[float, float] | None = (0.5, 0.5),
        name: str = "slide.tif",
        compression: str = "zlib",
    ) -> Path:
        resolution = {} if mpp is None else {"resolution": (1e4 / mpp[0], 1e4 / mpp[1]), "resolutionunit": "CENTIMETER"}
        with tifffile.TiffWriter(tmp_path / name) as tiff:
            for index, level in enumerate(levels):
                tiff.write(
                    level,
                    tile=(256, 256),
                    photometric="rgb",
                    compression=compression,
                    subfiletype=int(index > 0),
                    **resolution,
                )
        return tmp_path / name

    return write


@pytest.fixture(scope="session")
def ruler() -> Callable[..., np.ndarray]:
    """A picture of waves along x (red), along y (green), and flat blue, as an ideal camera would take it.

    Each pixel is the exact mean of the waves over what it covers, so two pictures of one box, however they
    were made, agree to rounding, and a shift of a quarter of a level-0 pixel shows.
    """

    def picture(box: tuple[float, float, float, float], size: tuple[int, int], period: float = 64.0) -> np.ndarray:
        left, top, right, bottom = box

        def means(start: float, end: float, count: int) -> np.ndarray:
            edges = np.linspace(start, end, count + 1)
            integral = -np.cos(2 * np.pi * edges / period) * period / (2 * np.pi)
            return 128 + 100 * np.diff(integral) / np.diff(edges)

        image = np.full((size[1], size[0], 3), 90, np.uint8)
        image[..., 0] = np.rint(means(left, right, size[0]))[None, :]
        image[..., 1] = np.rint(means(top, bottom, size[1]))[:, None]
        return image

    return picture

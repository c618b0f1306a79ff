"""GeoTIFFs that tests make, of synthetic pixels; and the YAML of a domain that does not ship."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

rasterio = pytest.importorskip("rasterio", reason="the extra 'satellite' is not installed")

UTM = "EPSG:26914"
AT = (500_000.0, 5_200_000.0)
"""Left and top of what `make_geotiff` writes, metres of UTM zone 14 N: in North Dakota."""


def picture(height: int, width: int, bands: int = 3, seed: int = 0) -> np.ndarray:
    """(bands, height, width) uint8: fields of smooth colours with some noise; never black."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 50
    fields = np.stack([np.sin(x + i) + np.cos(y * (1 + i / 3)) for i in range(bands)])
    return np.clip(128 + 45 * fields + rng.normal(0, 6, fields.shape), 1, 255).astype(np.uint8)


def make_geotiff(
    path: Path,
    pixels: np.ndarray,
    *,
    metres: float | tuple[float, float] = 1.0,
    at: tuple[float, float] = AT,
    crs: str | None = UTM,
    mask: np.ndarray | None = None,
    overviews: str | None = None,
    **profile: object,
) -> Path:
    """Writes a GeoTIFF.

    Args:
        path: the file.
        pixels: (bands, H, W).
        metres: size of a pixel along x and y, in units of the CRS.
        at: left and top.
        crs: None writes no georeference.
        mask: (H, W) bool, what there is; an internal mask.
        overviews: how a level of half the size and one of a quarter are made, ``"nearest"``, ``"average"``, ...; None:
            there are none.
        profile: more of rasterio's, for example ``nodata=0``.
    """
    wide, high = metres if isinstance(metres, tuple) else (metres, metres)
    place = {} if crs is None else {"crs": crs, "transform": rasterio.Affine(wide, 0, at[0], 0, -high, at[1])}
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(
        path, "w", driver="GTiff", width=pixels.shape[2], height=pixels.shape[1], count=pixels.shape[0],
        dtype=pixels.dtype, tiled=True, blockxsize=256, blockysize=256, **place, **profile,
    ) as file:  # fmt: skip
        file.write(pixels)
        if mask is not None:
            file.write_mask(mask)
        if overviews is not None:
            file.build_overviews([2, 4], rasterio.enums.Resampling[overviews])
    return path


DOMAIN = """\
about: aerial imagery at 5 m/px and coarser
ladder:
  names: [1x, 2x, 3x]
  finest: 5 m
reader: geotiff
foreground: data
embedding: dinov2-vitl14-reg
weights: ''
magnifications: [1x, 2x]
"""

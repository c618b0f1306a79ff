"""Where a picture lies on the Earth: pixel corners to map coordinates and back.

Conversions between coordinate systems are rasterio's (PROJ); the package is needed for those only, so that a bag with a
georeference opens without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoomfeat.errors import ConfigurationError

WGS84 = "EPSG:4326"
"""Longitude and latitude in degrees, the only coordinates of GeoJSON (RFC 7946, section 4)."""


@dataclass(frozen=True)
class Georeference:
    """A coordinate reference system and the affine map from level-0 pixels into it.

    Attributes:
        crs: the system as ``"EPSG:26914"`` where it has such a code, else as WKT.
        transform: (a, b, c, d, e, f) in rasterio's order: x = a column + b row + c, y = d column + e row + f, where
            whole numbers are the corners of pixels.
    """

    crs: str
    transform: tuple[float, float, float, float, float, float]

    def to_map(self, pixels: NDArray[Any]) -> NDArray[np.float64]:
        """Points in level-0 pixels, ``(N, 2)`` x and y, in the units of the CRS."""
        a, b, c, d, e, f = self.transform
        return np.asarray(pixels, np.float64) @ np.array([[a, d], [b, e]]) + (c, f)

    def to_pixels(self, points: NDArray[Any]) -> NDArray[np.float64]:
        """The inverse of `to_map`."""
        a, b, c, d, e, f = self.transform
        return (np.asarray(points, np.float64) - (c, f)) @ np.linalg.inv([[a, d], [b, e]])

    def to_lonlat(self, pixels: NDArray[Any]) -> NDArray[np.float64]:
        """Points in level-0 pixels, ``(N, 2)``, as WGS 84 longitude and latitude in degrees.

        Raises:
            ConfigurationError: rasterio is not installed.
        """
        x, y = need_rasterio("warp").transform(self.crs, WGS84, *self.to_map(pixels).T)
        return np.column_stack([x, y])

    def scaled(self, columns: float, rows: float) -> Georeference:
        """The georeference of the same picture with pixels that are larger by these factors along x and y."""
        a, b, c, d, e, f = self.transform
        return Georeference(self.crs, (a * columns, b * rows, c, d * columns, e * rows, f))


def need_rasterio(module: str = "") -> Any:
    """rasterio, or a module of it; an optional dependency.

    Raises:
        ConfigurationError: it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(f"rasterio.{module}" if module else "rasterio")
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            "images on the map need the package rasterio", cure="Install it with: pip install 'zoomfeat[satellite]'"
        ) from error

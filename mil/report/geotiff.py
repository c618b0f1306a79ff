"""A picture of an image on the map as a GeoTIFF that lies over it in QGIS."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zoomfeat.files import replacing
from zoomfeat.georeference import Georeference, need_rasterio


def write_geotiff(picture: NDArray[np.uint8], where: Georeference, level0_size: tuple[int, int], path: Path) -> None:
    """Writes a picture of the whole image in its own coordinate system.

    Args:
        picture: (H, W, 4) uint8 RGBA; transparent pixels stay so.
        where: level 0 on the map.
        level0_size: width and height of level 0 in px, which the picture covers.
        path: the file, ending in ``.tif``.

    Raises:
        ConfigurationError: rasterio is not installed.
        ZoomfeatError: the file cannot be written.
    """
    rasterio = need_rasterio()
    height, width = picture.shape[:2]
    pixels = where.scaled(level0_size[0] / width, level0_size[1] / height)
    with (
        replacing(path) as temporary,
        rasterio.open(
            temporary,
            "w",
            driver="GTiff",
            width=width,
            height=height,
            count=4,
            dtype="uint8",
            crs=pixels.crs,
            transform=rasterio.Affine(*pixels.transform),
            photometric="RGB",
            alpha="YES",
            compress="deflate",
            tiled=True,
        ) as file,
    ):
        file.write(np.moveaxis(picture, -1, 0))

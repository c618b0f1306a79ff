"""Attention as GeoJSON: for QuPath where it is of a slide, for a map where the image lies on one.

QuPath (0.4 or later; drag the file onto the slide) reads a FeatureCollection of features whose ``properties`` hold
``objectType``, ``name``, ``color``, ``classification`` (name and color) and ``measurements`` (name to number);
coordinates are level-0 pixels. On a map coordinates are WGS 84 longitude and latitude and outer rings run
counter-clockwise (RFC 7946, sections 3.1.6 and 4), and properties are flat, as QGIS shows them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mil.attention import ScaleAttention, SlideAttention
from mil.heatmap import patch_colours
from zoomfeat.files import replacing
from zoomfeat.georeference import Georeference
from zoomfeat.palette import BLUE, GREEN, ORANGE, PURPLE

# Of the classes, a magnification each; the objects themselves carry the colours of the heatmap.
_CLASS_COLOURS = [list(color) for color in (BLUE, ORANGE, GREEN, PURPLE)]
_DECIMALS = 8  # of a degree: about a millimetre


def write_geojson(attention: SlideAttention, path: Path) -> None:
    """Writes one polygon a patch: a tile object of the class ``Attention 20x`` and so on, or a place on the map.

    Raises:
        ConfigurationError: an image on the map, and rasterio is not installed.
        ZoomfeatError: the file cannot be written.
    """
    where = attention.georeference
    features = [
        feature
        for place, scale in enumerate(attention.scales)
        for feature in (
            _tiles(scale, _CLASS_COLOURS[place % len(_CLASS_COLOURS)]) if where is None else _places(scale, where)
        )
    ]
    # All text at once: `json.dump` to a file is several times slower.
    text = json.dumps({"type": "FeatureCollection", "features": features}, separators=(",", ":"))
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _rings(scale: ScaleAttention) -> NDArray[np.int64]:
    """(N, 5, 2) level-0 px: the corners of each patch from the top left by the top right, and the first again."""
    turns = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]])
    return scale.coords[:, None] + turns * np.array(scale.size)


def _tiles(scale: ScaleAttention, class_colour: list[int]) -> list[dict[str, Any]]:
    colours = patch_colours(scale).tolist()
    classification = {"name": f"Attention {scale.magnification}", "color": class_colour}
    return [
        _polygon(
            ring,
            {
                "objectType": "tile",
                "name": f"{scale.magnification} {ring[0][0]} {ring[0][1]}",
                "color": colour,
                "classification": classification,
                "measurements": {"Attention": value, "Attention percentile": rank},
            },
        )
        for ring, colour, value, rank in zip(
            _rings(scale).tolist(), colours, scale.attention.tolist(), scale.percentile.tolist(), strict=True
        )
    ]


def _places(scale: ScaleAttention, where: Georeference) -> list[dict[str, Any]]:
    rings = where.to_lonlat(_rings(scale).reshape(-1, 2)).reshape(-1, 5, 2)
    a, b, _, d, e, _ = where.transform
    if a * e - b * d < 0:  # rows run southwards, as they nearly always do, and what is clockwise here is not there
        rings = rings[:, ::-1]
    return [
        _polygon(
            ring,
            {
                "magnification": scale.magnification,
                "x": x,
                "y": y,
                "attention": value,
                "percentile": rank,
                "color": "#{:02x}{:02x}{:02x}".format(*colour),
            },
        )
        for ring, (x, y), colour, value, rank in zip(
            rings.round(_DECIMALS).tolist(),
            scale.coords.tolist(),
            patch_colours(scale).tolist(),
            scale.attention.tolist(),
            scale.percentile.tolist(),
            strict=True,
        )
    ]


def _polygon(ring: list[list[float]], properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": properties,
    }

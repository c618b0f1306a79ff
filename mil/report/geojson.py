"""Attention as GeoJSON that QuPath opens (drag the file onto the slide; QuPath 0.4 or later).

QuPath reads a FeatureCollection of features whose ``properties`` hold ``objectType``, ``name``, ``color``,
``classification`` (name and color) and ``measurements`` (name to number); coordinates are level-0 pixels.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from mil.attention import ScaleAttention, SlideAttention
from mil.heatmap import patch_colours
from zoomfeat.files import replacing

# Of the classes, a magnification each; the objects themselves carry the colours of the heatmap.
_CLASS_COLOURS = ([0, 114, 178], [230, 159, 0], [0, 158, 115], [204, 121, 167])


def write_geojson(attention: SlideAttention, path: Path) -> None:
    """Writes one tile object a patch, of the class ``Attention 20x``, ``Attention 5x`` and so on.

    Raises:
        ZoomfeatError: the file cannot be written.
    """
    features = [
        feature
        for place, scale in enumerate(attention.scales)
        for feature in _features(scale, _CLASS_COLOURS[place % len(_CLASS_COLOURS)])
    ]
    # All text at once: `json.dump` to a file is several times slower.
    text = json.dumps({"type": "FeatureCollection", "features": features}, separators=(",", ":"))
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _features(scale: ScaleAttention, class_colour: list[int]) -> list[dict[str, Any]]:
    corners = np.hstack([scale.coords, scale.coords + np.array(scale.size)]).tolist()
    colours = patch_colours(scale).tolist()
    classification = {"name": f"Attention {scale.magnification}", "color": class_colour}
    return [
        {
            "type": "Feature",
            "geometry": {
                "type": "Polygon",
                "coordinates": [[[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]],
            },
            "properties": {
                "objectType": "tile",
                "name": f"{scale.magnification} {left} {top}",
                "color": colour,
                "classification": classification,
                "measurements": {"Attention": value, "Attention percentile": rank},
            },
        }
        for (left, top, right, bottom), colour, value, rank in zip(
            corners, colours, scale.attention.tolist(), scale.percentile.tolist(), strict=True
        )
    ]

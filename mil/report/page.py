"""One HTML page a slide that carries all it shows: no request leaves it, and no network is needed."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from mil.attention import ScaleAttention, SlideAttention
from mil.heatmap import colour_table, value_range
from mil.prediction import Prediction
from mil.report.gallery import Gallery, jpeg_url
from zoomfeat.files import replacing

_STOPS = 17  # colours of the legend's gradient


def write_page(
    path: Path,
    attention: SlideAttention,
    prediction: Prediction,
    facts: Sequence[tuple[str, str]],
    thumbnail: NDArray[np.uint8] | None = None,
    galleries: Sequence[Gallery] = (),
    notes: Sequence[str] = (),
    training: str = "",
    models: Sequence[tuple[str, str, str]] = (),
) -> None:
    """Writes the page of one slide.

    Args:
        path: the HTML file; its folder exists.
        attention: of each patch.
        prediction: of the slide.
        facts: provenance, as name and value.
        thumbnail: (H, W, 3) uint8 RGB of the whole slide; None draws an outline.
        galleries: extreme patches, a gallery a magnification, finest first.
        notes: what the reader must know first, for example that no slide file was there.
        training: what is known of this slide in the models' training.
        models: file, description and SHA-256 of each.

    Raises:
        ZoomfeatError: the file cannot be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["share"] = _share
    colours = colour_table()
    text = environment.get_template("page.html").render(
        attention=attention,
        prediction=prediction,
        facts=facts,
        thumbnail=None if thumbnail is None else jpeg_url(thumbnail),
        galleries=galleries,
        notes=notes,
        training=training,
        models=models,
        ramp=", ".join(f"rgb({r} {g} {b})" for r, g, b in colours[np.linspace(0, 255, _STOPS).astype(int)].tolist()),
        data={
            "size": attention.level0_size,
            "mpp": attention.mpp,
            "colours": _base64(colours),
            "scales": [_scale_data(scale) for scale in attention.scales],
        },
    )
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _scale_data(scale: ScaleAttention) -> dict[str, Any]:
    return {
        "name": scale.magnification,
        "size": scale.size,
        "range": value_range(scale, "attention"),
        "half": scale.patches_with_half(),
        "coords": _base64(scale.coords.astype("<i4")),
        "attention": _base64(scale.attention.astype("<f4")),
        "percentile": _base64(scale.percentile.astype("<f4")),
        "order": _base64(scale.strongest().astype("<u4")),
    }


def _share(value: float) -> str:
    """A probability to three digits, none of which is ever certain."""
    if value < 0.0005:
        return "<0.001"
    return ">0.999" if value > 0.9995 else f"{value:.3f}"


def _base64(array: NDArray[Any]) -> str:
    """The bytes of an array, little-endian as browsers on all common machines read them."""
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()

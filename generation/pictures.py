"""Generated pictures on disk: PNGs that carry the arguments that made them, and sheets that show many at once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from zoomfeat import __version__
from zoomfeat.files import replacing

_KEY = "zoomfeat"  # keyword of the text chunk
_MARGIN = 8
_LINE = 28


def save_png(
    image: Image.Image, path: Path, arguments: Mapping[str, Any] | None = None, mpp: float | None = None
) -> None:
    """Writes a PNG, whole or not at all.

    Args:
        image: the picture.
        path: the file; its folder exists.
        arguments: what made it, JSON-able; a text chunk that :func:`read_arguments` reads.
        mpp: microns per pixel, which becomes the physical pixel size that the format has a field for, in whole
            pixels a metre: a pixel of more than a metre has none.

    Raises:
        ZoomfeatError: it cannot be written.
    """
    text = PngImagePlugin.PngInfo()
    text.add_text("Software", f"zoomfeat {__version__}")
    if arguments is not None:
        text.add_text(_KEY, json.dumps(arguments))
    with replacing(path) as temporary:
        if mpp is None or mpp > 1e6:
            image.save(temporary, format="PNG", pnginfo=text)
        else:
            image.save(temporary, format="PNG", pnginfo=text, dpi=(25400 / mpp, 25400 / mpp))


def read_arguments(path: Path) -> dict[str, Any] | None:
    """The arguments in a PNG; None where it is missing, damaged, or not from :func:`save_png`."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return json.loads(image.text[_KEY])  # type: ignore[attr-defined]
    except (OSError, KeyError, ValueError, SyntaxError):
        return None


def preview_grid(rows: Sequence[tuple[str, Sequence[Image.Image]]], columns: int = 8) -> Image.Image:
    """A sheet of pictures in labelled rows.

    Args:
        rows: for each a label and its pictures, which are all of one size; further ones than fit wrap.
        columns: pictures side by side.
    """
    lines = [
        (label if start == 0 else "", pictures[start : start + columns])
        for label, pictures in rows
        for start in range(0, len(pictures), columns)
    ]
    font = ImageFont.load_default(16)
    width = max(sum(p.width + _MARGIN for p in pictures) for _, pictures in lines) + _MARGIN
    width = max(width, int(max(font.getlength(label) for label, _ in lines)) + 2 * _MARGIN)
    heights = [max(p.height for p in pictures) + _MARGIN + (_LINE if label else 0) for label, pictures in lines]
    sheet = Image.new("RGB", (width, sum(heights) + _MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    top = _MARGIN
    for (label, pictures), height in zip(lines, heights, strict=True):
        left = _MARGIN
        if label:
            draw.text((left, top), label, fill=(40, 40, 40), font=font)
        for picture in pictures:
            sheet.paste(picture, (left, top + (_LINE if label else 0)))
            left += picture.width + _MARGIN
        top += height
    return sheet

"""One picture of a slide that shows what was taken for tissue and which patches were kept."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from zoomfeat.files import replacing
from zoomfeat.palette import BLUE, GREEN, ORANGE
from zoomfeat.slides.grid import Grid, Scale
from zoomfeat.slides.reader import Slide
from zoomfeat.slides.tissue import TissueMask

LONGEST_SIDE = 1600
"""Longest side of the slide in the picture, in pixels."""

# Unlike any stain.
_TISSUE, _FINEST, _COARSEST = GREEN, BLUE, ORANGE
_TEXT = (40, 40, 40)
_MARGIN = 12
_LINE = 30


def draw_preview(slide: Slide, mask: TissueMask, grid: Grid, path: str | Path) -> None:
    """Write a PNG of the slide with its tissue outlined and the kept patches boxed.

    The title is the name of the file written, without suffix: a preview is called like its bag. The file appears
    under its name only when it is whole.

    Args:
        slide: an open slide.
        mask: its tissue.
        grid: its kept patches; boxes are drawn for the finest and the coarsest scale.
        path: the PNG; its folder exists.

    Raises:
        SlideUnreadableError: part of the slide does not decode.
        ZoomfeatError: the file cannot be written.
    """
    path = Path(path)
    longest_um = max(slide.width * slide.mpp[0], slide.height * slide.mpp[1])
    picture = slide.thumbnail(longest_um / LONGEST_SIDE)
    height, width = picture.shape[:2]
    outline = cv2.resize(mask.mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(outline, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    picture = cv2.drawContours(np.array(picture), contours, -1, _TISSUE, 2)

    finest, coarsest = grid.scales[0], grid.scales[-1]
    legend = [(_TISSUE, f"{mask.kind} ({mask.mask.mean():.0%} of the slide)"), (_FINEST, _count(finest))]
    if coarsest is not finest:
        legend.append((_COARSEST, _count(coarsest)))
    font = ImageFont.load_default(18)
    header = 2 * _MARGIN + _LINE * (1 + len(legend))
    needed = max(font.getlength(text) for text in (path.stem, *(text for _, text in legend))) + 3 * _MARGIN + 18
    # Patches overhang the slide to the right and at the bottom; leave room for that, but not for the whole of a
    # patch that is many times larger than the slide.
    scale = (width / slide.width, height / slide.height)
    right, bottom = np.minimum((coarsest.coords + coarsest.size).max(axis=0) * scale, (1.5 * width, 1.5 * height))
    sheet = Image.new(
        "RGB",
        (int(max(width, right + 2, needed)), header + int(max(height, bottom + 2))),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN), path.stem, fill=_TEXT, font=font)
    for row, (colour, text) in enumerate(legend, start=1):
        top = _MARGIN + row * _LINE
        draw.rectangle((_MARGIN, top + 2, _MARGIN + 18, top + 20), outline=colour, width=3)
        draw.text((2 * _MARGIN + 18, top), text, fill=_TEXT, font=font)
    sheet.paste(Image.fromarray(picture), (0, header))
    _draw_boxes(draw, finest, scale, header, _FINEST)
    if coarsest is not finest:
        _draw_boxes(draw, coarsest, scale, header, _COARSEST)
    with replacing(path) as temporary:
        sheet.save(temporary, format="PNG")


def _count(scale: Scale) -> str:
    return f"{len(scale.coords)} patches at {scale.magnification}"


def _draw_boxes(
    draw: ImageDraw.ImageDraw,
    patches: Scale,
    scale: tuple[float, float],
    header: int,
    colour: tuple[int, int, int],
) -> None:
    """Outline patches; ``scale`` is picture pixels per level-0 pixel along x and y."""
    corners = np.concatenate([patches.coords, patches.coords + patches.size], axis=1) * (scale * 2)
    line = min(3, 1 + int(patches.size[0] * scale[0] / 64))  # thin where boxes are small, or lines hide the slide
    for left, top, right, bottom in corners.tolist():
        draw.rectangle((left, header + top, right, header + bottom), outline=colour, width=line)

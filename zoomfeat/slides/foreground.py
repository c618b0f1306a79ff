"""What of an image is worth a patch: the rule that its domain names."""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np

from zoomfeat.errors import ConfigurationError, SlideUnreadableError
from zoomfeat.slides.reader import Slide
from zoomfeat.slides.tissue import TissueMask, find_tissue

_LONGEST_SIDE = 1024  # px of a mask
_LONGEST_DECODE = 3072  # px a side decoded at once


def find_data(slide: Slide) -> TissueMask:
    """All that the file holds: what is transparent there (nodata, a mask, an alpha of 0) is background.

    Args:
        slide: an open slide.

    Raises:
        SlideUnreadableError: part of the slide does not decode.
    """
    source = slide.source
    shrink = min(1.0, _LONGEST_SIDE / max(slide.width, slide.height))
    width, height = max(1, round(slide.width * shrink)), max(1, round(slide.height * shrink))
    scale = (slide.width / width, slide.height / height)
    level = source.get_best_level_for_downsample(min(scale))
    cells = [max(1, math.floor(_LONGEST_DECODE * source.level_downsamples[level] / each)) for each in scale]
    mask = np.zeros((height, width), bool)
    for top in range(0, height, cells[1]):
        for left in range(0, width, cells[0]):
            right, bottom = min(left + cells[0], width), min(top + cells[1], height)
            box = [round(edge * each) for edge, each in zip((left, top, right, bottom), scale * 2, strict=True)]
            divisor = source.level_downsamples[level]
            size = [max(1, round((box[axis + 2] - box[axis]) / divisor)) for axis in (0, 1)]
            try:
                pixels = source.read_region((box[0], box[1]), level, (size[0], size[1]))
            except OSError as error:
                raise SlideUnreadableError(
                    f"the region x={box[0]}, y={box[1]}, {size[0]}x{size[1]} px of level {level} does not decode "
                    f"({error})",
                    cure="Copy the file again from its source and compare checksums",
                    path=slide.path,
                ) from error
            alpha = np.asarray(pixels.convert("RGBA").getchannel("A"))
            shares = cv2.resize(alpha, (right - left, bottom - top), interpolation=cv2.INTER_AREA)
            mask[top:bottom, left:right] = shares >= 128
    return TissueMask(mask, scale, kind="data", method="data")


RULES: dict[str, Callable[[Slide], TissueMask]] = {"tissue": find_tissue, "data": find_data}
"""By name, what finds the foreground of an open slide."""


def find_foreground(slide: Slide, rule: str) -> TissueMask:
    """The foreground of a slide by a rule of `RULES`.

    Raises:
        ConfigurationError: no such rule.
        SlideUnreadableError: part of the slide does not decode.
    """
    if rule not in RULES:
        raise ConfigurationError(f"no foreground rule {rule!r}", cure=f"Use one of {', '.join(RULES)}")
    return RULES[rule](slide)

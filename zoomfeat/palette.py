"""The colours of every figure: Okabe and Ito's, which all common kinds of colour vision tell apart.

Source: Wong, Points of view: Color blindness, Nature Methods 2011, 8:441. Red, green and blue, 0 to 255.
"""

from __future__ import annotations

RGB = tuple[int, int, int]

BLUE: RGB = (0, 114, 178)
VERMILION: RGB = (213, 94, 0)
GREEN: RGB = (0, 158, 115)
PURPLE: RGB = (204, 121, 167)
ORANGE: RGB = (230, 159, 0)
SKY: RGB = (86, 180, 233)
GREY: RGB = (153, 153, 153)
"""For what is not data: diagonals, single seeds."""

CYCLE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
"""The order in which series take them."""


def as_hex(color: RGB) -> str:
    """``#0072b2``, as matplotlib, SVG and CSS take it."""
    return "#{:02x}{:02x}{:02x}".format(*color)

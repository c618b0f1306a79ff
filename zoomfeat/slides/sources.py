"""What opens the file of a slide: OpenSlide, Pillow for a plain image, GDAL for an image on the map."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openslide
import PIL
from PIL import Image

from zoomfeat.errors import SlideUnreadableError
from zoomfeat.slides.geotiff import GeoTiff

LONGEST_SIDE, LARGEST_AREA, LARGEST_TILE = 2**21, 2**38, 2**27
"""Most pixels along a side, of level 0, and of a tile of a slide: 0.5 m, 13 cm x 13 cm at 0.25 um/px, 11585 x 11585.

A damaged or malicious header may claim any size, and some libraries take memory for it before they notice.
"""

COPY_CURE = "Copy the file again from its source and compare checksums"
"""Against damage."""

OPEN_CURE = f"{COPY_CURE}, or convert it to a tiled, pyramidal TIFF (vips tiffsave --tile --pyramid)"
"""Against damage, and kinds of files that nothing here opens."""

_TIFF_TILE_WIDTH = 322
# What Pillow raises for damaged files depends on where the damage lies; the fuzzing of tests/ found these.
_OF_PILLOW = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError,
    MemoryError, struct.error,
)  # fmt: skip
_PLAIN_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")


def on_white(pixels: Image.Image) -> np.ndarray:
    """Any Pillow image as uint8 RGB, its transparent parts on white."""
    if not pixels.has_transparency_data:
        return np.asarray(pixels.convert("RGB"))
    pixels = pixels.convert("RGBA")
    if pixels.getchannel("A").getextrema() == (255, 255):
        return np.asarray(pixels.convert("RGB"))
    return np.asarray(Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels).convert("RGB"))


def one_line(error: Exception) -> str:
    """The words of a library about a file, in which text of the file itself may stand, shortened."""
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 300 else f"{words[:300]} ..."


def _open_source(path: Path) -> tuple[openslide.AbstractSlide, str, str]:
    """The file as an OpenSlide object, the library that decodes it, and its format."""
    try:
        slide = openslide.OpenSlide(path)
    except openslide.OpenSlideUnsupportedFormatError:
        image, kind = _open_plain_image(path)
        return openslide.ImageSlide(image), f"pillow {PIL.__version__}", kind
    except openslide.OpenSlideError as error:
        raise SlideUnreadableError(
            f"OpenSlide does not open it ({one_line(error)})", cure=OPEN_CURE, path=path
        ) from error
    vendor = slide.properties[openslide.PROPERTY_NAME_VENDOR]
    return slide, f"openslide {openslide.__library_version__}", vendor


def _open_geotiff(path: Path) -> tuple[openslide.AbstractSlide, str, str]:
    """The same for an image on the map."""
    source = GeoTiff(path)
    return source, source.reader, source.properties[openslide.PROPERTY_NAME_VENDOR]


READERS: dict[str, Callable[[Path], tuple[openslide.AbstractSlide, str, str]]] = {
    "openslide": _open_source,
    "geotiff": _open_geotiff,
}
"""By name, what opens a file: an object with OpenSlide's face, libraries and versions behind it, and the format.

What such an object gives as transparent is background. It may have a ``georeference``, and where the size of its pixels
is unknown ``unlocated``, the problem and the cure.
"""


def _open_plain_image(path: Path) -> tuple[Image.Image, str]:
    """A plain image decoded as a whole, RGB on white, and its format in small letters."""
    try:
        with Image.open(path, formats=_PLAIN_FORMATS) as image:
            if _TIFF_TILE_WIDTH in getattr(image, "tag_v2", ()):
                # OpenSlide takes whole tiled TIFFs; Pillow would take the first page of a truncated slide for all.
                raise SlideUnreadableError(
                    "a tiled TIFF that OpenSlide does not recognise; it is damaged or of a rare kind",
                    cure=OPEN_CURE,
                    path=path,
                )
            if image.mode in ("F", "I") or image.mode.startswith("I;"):
                raise SlideUnreadableError(
                    f"its pixels are of Pillow's mode {image.mode}, not 8 bits a colour",
                    cure="Convert it to 8-bit RGB",
                    path=path,
                )
            return Image.fromarray(on_white(image)), str(image.format).lower()
    except PIL.UnidentifiedImageError as error:
        raise SlideUnreadableError(
            "neither a slide that OpenSlide knows nor a plain image (PNG, JPEG, TIFF, BMP)",
            cure=OPEN_CURE,
            path=path,
        ) from error
    except Image.DecompressionBombError as error:
        raise SlideUnreadableError(
            f"a plain image too large to decode at once ({error})",
            cure="Convert it to a tiled, pyramidal TIFF (vips tiffsave --tile --pyramid)",
            path=path,
        ) from error
    except _OF_PILLOW as error:
        raise SlideUnreadableError(
            f"Pillow does not decode it ({one_line(error)})", cure=OPEN_CURE, path=path
        ) from error


def check_sizes(source: openslide.AbstractSlide, path: Path) -> None:
    """Refuses sizes that no slide has.

    Raises:
        SlideUnreadableError: so it is.
    """
    width, height = source.dimensions
    tiles = [
        tuple(int(source.properties.get(f"openslide.level[{level}].tile-{side}", "0")) for side in ("width", "height"))
        for level in range(source.level_count)
    ]
    found = ""
    if max(width, height) > LONGEST_SIDE or width * height > LARGEST_AREA:
        found = f"{width}x{height} px"
    elif across := next((tile for tile in tiles if tile[0] * tile[1] > LARGEST_TILE), None):
        found = f"tiles of {across[0]}x{across[1]} px"
    elif min(width, height) < 1:
        found = f"{width}x{height} px"
    if found:
        raise SlideUnreadableError(f"its header claims {found}, which no slide has", cure=OPEN_CURE, path=path)

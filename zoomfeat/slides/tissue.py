"""Where a slide holds tissue: coloured like a stain, large enough, and not ink.

Glass, gray smears, folds of the cover slip and missing black tiles have no colour; stains do. So tissue is what
has chroma (the largest less the smallest of R, G and B, 0 to 255) above Otsu's threshold. Chroma rather than
HSV saturation, because saturation is noise where a picture is dark. Otsu's threshold splits any picture in two,
an empty one as well, so it is held between bounds below which no stain and above which no glass was seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from zoomfeat.slides.reader import Slide

METHOD = "chroma-otsu"
"""Name of the method, for the record."""

INK_MPP = 8.0
"""um/px at which the colours of ink were told from those of stains."""

_CHROMA_BOUNDS = (10, 20)  # scanned glass stays below 10; the palest H&E and IHC tissue reaches 20
_BLUR_UM = 6.0  # about a nucleus: smooths sensor and JPEG noise
_SMALLEST_TISSUE_UM2 = 100.0**2
_LARGEST_HOLE_UM2 = 128.0**2  # one 20x patch; larger holes are lumens and glass
_SMALLEST_INK_UM2 = 32.0**2  # smaller specks are blood, pigment and sharp nuclei
_INK_HALO_UM = 32.0  # ink fades out over about this length
_STRIP = 256  # rows of the picture
_LONGEST_SIDE = 1024  # px; a slide so small that its mask has fewer is looked at more finely


@dataclass(frozen=True, eq=False)
class TissueMask:
    """Tissue of one slide, or whatever else its domain takes for foreground.

    Attributes:
        mask: bool (H, W), True where there is tissue; covers the whole slide.
        scale: level-0 pixels per mask pixel along x and y.
        kind: what it is called to people.
        method: how it was found, for the record.
    """

    mask: np.ndarray
    scale: tuple[float, float]
    kind: str = "tissue"
    method: str = METHOD

    def fraction(self, x: np.ndarray, y: np.ndarray, width: int, height: int) -> np.ndarray:
        """Share of each box that is tissue; what lies beyond the slide is none.

        Args:
            x: left edges in level-0 pixels, (N,).
            y: top edges, (N,).
            width: level-0 pixels of every box.
            height: level-0 pixels of every box.

        Returns:
            float64 (N,), 0 to 1.
        """
        left, right = x / self.scale[0], (x + width) / self.scale[0]
        top, bottom = y / self.scale[1], (y + height) / self.scale[1]
        tissue = (
            self._tissue_above_left(right, bottom)
            - self._tissue_above_left(left, bottom)
            - self._tissue_above_left(right, top)
            + self._tissue_above_left(left, top)
        )
        # Rounded, so that a box full of tissue is exactly 1.
        return np.round(tissue * (self.scale[0] * self.scale[1] / (width * height)), 6)

    @cached_property
    def _integral(self) -> np.ndarray:
        """Tissue pixels above and left of each pixel corner, int32 (H + 1, W + 1)."""
        return cv2.integral(self.mask.astype(np.uint8))

    def _tissue_above_left(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Tissue area, in mask pixels, above and left of points given in mask pixels; exact between corners."""
        height, width = self.mask.shape
        u, v = np.clip(u, 0, width), np.clip(v, 0, height)
        column, row = np.minimum(u.astype(np.int64), width - 1), np.minimum(v.astype(np.int64), height - 1)
        u, v = u - column, v - row
        above = (1 - u) * self._integral[row, column] + u * self._integral[row, column + 1]
        below = (1 - u) * self._integral[row + 1, column] + u * self._integral[row + 1, column + 1]
        return (1 - v) * above + v * below


def find_tissue(slide: Slide, mpp: float = INK_MPP) -> TissueMask:
    """The tissue of a slide, found on a thumbnail.

    Args:
        slide: an open slide.
        mpp: um/px to look at; 8 gives 16 mask pixels along a 20x patch. Small slides are looked at more finely.

    Raises:
        SlideUnreadableError: part of the slide does not decode.
    """
    longest_um = max(slide.width * slide.mpp[0], slide.height * slide.mpp[1])
    image = slide.thumbnail(min(mpp, longest_um / _LONGEST_SIDE))
    height, width = image.shape[:2]
    scale = (slide.width / width, slide.height / height)
    return TissueMask(tissue_mask(image, scale[0] * slide.mpp[0]), scale)


def tissue_mask(image: np.ndarray, mpp: float) -> np.ndarray:
    """Tissue in an overview picture.

    Args:
        image: uint8 RGB of shape (H, W, 3).
        mpp: um/px of the picture; areas are judged in um2.

    Returns:
        bool (H, W).
    """
    image = cv2.GaussianBlur(image, (0, 0), max(_BLUR_UM / mpp, 0.5))
    ink = _ink(image, mpp)
    chroma = image.max(axis=2) - image.min(axis=2)
    # Ink is far more colourful than any stain and would draw the threshold above pale tissue.
    clear = chroma[~ink].reshape(1, -1)
    otsu = cv2.threshold(clear, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)[0] if clear.size else 0
    tissue = (chroma > np.clip(otsu, *_CHROMA_BOUNDS)) & ~ink
    tissue = _without_small(tissue, _SMALLEST_TISSUE_UM2 / mpp**2)
    tissue = ~_without_small(~tissue, _LARGEST_HOLE_UM2 / mpp**2)
    return tissue & ~ink


def ink_coloured(image: np.ndarray) -> np.ndarray:
    """Pixels that have the colour of ink (green, blue, red, black) and of no stain.

    Args:
        image: uint8 RGB (H, W, 3) at about `INK_MPP`, where nuclei and pigment are too small to show.

    Returns:
        bool (H, W).
    """
    red, green, blue = (image[..., channel].astype(np.int16) for channel in range(3))
    brightest, darkest = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    chroma = brightest - darkest
    # Haematoxylin and eosin take away green first of all, and the blue counterstain of IHC is pale.
    green_or_blue = (green > red) & ((chroma > 45) | ((green - red > 15) & (green > blue - 8)))
    # Eosin and blood leave clearly more blue than green, red ink about as much, the brown of DAB less.
    redness = red - np.maximum(green, blue)
    bright_red = (redness > 45) & (blue - green < 0.4 * redness) & (blue > green - 8)
    black = (brightest < 80) & (chroma < 40)
    return green_or_blue | bright_red | black


def _ink(image: np.ndarray, mpp: float) -> np.ndarray:
    """Pen marks and missing (black) tiles with their faded edges, bool (H, W), in a blurred RGB picture."""
    # Strip by strip: on the way, colours take ten times the memory of the picture.
    coloured = np.concatenate([ink_coloured(rows) for rows in np.array_split(image, -(-len(image) // _STRIP))])
    ink = _without_small(coloured, _SMALLEST_INK_UM2 / mpp**2)
    # A distance costs the same however far the halo reaches; a dilation does not.
    distance = cv2.distanceTransform((~ink).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)
    return distance <= _INK_HALO_UM / mpp


def _without_small(mask: np.ndarray, smallest: float) -> np.ndarray:
    """The connected parts of a bool mask that have at least ``smallest`` pixels."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    large = stats[:, cv2.CC_STAT_AREA] >= smallest
    large[0] = False  # label 0 is what lies outside the mask
    return large[labels]

"""Which overviews of a raster are means of what they stand for.

Overviews may hold every n-th pixel of the image, and NAIP mosaics do. Patches cut from those would not be the area
means that patches of other images are. Files seldom say, and what they say outlives its truth when they are converted,
so some windows of an overview are compared with the image: with its means, and with single pixels of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zoomfeat.slides.resample import area_resize

_PLACES = (0.1, 0.5, 0.9)  # where windows lie along each axis
# On real aerial pixels the quotient is 0.0 to 0.4 for means and 1.5 or more for pixels; through JPEG 0.7 and 1.0.
_NEARER = 0.8
_SPAN = 128  # px of the image that a window covers, or more where an overview is very small


def true_overviews(image: Any, overview: Callable[[int], Any], bands: list[int]) -> list[int]:
    """Downsamples of the overviews that are means, finest first, up to the first that is not.

    Args:
        image: the open rasterio data set.
        overview: opens the overview of an index.
        bands: three bands that are red, green and blue.
    """
    trusted = []
    for index, factor in enumerate(image.overviews(1)):
        try:
            if not _is_mean(image, overview(index), factor, bands):
                break
        except OSError:  # damaged: reading patches will say so
            break
        trusted.append(factor)
    return trusted


def _is_mean(image: Any, overview: Any, factor: int, bands: list[int]) -> bool:
    """Whether an overview is nearer to the image's means than to its pixels. A plain image shows nothing: not."""
    ratio = image.width / overview.width, image.height / overview.height
    count = max(4, _SPAN // factor)
    from_means, from_pixels = 0.0, np.zeros(9)
    for down in _PLACES:
        for right in _PLACES:
            columns, rows = min(count, overview.width), min(count, overview.height)
            left, top = int(right * (overview.width - columns)), int(down * (overview.height - rows))
            found = _read(overview, bands, left, top, columns, rows).astype(float)
            x, y = int(left * ratio[0]), int(top * ratio[1])
            canvas = _read(
                image,
                bands,
                x,
                y,
                min(int(np.ceil((left + columns) * ratio[0])), image.width) - x,
                min(int(np.ceil((top + rows) * ratio[1])), image.height) - y,
            )
            edges = np.array([left, top, left + columns, top + rows]) * (ratio * 2) - (x, y, x, y)
            box = (float(edges[0]), float(edges[1]), float(edges[2]), float(edges[3]))
            from_means += np.abs(area_resize(canvas, box, (columns, rows)) - found).sum()
            for place, (i, j) in enumerate(np.ndindex(3, 3)):
                picked = np.ix_(
                    _picks(box[1], ratio[1], rows, i, len(canvas)),
                    _picks(box[0], ratio[0], columns, j, canvas.shape[1]),
                )
                from_pixels[place] += np.abs(canvas[picked] - found).sum()
    return bool(from_means < _NEARER * from_pixels.min())


def _picks(start: float, ratio: float, count: int, which: int, length: int) -> NDArray[np.int64]:
    """The first, a middle or the last of the pixels that each pixel of an overview covers, along one axis."""
    offset = (0.0, ratio / 2, ratio - 1)[which]
    return np.clip(np.floor(start + np.arange(count) * ratio + offset + 1e-6).astype(np.int64), 0, length - 1)


def _read(dataset: Any, bands: list[int], left: int, top: int, width: int, height: int) -> NDArray[np.uint8]:
    """A window, (height, width, 3)."""
    pixels = dataset.read(bands, window=((top, top + height), (left, left + width)))
    return np.ascontiguousarray(np.moveaxis(pixels, 0, -1))

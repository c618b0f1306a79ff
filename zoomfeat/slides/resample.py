"""Exact area means: every output pixel is the mean of what it covers, whatever the fraction."""

from __future__ import annotations

import cv2
import numpy as np


def area_resize(image: np.ndarray, box: tuple[float, float, float, float], size: tuple[int, int]) -> np.ndarray:
    """The mean colour of each cell of a grid laid over a box with fractional edges.

    OpenCV resizes whole arrays only; a pyramid level that is 3.9996 times coarser than its slide has boxes
    that begin and end within a pixel. Pixels count by the share of them that a cell covers.

    Args:
        image: uint8 of shape (H, W, C).
        box: left, top, right, bottom in pixels of ``image``; pixel i covers [i, i + 1]. Inside the image.
        size: columns and rows of the grid.

    Returns:
        uint8 of shape (rows, columns, C).
    """
    left, top, right, bottom = box
    columns, rows = size
    strips = _means_between(image, np.linspace(top, bottom, rows + 1), axis=0)
    cells = _means_between(strips, np.linspace(left, right, columns + 1), axis=1)
    return np.rint(cells).astype(np.uint8)


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A whole image at another size: area means along an axis that shrinks, linear along one that grows.

    Args:
        image: uint8 of shape (H, W, 3).
        size: width and height of the result.

    Returns:
        uint8 of shape (height, width, 3); ``image`` itself where the size is the same.
    """
    height, width = image.shape[:2]
    # INTER_AREA is an area mean only where both axes shrink, so the axis that grows waits for its own turn.
    shrunk = (min(size[0], width), min(size[1], height))
    if shrunk != (width, height):
        image = cv2.resize(image, shrunk, interpolation=cv2.INTER_AREA)
    if shrunk != size:
        image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    return image


def resize_into(image: np.ndarray, out: np.ndarray) -> None:
    """The same as `resize`, written where it is wanted.

    Args:
        image: uint8 of shape (H, W, 3).
        out: uint8 of shape (height, width, 3); each row in one piece.
    """
    height, width = out.shape[:2]
    if height <= image.shape[0] and width <= image.shape[1] and out.shape != image.shape:
        cv2.resize(image, (width, height), dst=out, interpolation=cv2.INTER_AREA)
    else:
        out[:] = resize(image, (width, height))


def _means_between(values: np.ndarray, edges: np.ndarray, axis: int) -> np.ndarray:
    """Means of ``values`` between neighbouring ``edges`` along one axis; one fewer than there are edges."""
    values = np.moveaxis(values, axis, 0)
    # Whole numbers add up exactly in 32 bits; the fractions of a second pass need 64.
    sums = np.cumsum(values, axis=0, dtype=np.int32 if values.dtype == np.uint8 else np.float64)
    last = len(values) - 1
    pixel = np.clip(np.floor(edges).astype(np.int64), 0, last)
    share = (edges - pixel).reshape(-1, *[1] * (values.ndim - 1))
    # The integral up to an edge: all pixels through the one it falls in, less the part of that one beyond it.
    integral = sums[pixel] - (1.0 - share) * values[pixel]
    lengths = np.diff(edges).reshape(share[1:].shape)
    return np.moveaxis(np.diff(integral, axis=0) / lengths, 0, axis)

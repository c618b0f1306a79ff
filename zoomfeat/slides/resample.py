"""Exact area means: every output pixel is the mean of what it covers, whatever the fraction."""

from __future__ import annotations

import math

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
    rows, columns = image.shape[:2]
    if out.shape == image.shape:
        out[:] = image
    elif height > rows or width > columns:
        out[:] = resize(image, (width, height))
    elif _is_power_of_two(rows / height) and _is_power_of_two(columns / width) and rows >= _MANY_ROWS * height:
        _sum_rows_into(image, out)
    else:
        cv2.resize(image, (width, height), dst=out, interpolation=cv2.INTER_AREA)


def halve_into(image: np.ndarray, out: np.ndarray) -> None:
    """An area mean by halves, each rounded: half the time of a single step, and up to half a grey level a halving off.

    Args:
        image: uint8 of shape (H, W, 3).
        out: uint8 of shape (height, width, 3), each row in one piece. A single step unless a power of two smaller.
    """
    height, width = out.shape[:2]
    if _is_power_of_two(image.shape[0] / height) and image.shape[0] * width == image.shape[1] * height:
        while image.shape[0] > 2 * height:
            image = cv2.resize(image, (image.shape[1] // 2, image.shape[0] // 2), interpolation=cv2.INTER_AREA)
    resize_into(image, out)


_MANY_ROWS = 8
"""Rows to a row of the result from which adding them up beats OpenCV's own mean; measured."""


def _sum_rows_into(image: np.ndarray, out: np.ndarray) -> None:
    """The area mean over whole pixels, by powers of two; to the bit what OpenCV gives, but for 2 x 2 pixels.

    OpenCV vectorises the mean of 2 x 2 pixels alone, but also the sum of images: 19 us a tile of 240 px in place of 33.
    The sums are whole numbers, exact in float32.
    """
    height, width = out.shape[:2]
    rows = image.shape[0] // height
    sums = np.zeros((height, *image.shape[1:]), np.float32)
    for row in range(rows):
        cv2.accumulate(image[row::rows], sums)
    if sums.shape[1] != width:
        sums = cv2.resize(sums, (width, height), interpolation=cv2.INTER_AREA)
    cv2.convertScaleAbs(sums, dst=out, alpha=1 / rows)


def _is_power_of_two(number: float) -> bool:
    return math.frexp(number)[0] == 0.5


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

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from zoomfeat.slides.resample import area_resize, halve_into, resize, resize_into


@st.composite
def boxes(draw: st.DrawFn) -> tuple[np.ndarray, tuple[float, float, float, float], tuple[int, int]]:
    height, width = draw(st.integers(2, 12)), draw(st.integers(2, 12))
    image = draw(arrays(np.uint8, (height, width, 3)))
    left, top = draw(st.floats(0, width - 1.5)), draw(st.floats(0, height - 1.5))
    right, bottom = draw(st.floats(left + 1, width)), draw(st.floats(top + 1, height))
    return image, (left, top, right, bottom), (draw(st.integers(1, 6)), draw(st.integers(1, 6)))


def overlaps(start: float, end: float, count: int, pixels: int) -> np.ndarray:
    """Share of each output cell (rows) that each pixel (columns) makes up."""
    edges = np.linspace(start, end, count + 1)
    pixel = np.arange(pixels)
    shared = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return np.maximum(shared, 0) / np.diff(edges)[:, None]


@settings(max_examples=100, deadline=None)
@given(boxes())
def test_equals_brute_force(case: tuple) -> None:
    image, (left, top, right, bottom), (columns, rows) = case
    down = overlaps(top, bottom, rows, image.shape[0])
    across = overlaps(left, right, columns, image.shape[1])
    expected = np.einsum("ri,ijc,kj->rkc", down, image.astype(float), across)
    got = area_resize(image, (left, top, right, bottom), (columns, rows))
    assert got.shape == (rows, columns, 3)
    assert np.abs(got - expected).max() <= 0.5 + 1e-6


@settings(max_examples=50, deadline=None)
@given(boxes(), st.integers(0, 255))
def test_a_constant_stays_constant(case: tuple, value: int) -> None:
    image, box, size = case
    assert (area_resize(np.full_like(image, value), box, size) == value).all()


@settings(max_examples=50, deadline=None)
@given(boxes())
def test_the_mean_is_kept(case: tuple) -> None:
    image, box, size = case
    whole = area_resize(image, box, (1, 1)).astype(float)
    assert np.abs(area_resize(image, box, size).mean(axis=(0, 1)) - whole).max() <= 1


@pytest.mark.parametrize("size", [(257, 129), (64, 64), (256, 32), (300, 40), (100, 140), (280, 140)])
def test_resize_of_each_axis_by_itself(size: tuple[int, int]) -> None:
    ramp = np.arange(257, dtype=np.float64)[None, :, None] / 257 * 200 + np.arange(129)[:, None, None] / 129 * 50
    image = np.repeat(np.rint(ramp), 3, axis=2).astype(np.uint8)
    x, y = (np.arange(size[0]) + 0.5) / size[0] * 257 - 0.5, (np.arange(size[1]) + 0.5) / size[1] * 129 - 0.5
    expected = np.clip(x, 0, 256)[None, :] / 257 * 200 + np.clip(y, 0, 128)[:, None] / 129 * 50
    assert np.abs(resize(image, size)[..., 0] - expected).max() <= 1.5


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_sums_of_rows_equal_the_mean_of_opencv(data: st.DataObject) -> None:
    across, down = 2 ** data.draw(st.integers(0, 5)), 2 ** data.draw(st.integers(3, 5))
    width, height = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    around = data.draw(arrays(np.uint8, (height * down + 2, width * across + 3, 3)))
    image, out = around[1:-1, 2:-1], np.zeros((height + 1, width + 1, 3), np.uint8)
    resize_into(image, out[1:, 1:])
    assert np.array_equal(out[1:, 1:], cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA))
    assert not out[0].any()
    assert not out[:, 0].any()


@pytest.mark.parametrize("size", [(64, 64), (32, 32), (256, 256), (8, 8), (64, 32), (50, 50)])
def test_halving_is_a_mean_within_half_a_grey_level_a_step(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    out = np.zeros((size[1], size[0], 3), np.uint8)
    halve_into(image, out)
    expected = cv2.resize(image.astype(np.float64), size, interpolation=cv2.INTER_AREA)
    assert np.abs(out - expected).max() <= 0.5 * max(1, math.log2(256 / min(size)))

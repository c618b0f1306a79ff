"""Heatmaps lie on the slide to the pixel, also in the far corner of a large slide with odd pyramid levels."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from mil.attention import ScaleAttention
from mil.heatmap import blend, colour_table, draw_heatmap, patch_colours, picture_size, pixel_boxes, value_range
from zoomfeat.errors import ConfigurationError
from zoomfeat.slides import Slide


def scale_of(coords: list, size: tuple[int, int] = (256, 256), attention: list | None = None) -> ScaleAttention:
    values = np.arange(len(coords), dtype=np.float64) if attention is None else np.array(attention, dtype=np.float64)
    return ScaleAttention("20x", np.array(coords, dtype=np.int64), size, values)


def extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of what is true; right and bottom exclusive."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@pytest.fixture(scope="module")
def odd_slide(tmp_path_factory) -> tuple[Path, list]:
    """White, 8011 x 6029 px, with dark patches in three corners; level 1 is 4.0075 and 4.0007 times coarser."""
    patches = [[0, 0], [7680, 256], [7424, 5632]]
    level = np.full((6029, 8011, 3), 255, np.uint8)
    for x, y in patches:
        level[y : y + 256, x : x + 256] = 40
    path = tmp_path_factory.mktemp("odd") / "odd.tiff"
    with tifffile.TiffWriter(path) as tiff:
        for step, size in enumerate(((8011, 6029), (1999, 1507))):
            tiff.write(
                cv2.resize(level, size, interpolation=cv2.INTER_AREA), subfiletype=int(step > 0), photometric="rgb",
                tile=(256, 256), compression="deflate", resolution=(2e4, 2e4), resolutionunit="CENTIMETER",
                metadata=None,
            )  # fmt: skip
    return path, patches


@pytest.mark.parametrize("longest", [1999, 1000, 3500, 1234])
def test_far_corner_of_a_slide_with_an_odd_downsample(odd_slide, longest):
    path, patches = odd_slide
    with Slide.open(path) as slide:
        level0 = (slide.width, slide.height)
        size = picture_size(level0, longest)
        thumbnail = slide.read(0, 0, *level0, [size])[0]
    scale = scale_of(patches)
    opaque = draw_heatmap(scale, level0, size)[..., 3] == 255
    dark = thumbnail.mean(axis=2) < 150
    for left, top, right, bottom in pixel_boxes(scale, level0, size):
        around = np.s_[max(0, top - 8) : bottom + 8, max(0, left - 8) : right + 8]
        np.testing.assert_allclose(extent(opaque[around]), extent(dark[around]), atol=1)
    assert (opaque != dark).mean() < 0.002  # at most the rims


@pytest.mark.shared_data
@pytest.mark.parametrize("longest", [2048, 1999, 1471])
def test_far_end_of_a_real_large_slide(shared, longest):
    with Slide.open(shared / "slides" / "pyramid_mask_15360x23552.tiff") as slide:
        level0 = (slide.width, slide.height)
        # The content is a label mask; its last labelled part lies past 22,000 px.
        labels = slide.read(9216, 21504, 4096, 2048, [(4096, 2048)])[0].max(axis=2) > 0
        left, top, right, bottom = extent(labels)
        size = picture_size(level0, longest)
        thumbnail = slide.read(0, 0, *level0, [size])[0].max(axis=2) > 0
    box = scale_of([[9216 + left, 21504 + top]], (right - left, bottom - top))
    assert bottom + 21504 > 22000
    opaque = draw_heatmap(box, level0, size)[..., 3] == 255
    found = thumbnail.copy()
    first_row, first_column = round(21504 * size[1] / level0[1]), round(9216 * size[0] / level0[0])
    found[: first_row + 1] = False
    found[:, : first_column + 1] = False
    # An area mean of a label below one half rounds to none: the rim may be a pixel narrower.
    np.testing.assert_allclose(extent(opaque), extent(found), atol=1)


@given(
    level0=st.tuples(st.integers(600, 200_000), st.integers(600, 200_000)),
    longest=st.integers(64, 4096),
    unit=st.integers(64, 1100),
)
def test_neighbours_share_their_edge_and_nothing_drifts(level0, longest, unit):
    size = picture_size(level0, longest)
    columns, rows = -(-level0[0] // unit), -(-level0[1] // unit)
    across = pixel_boxes(scale_of([[column * unit, 0] for column in range(columns)], (unit, unit)), level0, size)
    down = pixel_boxes(scale_of([[0, row * unit] for row in range(rows)], (unit, unit)), level0, size)
    for boxes, axis in ((across, 0), (down, 1)):
        starts, ends = boxes[:, axis], boxes[:, axis + 2]
        if unit * size[axis] / level0[axis] >= 1:  # patches of a pixel or more
            np.testing.assert_array_equal(starts[1:], np.minimum(ends[:-1], size[axis] - 1))
        exact = np.arange(len(boxes)) * unit * size[axis] / level0[axis]
        assert np.abs(starts - np.minimum(exact, size[axis] - 1)).max() <= 0.5 + 1e-6
        assert starts[0] == 0
        assert ends[-1] == size[axis]


def test_every_value_has_its_colour():
    scale = scale_of([[0, 0], [256, 0], [512, 0]], attention=[0.2, 0.5, 0.3])
    table = colour_table()
    np.testing.assert_array_equal(patch_colours(scale, "attention")[:2], table[[0, 255]])
    np.testing.assert_array_equal(patch_colours(scale), table[np.rint(scale.percentile / 100 * 255).astype(int)])
    assert value_range(scale, "percentile") == (0, 100)
    assert value_range(scale, "attention") == (0.2, 0.5)
    np.testing.assert_array_equal(patch_colours(scale_of([[0, 0]], attention=[1.0]), "attention"), table[[128]])
    with pytest.raises(ConfigurationError, match="percentile, attention"):
        patch_colours(scale, "rank")


def test_the_strongest_shows_where_patches_share_a_pixel():
    scale = scale_of([[0, 0], [10, 0], [0, 10]], (10, 10), attention=[3, 1, 2])
    picture = draw_heatmap(scale, (1000, 1000), (10, 10))
    np.testing.assert_array_equal(picture[0, 0, :3], patch_colours(scale)[0])
    assert (picture[..., 3] > 0).sum() == 1


def test_blend_leaves_the_slide_alone_beside_patches():
    thumbnail = np.full((10, 20, 3), 200, np.uint8)
    heatmap = draw_heatmap(scale_of([[0, 0]], (100, 100)), (200, 100), (20, 10))
    blended = blend(thumbnail, heatmap, 0.5)
    assert (blended[:, 10:] == 200).all()
    np.testing.assert_allclose(blended[0, 0], (200 + heatmap[0, 0, :3].astype(float)) / 2, atol=0.5)
    np.testing.assert_array_equal(blend(thumbnail, heatmap, 0.0), thumbnail)

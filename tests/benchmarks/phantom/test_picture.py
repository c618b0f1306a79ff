"""What is planted differs in the way that it says, and in no easier way."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from benchmarks.phantom.fields import resampled, tile_noise
from benchmarks.phantom.glands import pack
from benchmarks.phantom.nuclei import LARGE, SMALL, epithelial, paint
from benchmarks.phantom.stain import STAINS, to_rgb

_CIRCLE = 440 * np.stack([np.cos(a := np.linspace(0, 2 * np.pi, 60, endpoint=False)), np.sin(a)], axis=1) + 460


def _drawn(polygons):
    canvas = np.zeros((920, 920), np.uint8)
    for polygon in polygons:
        cv2.fillPoly(canvas, [np.round(polygon).astype(np.int32)], 1)
    return canvas


def _shares(nested, seeds=6):
    """Mean share of epithelium and of lumen, radius of a unit, and how much stroma windows of 128 um differ by."""
    rows = []
    inside = cv2.erode(_drawn([_CIRCLE]), np.ones((129, 129))) > 0
    for seed in range(seeds):
        glands = pack(np.random.default_rng(seed), _CIRCLE, large_nuclei=False, nested=nested)
        solid, lumen = _drawn(glands.wall()), _drawn(glands.lumen_edge())
        within = _drawn([_CIRCLE]).sum()
        windows = cv2.blur(solid.astype(np.float32), (128, 128))[inside]
        rows.append(
            [(solid - lumen * solid).sum() / within, lumen.sum() / within, glands.outline.mean(), windows.std()]
        )
    return np.mean(rows, axis=0)


def test_nested_and_even_glands_differ_in_arrangement_and_not_in_what_is_there():
    even, nested = _shares(False), _shares(True)
    np.testing.assert_allclose(nested[:3], even[:3], rtol=0.15)
    assert nested[3] > 2 * even[3]  # nests and bands between them


def _nuclei(large):
    """Share of an area that nuclei cover, and its haematoxylin."""
    rng = np.random.default_rng(1)
    glands = pack(rng, _CIRCLE, large_nuclei=large, nested=False)
    cover, density = np.zeros((1840, 1840), np.float32), np.zeros((1840, 1840), np.float32)
    for nuclei in epithelial(rng, glands, scale=1):
        paint(rng, nuclei, 1, 0.5, cover, density)
    return float(cover.mean()), float(density.mean())


def test_large_nuclei_are_fewer_and_paler_by_as_much_as_they_are_larger():
    assert LARGE.radius_um > 1.3 * SMALL.radius_um
    assert LARGE.contrast > 4 * SMALL.contrast
    (small_cover, small_density), (_, large_density) = _nuclei(False), _nuclei(True)
    assert small_cover > 0.05
    assert large_density == pytest.approx(small_density, rel=0.12)


def test_one_picture_at_two_pixel_sizes_shows_the_same():
    field = cv2.GaussianBlur(np.random.default_rng(0).normal(size=(96, 128)).astype(np.float32), (0, 0), 4)
    fine = resampled(field, 0.25, 0, (384, 512))
    back = cv2.resize(fine, (128, 96), interpolation=cv2.INTER_AREA)
    np.testing.assert_allclose(back[2:-2, 2:-2], field[2:-2, 2:-2], atol=0.01)
    np.testing.assert_array_equal(resampled(field, 0.25, 100, (60, 512)), fine[100:160])


def test_tiles_repeat_without_a_seam():
    tile = tile_noise(np.random.default_rng(0), 128, (3, 3))
    step = np.abs(np.diff(np.vstack([tile, tile[:1]]), axis=0)).max(1)
    assert step[-1] < 1.5 * step[:-1].max()
    assert tile.std() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("stain", sorted(STAINS))
def test_stains_absorb_as_beer_and_lambert_say(stain):
    none, one = np.zeros((1, 1), np.float32), np.ones((1, 1), np.float32)
    glass, once, twice = (to_rgb(amount, none, stain)[0, 0] for amount in (none, one, 2 * one))
    np.testing.assert_allclose(once / glass, twice / once, rtol=1e-5)
    assert to_rgb(one, none, stain)[0, 0, 0] < to_rgb(none, one, stain)[0, 0, 0]  # eosin lets red through

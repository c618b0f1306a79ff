"""What is planted differs in the way that it says, and in no easier way."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from benchmarks.phantom.fields import resampled, tile_noise
from benchmarks.phantom.growth import CORDS_UM, grow
from benchmarks.phantom.nuclei import SMOOTH, VESICULAR, Nuclei, paint
from benchmarks.phantom.stain import STAINS, to_rgb

_ROUND = np.hypot(*(np.mgrid[:920, :920] - 460)) < 440  # a lesion at 1 um/px


def _cords(broad, seeds=4):
    return [grow(np.random.default_rng(seed), _ROUND, broad=broad, scale=1).cords for seed in range(seeds)]


def _width(cords):
    """Half of the wavelength that divides the variance in two halves, in um."""
    square = cords[160:760, 160:760] * np.outer(np.hanning(600), np.hanning(600))
    power = np.abs(np.fft.rfft2(square)).ravel() ** 2
    frequency = np.hypot(np.fft.fftfreq(600)[:, None], np.fft.rfftfreq(600)[None]).ravel()
    order = np.argsort(frequency)
    share = np.cumsum(power[order]) / power.sum()
    return 0.5 / frequency[order][np.searchsorted(share, 0.5)]


@pytest.mark.parametrize("broad", [False, True])
def test_cords_are_as_wide_as_they_say_and_run_in_all_directions(broad):
    for cords in _cords(broad):
        assert _width(cords) == pytest.approx(CORDS_UM[broad], rel=0.12)
        down, across = (np.diff(cords[160:760, 160:760], axis=axis).std() for axis in (0, 1))
        assert down == pytest.approx(across, rel=0.25)


def test_narrow_and_broad_cords_have_the_same_cells():
    inside = cv2.erode(_ROUND.astype(np.uint8), np.ones((129, 129))) > 0
    shades, windows = {}, {}
    for broad in (False, True):
        cords = _cords(broad)
        shades[broad] = [np.percentile(each[_ROUND], [5, 25, 50, 75, 95]) for each in cords]
        windows[broad] = np.mean([cv2.blur(each, (128, 128))[inside].std() for each in cords])
        assert all((each[~_ROUND] == 0).all() for each in cords)
    np.testing.assert_allclose(shades[True], shades[False], atol=1e-4)
    # A patch of 20x is about as dark as any other in both: shades within a lesion deviate by 0.58.
    assert windows[False] < windows[True] < 0.17


def test_as_many_cells_lie_in_either_architecture():
    narrow, broad = (
        len(grow(np.random.default_rng(0), _ROUND, broad=broad, scale=1).places) for broad in (False, True)
    )
    assert narrow == pytest.approx(broad, rel=0.02)


def _nuclei(kind):
    """Share of an area that nuclei cover, and its haematoxylin."""
    rng = np.random.default_rng(1)
    places = grow(rng, _ROUND, broad=False, scale=1).places
    cover, density = np.zeros((1840, 1840), np.float32), np.zeros((1840, 1840), np.float32)
    paint(rng, Nuclei(kind, places, rng.uniform(0, np.pi, len(places))), 1, 0.5, cover, density)
    return float(cover.mean()), float(density.mean())


def test_nuclei_differ_in_chromatin_and_not_in_size_or_haematoxylin():
    assert VESICULAR.contrast > 4 * SMOOTH.contrast
    np.testing.assert_allclose(_nuclei(VESICULAR), _nuclei(SMOOTH), rtol=0.12)


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

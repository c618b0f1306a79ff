"""Slides, labels and truth as files: they open, agree, and are the same every time."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil

import cv2
import numpy as np
import openslide
import pandas as pd
import pytest

from benchmarks.phantom import SlidePlan, Truth, lesion_mask, plan_cohort, write_cohort
from benchmarks.phantom.__main__ import main
from benchmarks.phantom.slide import draw_slide
from benchmarks.phantom.truth import PlantedLesion
from zoomfeat.errors import ConfigurationError
from zoomfeat.slides.reader import Slide
from zoomfeat.slides.tissue import find_tissue


def _truths(cohort):
    return [Truth.load(path) for path in sorted((cohort / "truth").iterdir())]


def test_labels_slides_and_truth_are_of_the_same_slides(cohort):
    table = pd.read_csv(cohort / "labels.csv").set_index("slide_id")
    assert sorted(path.stem for path in (cohort / "slides").iterdir()) == sorted(table.index)
    for truth in _truths(cohort):
        row = table.loc[truth.slide_id]
        assert row.label == truth.label == int(any(lesion.target for lesion in truth.lesions))
        assert row.vesicular_nuclei == int(any(lesion.vesicular_nuclei for lesion in truth.lesions))
        assert row.broad_cords == int(any(lesion.broad_cords for lesion in truth.lesions))
        assert row.mpp == truth.mpp
        assert row.group == truth.group
    assert set(table.label) == {0, 1}


def test_slides_are_pyramids_with_microns_per_pixel(cohort):
    for truth in _truths(cohort):
        path = cohort / "slides" / f"{truth.slide_id}.tiff"
        with openslide.OpenSlide(path) as slide:
            assert slide.level_count == 3
            assert slide.level_downsamples == (1, 4, 16)
            assert slide.dimensions == (truth.width, truth.height)
        with Slide.open(path) as slide:
            assert slide.mpp == pytest.approx((truth.mpp, truth.mpp), rel=1e-4)


def test_every_slide_says_that_it_is_synthetic(cohort):
    assert "SYNTHETIC" in (cohort / "README.txt").read_text()
    for truth in _truths(cohort):
        with openslide.OpenSlide(cohort / "slides" / f"{truth.slide_id}.tiff") as slide:
            assert "SYNTHETIC" in slide.properties["tiff.ImageDescription"]
            height = int(80 / truth.mpp)
            corner = slide.read_region((0, truth.height - height), 0, (int(1500 / truth.mpp), height))
        grey = np.asarray(corner.convert("RGB")).astype(int)
        ink = (np.abs(grey - 120) < 25).all(-1)
        assert 0.03 < ink.mean() < 0.3  # words, and not a bar
        assert "SYNTHETIC" in json.loads((cohort / "truth" / f"{truth.slide_id}.json").read_text())["note"]


def test_tissue_is_found_where_it_was_drawn(cohort):
    for truth in _truths(cohort):
        with Slide.open(cohort / "slides" / f"{truth.slide_id}.tiff") as slide:
            tissue = find_tissue(slide)
        assert 0.6 < tissue.mask.mean() < 0.8
        words = tissue.mask[-int(70 / truth.mpp / tissue.scale[1]) :]
        assert words.mean() < 0.01
        side = round(128 / truth.mpp)
        for lesion in truth.lesions:
            middle = np.mean(lesion.polygon, axis=0) - side / 2
            steps = np.arange(-1, 2) * side
            x, y = (middle[0] + steps).repeat(3), np.tile(middle[1] + steps, 3)
            assert tissue.fraction(x, y, side, side).min() > 0.9


def _middle(image, lesion, mpp):
    """The square of 340 um in the middle of the lesion, in red light, which eosin lets through."""
    left, top = np.round((lesion.polygon.mean(0) - 170) / mpp).astype(int)
    side = round(340 / mpp)
    return image[top : top + side, left : left + side, 0].astype(np.float32)


@pytest.mark.parametrize("stain", ["A", "C"])
def test_chromatin_measured_on_the_picture_is_coarse_where_planted(stain):
    grain = {}
    for group in ("nuclei", "neither"):
        plan = SlidePlan("slide", "patient", group, (5,), stain=stain)
        image, layout = draw_slide(plan)
        assert layout.lesion.vesicular_nuclei == (group == "nuclei")
        red = _middle(image, layout.lesion, plan.mpp)
        inside = cv2.erode((cv2.GaussianBlur(red, (0, 0), 2) < np.median(red)).astype(np.uint8), np.ones((5, 5))) > 0
        grain[group] = float((red - cv2.GaussianBlur(red, (0, 0), 3))[inside].std())
    assert grain["nuclei"] > 1.5 * grain["neither"], grain


def test_the_plan_decides_how_dark_nuclei_are_and_how_far_cords_differ():
    plan = SlidePlan("slide", "patient", "both", (5,))

    def red(**changes):
        image, layout = draw_slide(dataclasses.replace(plan, **changes))
        return _middle(image, layout.lesion, plan.mpp)

    assert red(chromasia=1.2).mean() < red().mean() - 2
    calm, strong = (cv2.GaussianBlur(red(cord_contrast=c), (0, 0), 30).std() for c in (0.0, 0.5))
    assert strong > 1.2 * calm


def test_slides_are_the_same_whatever_the_workers_and_a_killed_run_goes_on(cohort, tmp_path):
    shutil.copytree(cohort, tmp_path / "again")
    slides = sorted((tmp_path / "again" / "slides").iterdir())
    kept, gone = slides[0], slides[1:3]
    before = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in slides}
    gone[0].unlink()
    (tmp_path / "again" / "truth" / f"{gone[1].stem}.json").unlink()
    (tmp_path / "again" / "labels.csv").unlink()
    changed = kept.stat().st_mtime_ns
    write_cohort(tmp_path / "again", slides=4, seed=3, workers=2)
    assert kept.stat().st_mtime_ns == changed
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in slides} == before
    for part in ("labels.csv", f"truth/{gone[1].stem}.json"):
        assert (tmp_path / "again" / part).read_bytes() == (cohort / part).read_bytes()


def _truth(lesions):
    return Truth("slide", 4096, 2048, 0.5, 1, "both", lesions)


def _square(left, top, side, target=True):
    right, bottom = left + side, top + side
    polygon = [(left, top), (right, top), (right, bottom), (left, bottom)]
    return PlantedLesion(True, target, target, (left, top, right, bottom), polygon)


def test_the_share_of_a_patch_that_is_lesion():
    truth = _truth([_square(512, 512, 512), _square(2048, 512, 512, target=False)])
    coords = np.array([[512, 512], [384, 512], [384, 384], [0, 0], [2048, 512], [3900, 1900]])
    shares = lesion_mask(truth, coords, 256)
    np.testing.assert_allclose(shares, [1, 0.5, 0.25, 0, 0, 0], atol=0.02)
    everything = lesion_mask(truth, coords, 256, targets_only=False)
    np.testing.assert_allclose(everything, [1, 0.5, 0.25, 0, 1, 0], atol=0.02)


def test_only_positive_slides_have_lesion_patches(cohort):
    for truth in _truths(cohort):
        x, y = np.meshgrid(np.arange(0, truth.width, 256), np.arange(0, truth.height, 256))
        shares = lesion_mask(truth, np.stack([x.ravel(), y.ravel()], axis=1), 256)
        assert (shares.max() == 1) == bool(truth.label)


def test_truth_survives_a_file_and_other_files_are_refused(tmp_path):
    truth = _truth([_square(10.5, 20.0, 300.0)])
    truth.save(tmp_path / "slide.json")
    assert Truth.load(tmp_path / "slide.json") == truth
    (tmp_path / "other.json").write_text('{"slides": 3}')
    for name in ("other.json", "missing.json"):
        with pytest.raises(ConfigurationError, match=f"{name}.*no truth of a phantom slide"):
            Truth.load(tmp_path / name)


def test_the_command_refuses_a_cohort_that_is_none(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["phantom", str(tmp_path), "--slides", "2"])
    assert main() == 1
    assert "expected at least 4" in capsys.readouterr().err
    assert len(plan_cohort(4)) == 4


def test_another_cohort_in_the_folder_is_refused(cohort, tmp_path):
    shutil.copy(cohort / "README.txt", tmp_path / "README.txt")
    with pytest.raises(ConfigurationError, match="holds another cohort"):
        write_cohort(tmp_path, 4, seed=99, workers=1)
    assert not (tmp_path / "slides").exists()

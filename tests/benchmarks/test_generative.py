"""Tasks of generation, run on zoomldm-tiny and tissue that the test draws; names of distances; bad input."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from benchmarks.generative import find_regions, ranked_by
from benchmarks.recomputation import differing_metrics, recomputed
from benchmarks.record import load_records
from benchmarks.results import published_of
from benchmarks.tasks import load_task
from zoomfeat.cli import main
from zoomfeat.errors import ConfigurationError
from zoomfeat.magnification import BRCA
from zoomfeat.slides.synthetic import draw_tissue, make_slide


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    """Twelve 20x patches of synthetic tissue in ``patches/20x``."""
    folder = tmp_path_factory.mktemp("patches")
    (folder / "20x").mkdir()
    image = draw_tissue((2048, 1536), 0.5, 3)
    for number in range(12):
        x, y = 256 * (number % 4 + 2), 256 * (number // 4 + 1)
        Image.fromarray(np.ascontiguousarray(image[y : y + 256, x : x + 256])).save(folder / "20x" / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """A folder with one synthetic slide, in whose middle a 5x region is all tissue."""
    folder = tmp_path_factory.mktemp("slides")
    make_slide(folder / "a.tiff", seed=1, size=(3072, 2048))
    return folder


def test_a_distance_over_another_network_is_another_metric_of_another_version():
    task = load_task("patch_generation")
    assert ranked_by(task, "inception-v3") == task
    other = ranked_by(task, "uni")
    assert other.metric == "Frechet distance (uni)"
    assert other.version != task.version
    assert {each.metric for each in other.published} == {"fid"}  # what was published stays what it was
    assert ranked_by(load_task("superres"), "uni") == load_task("superres")


def test_patches_are_drawn_held_against_real_ones_and_kept(patches, tmp_path, capsys):
    words = ["benchmark", "task=patch_generation", "model=zoomldm-tiny", f"data={patches}", "magnifications=[20x]",
             "images=3", "steps=2", f"out={tmp_path}", "site=false"]  # fmt: skip
    assert main(words) == 0
    (record,) = load_records(tmp_path / "patch_generation" / "records")
    assert record.head is None
    assert not differing_metrics(record.metrics, recomputed(record))
    assert record.metrics[record.task.metric].value > 0
    assert "fid" not in record.metrics
    task = ranked_by(load_task("patch_generation"), "efficientnet-lite0")
    assert published_of(task, record, record.task.metric) is None
    assert any("biased" in note for note in record.configuration["notes"])
    assert record.encoder.parameters > 1e6
    text = capsys.readouterr().out
    assert "6.77" in text
    assert "trained on few pictures" in text
    assert main(words) == 0
    assert "done before" in capsys.readouterr().out


@pytest.mark.slow
def test_superres_measures_every_region_by_every_method(slide, tmp_path, capsys):
    words = ["benchmark", "task=superres", "model=zoomldm-tiny", f"data={slide}", "heads=[bicubic]", "images=1",
             f"out={tmp_path}", "site=false"]  # fmt: skip
    assert main(words) == 0
    (record,) = load_records(tmp_path / "superres" / "records")
    (image,) = record.predictions
    assert image.of == "image"
    assert 0.5 < image.values["ssim"] <= 1
    assert record.metrics["psnr"].value == image.values["psnr"] > 20
    assert record.metrics["cosine similarity (efficientnet-lite0)"].value > 0.5
    assert "0.609" in capsys.readouterr().out


def test_regions_lie_in_tissue_and_are_counted(slide):
    (region,) = find_regions(slide, BRCA["5x"], 1)
    assert (region.x % 1024, region.y % 1024) == (0, 0)
    with pytest.raises(ConfigurationError, match="99 were asked for"):
        find_regions(slide, BRCA["5x"], 99)


@pytest.mark.parametrize(
    ("words", "message", "code"),
    [
        (["task=superres", "model=zoomldm-tiny"], "needs data=", 2),
        (["task=superres", "model=zoomldm-huge", "data=."], "no model 'zoomldm-huge'", 2),
        (["task=superres", "model=zoomldm-tiny", "data=.", "heads=[sharpen]"], "no method 'sharpen'", 1),
        (["task=superres", "model=zoomldm-tiny", "data=.", "magnifications=[10x]"], "is from 5x", 1),
        (["task=patch_generation", "model=zoomldm-tiny", "data=.", "magnifications=[5x]"], "no such folder of real", 1),
        (["task=patch_generation", "model=zoomldm-tiny", "data=.", "images=2"], "need at least 3", 1),
    ],
)
def test_bad_input_is_named(tmp_path, monkeypatch, capsys, words, message, code):
    monkeypatch.chdir(tmp_path)
    assert main(["benchmark", *words, "site=false"]) == code
    found = capsys.readouterr()
    assert message in found.out + found.err


@pytest.mark.slow
@pytest.mark.timeout(1800)  # minutes of sampling, on a machine that may be busy
def test_large_images_are_timed_and_their_crops_compared(slide, tmp_path):
    words = ["benchmark", "task=large_image", "model=zoomldm-tiny", f"data={slide}", "magnifications=[5x]", "images=1",
             "steps=2", f"out={tmp_path}", "site=false"]  # fmt: skip
    assert main(words) == 0
    (record,) = load_records(tmp_path / "large_image" / "records")
    assert record.metrics["seconds"].value > 0
    assert record.metrics["crop Frechet distance (efficientnet-lite0)"].value > 0
    assert record.task.metric == "crop Frechet distance (efficientnet-lite0)"

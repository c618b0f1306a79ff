"""Measurements of generation: held-out tissue, results that go on after a kill, and one that runs to its end."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.generation import consistency, inversion, large, pictures, superres
from benchmarks.generation.regions import _mirrored, held_out_pictures, load, regions_at, test_patches, whole_pictures
from benchmarks.generation.results import Results
from benchmarks.generation.tables import filled
from benchmarks.tiny.images import is_held_out
from generation.pipelines.joint import JointMultiScalePipeline
from tests.generation.conftest import EMBEDDING_DIM, small_bundle
from zoomfeat.magnification import BRCA

test_patches.__test__ = False  # a function that pytest would take for a test


def test_results_go_on_only_with_the_same_settings(tmp_path, capsys):
    path = tmp_path / "new" / "a.json"
    results = Results.open(path, {"steps": 5, "sizes": (1, 2)})
    results.add({"way": "a", "value": 1.0})
    results.add({"way": "b", "value": 2.0})
    again = Results.open(path, {"steps": 5, "sizes": (1, 2)})
    assert again.rows == results.rows
    assert again.find(way="b") == [{"way": "b", "value": 2.0}]
    assert Results.open(path, {"steps": 6, "sizes": (1, 2)}).rows == []
    again.report(("way", "value"), [("a", "1"), ("b", "2")], ["a note"])
    assert "a note" in capsys.readouterr().out
    text = path.with_suffix(".md").read_text()
    assert text.startswith("| way | value |\n| --- | --- |\n| a | 1 |\n| b | 2 |\n")
    assert "- a note" in text
    assert "steps 5" in text


def test_denoiser_calls_are_counted_as_the_pipeline_does():
    pipe = JointMultiScalePipeline(**small_bundle().components)
    pipe.set_progress_bar_config(disable=True)
    grid = torch.randn(EMBEDDING_DIM, 2, 2, generator=torch.Generator().manual_seed(0))
    for way in consistency.ways(1):
        watch, seen = consistency._JointPass(way.calls * 4 * 2 + 2), []

        def progress(done: int, total: int, watch=watch, seen=seen) -> None:
            watch(done, total)
            seen.append((done, total))

        pipe.sample(grid, "10x", num_inference_steps=2, seam_start=300, progress=progress, **way.options)
        assert watch.seconds > 0, way.name
        assert seen[-1][0] == seen[-1][1]
        if way.name == "forward passes only":
            assert seen[-1][1] == large.passes("10x", 2, 1, 300)


def test_a_picture_is_continued_by_its_mirror_image():
    image = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    found = _mirrored(image, 5)
    assert found.shape == (5, 5, 3)
    np.testing.assert_array_equal(found[:2, 3:], image[:, ::-1][:, :2])
    np.testing.assert_array_equal(found[2:4], found[1::-1])
    assert _mirrored(image, 2).shape == (2, 2, 3)


@pytest.mark.shared_data
def test_tissue_is_held_out_and_embedded_patch_by_patch(shared):
    pipe = load("zoomldm-tiny")
    names = [name for name, _ in held_out_pictures(shared)]
    assert len(names) == 4
    assert all(map(is_held_out, names))
    patches = [name for name, _ in test_patches(shared)]
    assert len(set(patches)) == 60
    assert [name.split("/")[0] for name in patches[:4]] == ["LUAD", "LUSC"] * 2
    regions = whole_pictures(pipe, shared, 2)
    assert [region.image.shape for region in regions] == [(512, 512, 3), (256, 512, 3)]
    assert [region.embeddings.shape[1:] for region in regions] == [(2, 2), (1, 2)]
    encoder = pipe.embedding_encoder().at(BRCA.steps[0])
    expected = encoder(np.array(regions[0].image[None, 256:, :256]))[0]
    torch.testing.assert_close(regions[0].embeddings[:, 1, 0], torch.from_numpy(expected), rtol=1e-4, atol=1e-4)
    (coarse,) = regions_at(pipe, shared, BRCA["5x"], 1)
    assert coarse.image.shape == (1024, 1024, 3)
    with pytest.raises(SystemExit, match="4 such regions; 5"):
        regions_at(pipe, shared, BRCA["10x"], 5)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # minutes of sampling, on a machine that may be busy
@pytest.mark.shared_data
def test_every_measurement_runs_to_its_end_and_goes_on(shared, tmp_path, monkeypatch, capsys):
    """With the weights that ship and as little work as each allows."""
    short = {
        consistency: [
            "--regions",
            "1",
            "--steps",
            "1",
            "--pulls",
            "1",
            "--seams",
            "1",
            "--threads",
            "1",
            "--compared",
            "1",
        ],
        inversion: ["--patches", "2", "--coarse", "1", "--steps", "2", "--timesteps", "1", "--noises", "1"],
        superres: ["--regions", "2", "--steps", "1", "--pulls", "1", "--inversion-steps", "2"],
    }
    for module, words in short.items():
        out = tmp_path / f"{module.__name__.rsplit('.', 1)[1]}.json"
        command = ["measure", str(shared), *words, "--out", str(out)]
        monkeypatch.setattr(sys, "argv", command)
        module.main()
        rows = json.loads(out.read_text())["rows"]
        assert all(np.isfinite(value) for row in rows for value in row.values() if isinstance(value, float))
        table = out.with_suffix(".md").read_text()
        module.main()
        assert json.loads(out.read_text())["rows"] == rows, "nothing is measured again"
        assert out.with_suffix(".md").read_text() == table
    out = tmp_path / "large.json"
    words = ["--guide", "10x", "--steps", "4", "--pulls", "0", "--keep", str(tmp_path / "kept"), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["measure", *words])
    large.main()
    (row,) = json.loads(out.read_text())["rows"]
    assert (row["width"], row["mpp"], row["identical"]) == (512, pytest.approx(0.5), True)
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {"10x-0000.tiff", "preview.png"}
    monkeypatch.setattr(
        sys, "argv", ["pictures", str(shared), str(tmp_path / "docs"), "--steps", "1", "--only", "variations"]
    )
    pictures.main()
    with Image.open(tmp_path / "docs" / "generation-variations.jpg") as sheet:
        assert sheet.width > 6 * 256


def test_guides_take_the_tables_that_there_are(tmp_path):
    (tmp_path / "large.md").write_text("| a |\n")
    guide = "x\n<!-- results: {} -->\nold\n<!-- end of results -->\ny\n"
    assert filled(guide.format("large"), tmp_path) == guide.format("large").replace("old", "| a |")
    assert filled(guide.format("other"), tmp_path) == guide.format("other")

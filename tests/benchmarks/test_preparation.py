"""The benchmark compares two ways that give the same rows, and keeps what it measured."""

from __future__ import annotations

import json

from benchmarks.speed import preparation
from generation.prepare import Tools
from zoomfeat.conf.compose import compose_config
from zoomfeat.slides import SlideEntry
from zoomfeat.slides.synthetic import make_slide


def test_both_ways_make_the_same_number_of_patches(tmp_path):
    slide = SlideEntry("slide", tmp_path / "slide.tiff")
    make_slide(slide.path, seed=0, size=(1024, 1024))
    (tmp_path / "set").mkdir()
    words = [f"slides={slide.path}", f"out={tmp_path / 'set'}", "ssl_encoder=color-stats", "magnifications=[20x,5x]"]
    config = compose_config("prepare", words)
    together, separate = preparation.measure(slide, config, Tools.load(config))
    assert together.patches == separate.patches > 0
    assert together.seconds > 0 < separate.rate


def test_quick_run_leaves_a_record(monkeypatch, tmp_path):
    monkeypatch.setattr(preparation, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["preparation", "--side", "768"])
    preparation.main()
    record = json.loads((tmp_path / "preparation.json").read_text())
    assert record["ratio"] > 0
    assert [run["patches"] for run in record["runs"]] == [record["runs"][0]["patches"]] * 2

"""The benchmark as a whole: parts leave records and pages, the run gathers them, and the guide is filled from them."""

from __future__ import annotations

import json

import pytest

from benchmarks.generation.tables import filled
from benchmarks.speed import __main__ as speed
from benchmarks.speed import bags, memory, node, report, sampling

MACHINE = {"processor": "a processor", "cores": 4, "cores_used": 2, "load_average": 0.1}


@pytest.fixture
def results(tmp_path):
    """Records of parts as they leave them, with numbers that are easy to follow."""
    ways = {"zoomfeat, exact": 500.0, "zoomfeat, DCT": 1000.0, "OpenSlide, patch by patch": 100.0}
    runs = [{"case": "SVS", "way": way, "rate": rate} for way, rate in ways.items()]
    report.save(tmp_path, "reading", {"runs": runs, "ratios": {"reading_vs_per_patch": 5.0}}, "reading's page\n")
    costs = [{"part": "encode", "seconds": 2.0}, {"part": "lean", "seconds": 1.0}, {"part": "whole", "seconds": 9.0}]
    record = {"costs": costs, "patch": ["encode", "lean"], "gflop_per_patch": 400.0, "threads": 2, "ratios": {}}
    report.save(tmp_path, "network", record, "network's page\n")
    return tmp_path


def test_a_run_gathers_its_parts_and_fills_the_guide(results, monkeypatch):
    guide = results / "guide.md"
    guide.write_text("a\n<!-- results: reading -->\nstale\n<!-- end of results -->\nb\n<!-- results: bench -->\n"
                     "<!-- end of results -->\n<!-- results: node -->\n<!-- end of results -->\n")  # fmt: skip
    ran = []
    monkeypatch.setattr(speed, "RESULTS", results)
    monkeypatch.setattr(speed, "GUIDE", guide)
    monkeypatch.setattr(speed, "run_part", lambda part, quick: ran.append((part, quick)) or 3.0)
    monkeypatch.setattr("sys.argv", ["speed", "--quick", "--parts", "reading", "network"])
    speed.main()
    assert ran == [("reading", True), ("network", True)]
    record = json.loads((results / "bench.json").read_text())
    assert record["ratios"] == {"reading_vs_per_patch": 5.0}
    assert record["seconds"] == {"reading": 3.0, "network": 3.0}
    assert record["machine"]["versions"]["torch"]
    text = guide.read_text()
    assert "stale" not in text
    assert "reading's page" in text
    assert "| `reading_vs_per_patch` | 5 |" in text
    assert "With one GPU" in text
    assert filled(text, results) == text, "filling twice changes nothing"


def test_a_part_that_fails_ends_the_run_with_its_output(monkeypatch):
    monkeypatch.setattr(speed.sys, "executable", "false")
    with pytest.raises(SystemExit, match="mil failed"):
        speed.run_part("mil", quick=True)


def test_the_node_on_paper(results):
    record = speed.gather(results, MACHINE, {}, quick=False)
    small = node.Node(cores=10, peak_tflops=100, slides=3, patches=1000, coarse=0, bytes_per_patch=1e6, disk=1e9)
    hours = node.stages(record, small, 0.5)
    assert hours["reading, exact"] == pytest.approx(3000 / 500 / 10 / 3600)
    assert hours["storage"] == pytest.approx(3 / 3600)
    assert hours["network"] == pytest.approx(400 * 3000 / 50_000 / 3600)
    page = node.page(record)
    years = 3.0 * 12_000 * 1000 * 14 / 13 / 3600 / 24 / 365
    assert f"would take {years:.1f} years" in page


def test_layouts_of_bags(tmp_path):
    found = bags.measure(tmp_path, rows=300, dim=8, sampled=20, repeats=1)
    assert found.keys() == bags.LAYOUTS.keys()
    assert all(value > 0 for numbers in found.values() for value in numbers.values())


def test_memory_of_extraction(tmp_path, monkeypatch, capsys):
    path = tmp_path / "slide.svs"
    texture, source = memory.usual_texture()
    assert source
    memory.write_textured_slide(path, texture, 4096, 0.25, radius=0.2)
    found = memory.extract(path, tmp_path / "bags", "exact")
    assert 0 < found["patches"] < 64
    assert found["peak"] >= found["before"] > 1e8


def test_sampling_takes_its_steps(monkeypatch, tmp_path):
    monkeypatch.setattr(sampling, "RESULTS", tmp_path)
    seconds = iter([9.0, 1.0, 1.5, 2.0])  # one that warms up
    monkeypatch.setattr(sampling, "cpu_seconds", lambda *_: next(seconds))
    monkeypatch.setattr("sys.argv", ["sampling", "--quick", "--repeats", "1"])
    sampling.main()
    ratios = json.loads((tmp_path / "sampling.json").read_text())["ratios"]
    assert ratios == {"guidance_vs_backprop": 2.0, "guidance_vs_backprop_at_equal_pulls": 1.5}

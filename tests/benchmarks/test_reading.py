"""The reading benchmarks run, on slides that zoomfeat reads tile by tile, and keep what they measured."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import openslide
import pytest

from benchmarks.speed import decoding, reading, reading_ways, textured_slide
from zoomfeat.slides import Slide
from zoomfeat.slides.synthetic import make_slide


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    path = tmp_path_factory.mktemp("scan") / "scan.tiff"
    make_slide(path, seed=0, size=(1400, 1800))
    return path


@pytest.mark.parametrize("layout", [textured_slide.SVS, textured_slide.TIFF_420, textured_slide.SVS_RGB])
def test_textured_slides(scan, tmp_path, layout):
    texture = textured_slide.scan_texture(scan)
    assert texture.shape == (1536, 1024, 3)
    path = tmp_path / "slide.svs"
    textured_slide.write_textured_slide(path, texture, 1200, 0.25, layout)
    with Slide.open(path) as slide, openslide.OpenSlide(path) as reference:
        assert slide.tiles is not None
        assert slide.vendor == ("aperio" if layout.aperio else "generic-tiff")
        assert slide.mpp == pytest.approx((0.25, 0.25))
        assert [side for side, _ in reference.level_dimensions] == [1200, 300, 75]
        assert "SYNTHETIC" in reference.properties["tiff.ImageDescription"]
        (whole,) = slide.read(0, 0, 1200, 1200, [(1200, 1200)])
        width = 1024 // layout.tile * layout.tile
        assert np.abs(whole[:, :width].astype(int) - texture[:1200, :width]).mean() < 6
        assert np.abs(whole[:, width:].astype(int) - texture[:1200, :width][:, : width - 1201 : -1]).mean() < 6
        small = slide.read(0, 0, 1200, 1200, [(75, 75)])[0]
        assert np.abs(small.astype(int) - slide.read(0, 0, 1200, 1200, [(1200, 1200), (75, 75)])[1]).mean() < 8


def test_glass_around_the_tissue(scan, tmp_path):
    path = tmp_path / "slide.svs"
    layout = textured_slide.JpegLayout("small tiles", aperio=True, colours="ycbcr", subsampling=(1, 1), tile=16)
    textured_slide.write_textured_slide(path, textured_slide.scan_texture(scan), 2048, 0.25, layout)
    with Slide.open(path) as slide:
        for sizes in ([(2048, 2048)], [(512, 512)]):
            (picture,) = slide.read(0, 0, 2048, 2048, sizes)
            corner = picture[: sizes[0][0] // 16, : sizes[0][0] // 16]
            assert np.abs(corner.astype(int) - textured_slide._GLASS).max() <= 2
            assert picture[sizes[0][0] // 2, :].std() > 5


def test_reading(scan, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reading, "RESULTS", tmp_path)
    monkeypatch.setattr(reading, "CASES", reading.CASES[:1] + reading.CASES[-2:])
    monkeypatch.setattr("sys.argv", ["reading", str(scan), "--side", "2100", "--repeats", "1", "--patches", "10"])
    reading.main()
    assert "reading_vs_per_patch" in capsys.readouterr().out
    record = json.loads((tmp_path / "reading.json").read_text())
    of_own_rows = {reading_ways.EXACT, reading_ways.DCT, reading_ways.LIMIT, reading_ways.HALF_LIMIT}
    ways = of_own_rows | {reading_ways.PER_PATCH, reading_ways.PER_PATCH_CV2, reading_ways.PER_REGION}
    assert ways <= {run["way"] for run in record["runs"]}
    assert set(Counter(run["case"] for run in record["runs"]).values()) == {len({r["way"] for r in record["runs"]})}
    assert all(run["patches"] > 0 and run["rate"] > 0 for run in record["runs"])
    by_way = {run["way"]: run["patches"] for run in record["runs"] if run["case"] == record["runs"][0]["case"]}
    assert len({by_way[way] for way in of_own_rows}) == 1
    assert {"reading_vs_per_patch", "reading_dct_vs_per_patch", "reading_vs_jpeg_limit"} <= set(record["ratios"])
    page = (tmp_path / "reading.md").read_text()
    assert all(f"| {case.name} |" in page for case in reading.CASES)


def test_the_limit_counts_each_tile_once(scan, tmp_path):
    path = tmp_path / "slide.svs"
    textured_slide.write_textured_slide(path, textured_slide.scan_texture(scan), 2100, 0.25)
    plan, _ = reading_ways.read_plan(path)
    level, tiles = reading_ways.needed_tiles(path, reading_ways.Rows(plan, []))
    assert len(tiles) == len(set(tiles)) == 9 * 9, "the two regions of 2048 px cover all tiles of a slide of 2100"
    assert level.tile == (240, 240)
    below = reading_ways.Rows([region for region in plan if region.y > 0], [region for region in plan if region.y == 0])
    assert set(reading_ways.needed_tiles(path, below)[1]).isdisjoint(
        reading_ways.needed_tiles(path, reading_ways.Rows(below.above, []))[1]
    )


def test_the_middle_of_a_slide(scan, tmp_path):
    path = tmp_path / "slide.svs"
    textured_slide.write_textured_slide(path, textured_slide.scan_texture(scan), 6144, 0.5)
    whole, grid = reading_ways.read_plan(path)
    plan, part = reading_ways.middle(whole, grid, 20)
    assert 20 <= len(part.scales[0].coords) < len(grid.scales[0].coords)
    assert sum(len(region.parts[0].rows) for region in plan) == len(part.scales[0].coords)
    corners = {(x // 1024, y // 1024) for x, y in part.scales[0].coords.tolist()}
    assert corners == {(region.x // 1024, region.y // 1024) for region in plan}
    assert min(abs(region.y + 512 - 3072) for region in plan) <= 1024


def test_rows_that_stand_for_a_slide(scan, tmp_path):
    path = tmp_path / "slide.svs"
    textured_slide.write_textured_slide(path, textured_slide.scan_texture(scan), 6144, 0.5)
    plan, _ = reading_ways.read_plan(path)
    rows = reading_ways.steady(plan, height=2000)
    assert len({region.y for region in rows.plan}) == 2
    (above,) = {region.y for region in rows.above}
    assert above == min(region.y for region in rows.plan) - 1024
    assert rows.patches == sum(len(region.parts[0].rows) for region in rows.plan)
    everything = reading_ways.steady(plan, height=10**6)
    assert everything.plan == plan
    assert everything.above == []


def test_effect_of_decoding_at_half_size(scan, tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["decoding", str(scan), "--encoders", "color-stats"])
    decoding.main()
    rows = json.loads((tmp_path / "decoding.json").read_text())["rows"]
    assert len(rows) == 8
    assert all(0.9 < row["worst"] <= row["cosine"] <= 1 + 1e-9 for row in rows)
    assert all(row["pixels"] > 0 for row in rows)

"""`zoomfeat explain`, from a bag on disk to the files that people open."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mil.attention import COLUMNS
from mil.estimators import MILClassifier, load_model
from mil.heatmap import colour_table
from zoomfeat.bags import Bag, convert
from zoomfeat.cli import main
from zoomfeat.slides import Slide

FILES = {"report.csv", "case.0.csv", "case.0.geojson", "case.0.html", "case.0_20x.png", "case.0_5x.png"}


def explain(*words: object) -> int:
    return main(["explain", *map(str, words)])


@pytest.fixture(scope="module")
def maps(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("maps")
    bags = f"bags={study.bags / 'case.0.h5'}"
    assert explain(f"model={study.model}", bags, f"slides={study.slides}", f"out={out}", "bootstrap=20") == 0
    return out


def test_every_file_is_there(maps):
    assert {path.name for path in maps.iterdir()} == FILES


def test_table_holds_the_attention_of_the_model_at_the_places_of_the_bag(study, maps):
    table = pd.read_csv(maps / "case.0.csv")
    assert tuple(table.columns) == COLUMNS
    bag = Bag.open(study.bags / "case.0.h5")
    attention = load_model(study.model).attention(bag)
    for scale in bag.scales:
        mine = table[table.magnification == scale.magnification]
        np.testing.assert_array_equal(mine[["x", "y"]], scale.coords)
        assert (mine.width == scale.patch_size_level0[0]).all()
        np.testing.assert_allclose(mine.attention, attention[scale.magnification], rtol=1e-5)
        assert mine.attention.sum() == pytest.approx(1, abs=1e-5)
        assert mine.percentile.mean() == pytest.approx(50)
    features = json.loads((maps / "case.0.geojson").read_text())["features"]
    assert [f["geometry"]["coordinates"][0][0] for f in features] == table[["x", "y"]].values.tolist()


def test_heatmap_lies_over_the_slide(study, maps):
    table = pd.read_csv(maps / "case.0.csv")
    with Slide.open(study.slides / "case.0.tiff") as slide:
        thumbnail = slide.read(0, 0, slide.width, slide.height, [(1700, 1500)])[0]
    picture = np.asarray(Image.open(maps / "case.0_20x.png"))
    assert picture.shape == (1500, 1700, 3)  # a slide smaller than thumbnail= keeps its size
    expected = thumbnail.astype(float)
    for _, patch in table[table.magnification == "20x"].iterrows():
        box = np.s_[patch.y : patch.y + patch.height, patch.x : patch.x + patch.width]
        expected[box] = (expected[box] + colour_table()[round(patch.percentile / 100 * 255)]) / 2
    np.testing.assert_allclose(picture, expected, atol=2)  # a rank between two colours may take either


def test_page_says_what_was_predicted_and_where_it_comes_from(study, maps):
    text = (maps / "case.0.html").read_text()
    row = pd.read_csv(maps / "report.csv").iloc[0]
    assert row.slide_file == "found"
    assert f"{row.prob_IDC:.3f}" in text
    assert f"{row.prob_IDC_low:.3f} to {row.prob_IDC_high:.3f}" in text
    assert "20 bootstrap resamples" in text
    assert "is not recorded" in text
    metadata = Bag.open(study.bags / "case.0.h5").metadata
    for fact in ("case.0.h5", "color-stats", metadata.weights_hash, "seed-0.safetensors", "abmil-gated", "zoomfeat"):
        assert fact in text
    assert re.search(r"<td>[0-9a-f]{64}</td>", text)
    assert text.count("data:image/jpeg") > 1 + 8
    assert "No slide file" not in text


def test_without_slides_there_is_a_page_that_says_so(study, tmp_path, capsys):
    out = tmp_path / "maps"
    assert explain(f"model={study.models}", f"bags={study.bags / 'case.0.h5'}", f"out={out}", "thumbnail=340") == 0
    assert "1 without a slide file" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == FILES
    text = (out / "case.0.html").read_text()
    assert "No slide file was at hand" in text
    assert "data:image/jpeg" not in text
    assert "Mean of 3 models; the range is the lowest and the highest" in text
    picture = np.asarray(Image.open(out / "case.0_5x.png"))
    assert picture.shape == (300, 340, 4)
    assert set(np.unique(picture[..., 3])) == {0, 255}


@pytest.mark.parametrize("layout", ["trident", "clam"])
def test_bags_that_other_tools_wrote(study, maps, tmp_path, layout):
    convert(study.bags / "case.0.h5", tmp_path / layout, to=layout)
    out = tmp_path / "maps"
    words = (f"model={study.model}", f"bags={tmp_path / layout}", f"slides={study.slides}", f"out={out}")
    assert explain(*words, "bootstrap=0") == 0
    pd.testing.assert_frame_equal(pd.read_csv(out / "case.0.csv"), pd.read_csv(maps / "case.0.csv"))
    np.testing.assert_array_equal(Image.open(out / "case.0_5x.png"), Image.open(maps / "case.0_5x.png"))
    assert "One model, without an interval." in (out / "case.0.html").read_text()


def test_a_bad_slide_is_a_row_and_the_others_go_on(study, tmp_path):
    slides, bags, out = tmp_path / "slides", tmp_path / "bags", tmp_path / "maps"
    shutil.copytree(study.bags, bags)
    slides.mkdir()
    shutil.copy(study.slides / "case.0.tiff", slides / "case.1.tiff")
    Image.new("RGB", (300, 200)).save(slides / "case.2.png")
    whole = (study.slides / "case.3.tiff").read_bytes()
    (slides / "case.3.tiff").write_bytes(whole[: len(whole) // 3])
    words = (f"model={study.models}", f"bags={bags}", f"slides={slides}", f"out={out}", "mpp=0.4", "thumbnail=340")
    assert explain(*words) == 1
    report = pd.read_csv(out / "report.csv").set_index("slide_id")
    assert report.slide_file.fillna("none").tolist() == ["missing", "found", "none", "none"]
    assert "300 x 200 px" in report.error["case.2"]
    assert "case.3.tiff" in report.error["case.3"]
    assert not (out / "case.2.html").exists()


@pytest.mark.parametrize("word", ["values=rank", "opacity=1.5", "thumbnail=3", "patches=-1", "bootstrap=-1"])
def test_values_out_of_range_are_refused_before_any_bag(study, tmp_path, word, capsys):
    assert explain(f"model={study.model}", f"bags={study.bags}", f"out={tmp_path / 'maps'}", word) == 2
    assert word.partition("=")[0] in capsys.readouterr().err
    assert not (tmp_path / "maps").exists()


@pytest.mark.shared_data
def test_real_slide_in_a_browser(shared, tmp_path, open_page):
    slide = shared / "slides" / "CMU-1-Small-Region.svs"
    words = ("encoder=efficientnet-lite0", "min_tissue=0.3", f"out={tmp_path / 'bags'}")
    assert main(["extract", f"slides={slide}", *words]) == 0
    path = tmp_path / "bags" / "CMU-1-Small-Region.h5"
    # Two halves of the slide, apart in what they show, train a model; the whole is explained.
    bag = Bag.open(path)
    halves = [bag.features[: len(bag) // 2], bag.features[len(bag) // 2 :]]
    model = MILClassifier(epochs=3, width=16).fit([halves[0], halves[1], halves[0], halves[1]], ["a", "b", "a", "b"])
    model.save(tmp_path / "model.safetensors")
    convert(path, tmp_path / "clam", to="clam", features="20x")
    out = tmp_path / "maps"
    words = (f"model={tmp_path / 'model.safetensors'}", f"bags={tmp_path / 'clam'}", f"slides={slide}", f"out={out}")
    assert explain(*words, "bootstrap=20") == 0
    opened = open_page(out / "CMU-1-Small-Region.html")
    widths = opened.run("return [...document.querySelectorAll('.patches img')].map((image) => image.naturalWidth)")
    assert widths == [256] * 16
    shown = opened.pixels()
    opened.click("#overlay")
    assert (opened.pixels() != shown).any(axis=2).mean() > 0.1
    assert all(address.startswith(("file://", "data:")) for address in opened.requests())
    assert opened.errors() == []

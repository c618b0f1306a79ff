"""The page of a slide in a real browser, and GeoJSON as QuPath reads it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from mil.attention import ScaleAttention, SlideAttention
from mil.heatmap import colour_table, patch_colours
from mil.prediction import Output, Prediction, of_models, of_resamples
from mil.report import read_gallery, write_geojson, write_page
from zoomfeat.slides import Slide
from zoomfeat.slides.synthetic import make_slide

SIZE = (2300, 1790)


def make_attention(seed: int = 0) -> SlideAttention:
    """Two magnifications over a slide of 2300 x 1790 px; the last row and column overhang it."""
    rng = np.random.default_rng(seed)
    scales = []
    for name, unit in (("20x", 256), ("5x", 1024)):
        corners = np.mgrid[0 : SIZE[1] : unit, 0 : SIZE[0] : unit].reshape(2, -1).T[:, ::-1]
        values = rng.permutation(len(corners)) + 1.0
        scales.append(ScaleAttention(name, np.ascontiguousarray(corners), (unit, unit), values / values.sum()))
    return SlideAttention("TCGA-A1.01Z <b>&", tuple(scales), SIZE, True, (0.5, 0.5))


PREDICTION = of_models("probability", ["LUAD", "LUSC <i>"], np.array([[0.7, 0.3], [0.9, 0.1]]))


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    make_slide(folder / "slide.tiff", seed=0, size=SIZE, mpp=0.5)
    attention = make_attention()
    with Slide.open(folder / "slide.tiff") as slide:
        thumbnail = slide.read(0, 0, *SIZE, [(1150, 895)])[0]
        galleries = [read_gallery(slide, scale, 4) for scale in attention.scales]
    write_page(folder / "page.html", attention, PREDICTION, [("bag", "a.h5"), ("x", "</script>")], thumbnail, galleries)
    return folder / "page.html"


@pytest.fixture(scope="module")
def plain_page(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("plain") / "page.html"
    write_page(
        path, make_attention(), Prediction("risk", (Output("risk", -1.5),), 1, "One model."), [], notes=["No slide."]
    )
    return path


def place_of(pixels: np.ndarray, x: float, y: float) -> np.ndarray:
    """The colour at a level-0 place, of a slide that is fitted into the canvas as the page does."""
    height, width = pixels.shape[:2]
    zoom = 0.97 * min(width / SIZE[0], height / SIZE[1])
    row, column = round((y - SIZE[1] / 2) * zoom + height / 2), round((x - SIZE[0] / 2) * zoom + width / 2)
    return pixels[row, column]


def test_overlay_magnifications_and_opacity(page, open_page):
    opened = open_page(page)
    fine, coarse = make_attention().scales
    opened.slide("opacity", 100)
    for scale, selector in ((fine, None), (coarse, "input[value='5x']"), (fine, "input[value='20x']")):
        if selector:
            opened.click(selector)
        shown = opened.pixels()
        colours = patch_colours(scale)
        for row in (0, len(scale) // 2, len(scale) - 1):
            x, y = scale.coords[row] + 40
            assert np.abs(place_of(shown, x, y) - colours[row]).max() <= 1
        assert opened.text("legend-text").endswith(f"{len(scale)} patches at {scale.magnification}")
        assert opened.run(
            "return [...document.querySelectorAll('.galleries:not([hidden])')].map((g) => g.dataset.magnification)"
        ) == [scale.magnification]

    opened.click("#overlay")
    bare = opened.pixels()
    assert (bare != shown).any(axis=2).mean() > 0.2
    opened.click("#overlay")
    np.testing.assert_array_equal(opened.pixels(), shown)
    opened.slide("opacity", 0)
    np.testing.assert_array_equal(opened.pixels(), bare)
    opened.slide("opacity", 50)
    x, y = fine.coords[5] + 40
    middle = (place_of(bare, x, y) + place_of(shown, x, y)) / 2
    np.testing.assert_allclose(place_of(opened.pixels(), x, y), middle, atol=2)

    opened.slide("opacity", 100)
    opened.slide("from", 90)
    strong, weak = fine.strongest()[[0, -1]]
    shown = opened.pixels()
    assert (place_of(shown, *(fine.coords[strong] + 40)) == patch_colours(fine)[strong]).all()
    assert (place_of(shown, *(fine.coords[weak] + 40)) == place_of(bare, *(fine.coords[weak] + 40))).all()
    assert opened.errors() == []


def test_raw_attention_has_its_own_colours_and_legend(page, open_page):
    opened = open_page(page)
    opened.slide("opacity", 100)
    opened.click("input[value='attention']")
    fine = make_attention().scales[0]
    colours = patch_colours(fine, "attention")
    shown = opened.pixels()
    for row in range(0, len(fine), 7):
        assert np.abs(place_of(shown, *(fine.coords[row] + 40)) - colours[row]).max() <= 3
    assert float(opened.text("high")) == pytest.approx(fine.attention.max(), rel=0.01)
    assert float(opened.text("low")) == pytest.approx(fine.attention.min(), rel=0.01)
    assert "Raw attention" in opened.text("legend-text")


def test_pan_zoom_and_patches(page, open_page):
    opened = open_page(page)
    fitted = opened.pixels()
    opened.click("#zoom-in")
    assert (opened.pixels() != fitted).any()
    opened.click("#fit")
    np.testing.assert_array_equal(opened.pixels(), fitted)
    opened.run(
        "document.getElementById('slide').dispatchEvent(new WheelEvent('wheel', "
        "{deltaY: -300, clientX: 500, clientY: 500, bubbles: true, cancelable: true}))"
    )
    assert (opened.pixels() != fitted).any()
    opened.run(
        "document.getElementById('slide').dispatchEvent(new KeyboardEvent('keydown', {key: '0', bubbles: true}))"
    )
    np.testing.assert_array_equal(opened.pixels(), fitted)

    # A patch of the gallery comes to the middle of the view, in its colour, and is described.
    opened.slide("opacity", 100)
    opened.click(".galleries:not([hidden]) button")
    fine = make_attention().scales[0]
    strongest = fine.strongest()[0]
    shown = opened.pixels()
    assert (
        shown[shown.shape[0] // 2, shown.shape[1] // 2] == colour_table()[round(fine.percentile.max() * 2.55)]
    ).all()
    x, y = fine.coords[strongest]
    assert f"x {x}, y {y}" in opened.text("readout")
    assert opened.errors() == []


def test_gallery_loads_and_no_request_leaves_the_page(page, open_page):
    opened = open_page(page)
    widths = opened.run("return [...document.querySelectorAll('.patches img')].map((image) => image.naturalWidth)")
    assert widths == [256] * (4 + 4 + 4 + 2)  # of six 5x patches, none is shown at both ends
    assert opened.run("return document.getElementById('thumbnail').naturalWidth") == 1150
    requests = opened.requests()
    assert requests[0] == page.as_uri()
    assert all(address.startswith(("file://", "data:")) for address in requests)
    assert sum(address.startswith("file://") for address in requests) == 1
    assert opened.errors() == []


def test_page_without_a_slide(plain_page, open_page):
    opened = open_page(plain_page)
    opened.slide("opacity", 100)
    fine = make_attention().scales[0]
    assert (place_of(opened.pixels(), *(fine.coords[3] + 40)) == patch_colours(fine)[3]).all()
    assert "No slide." in opened.run("return document.querySelector('.note').textContent")
    assert opened.errors() == []


def test_patches_off_any_grid(tmp_path, open_page):
    """Tools that start a grid of their own in every piece of tissue, and patches that overlap: the strongest shows."""
    coords = np.array([[0, 0], [700, 301], [811, 301], [2000, 1500]])
    scale = ScaleAttention("20x", coords, (256, 256), np.array([0.1, 0.4, 0.3, 0.2]))
    attention = SlideAttention("s", (scale,), SIZE, True, None)
    write_page(tmp_path / "page.html", attention, PREDICTION, [])
    opened = open_page(tmp_path / "page.html")
    opened.slide("opacity", 100)
    shown, colours = opened.pixels(), patch_colours(scale)
    assert (place_of(shown, 900, 400) == colours[1]).all()  # in both
    for row in (0, 1, 3):
        assert (place_of(shown, *(coords[row] + 40)) == colours[row]).all()
    assert (place_of(shown, 1040, 400) == colours[2]).all()
    assert (place_of(shown, 1200, 400) == 255).all()
    opened.slide("from", 50)
    assert (place_of(opened.pixels(), 40, 40) == 255).all()
    assert opened.errors() == []


class _Structure(HTMLParser):
    """Every element with its attributes, and the text of the title."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, dict(attrs)))


def test_page_is_self_contained_and_escaped(page):
    text = page.read_text(encoding="utf-8")
    structure = _Structure()
    structure.feed(text)
    addresses = [value for _, given in structure.elements for name, value in given.items() if name in ("src", "href")]
    assert addresses
    assert all(address.startswith("data:") for address in addresses)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest", text)
    policy = next(given["content"] for tag, given in structure.elements if given.get("http-equiv"))
    assert policy.startswith("default-src 'none'")
    assert "<h1>TCGA-A1.01Z &lt;b&gt;&amp;</h1>" in text
    assert "LUSC &lt;i&gt;" in text
    assert [tag for tag, _ in structure.elements].count("script") == 2
    # Whatever can be seen can be named: every control has a label, every picture a text.
    labelled = {given["for"] for tag, given in structure.elements if tag == "label" and "for" in given}
    assert {given["id"] for tag, given in structure.elements if given.get("type") == "range"} <= labelled
    assert all("alt" in given for tag, given in structure.elements if tag == "img")


def test_page_names_what_the_interval_is(page, plain_page):
    text = page.read_text(encoding="utf-8")
    assert "0.800" in text
    assert "0.700 to 0.900" in text
    assert "Mean of 2 models; the range is the lowest and the highest of them. 2 of them say LUAD." in text
    assert "-1.5" in plain_page.read_text(encoding="utf-8")


def test_interval_of_resamples():
    draws = np.linspace(0, 1, 201)[:, None] * [1, -1] + [0, 1]
    prediction = of_resamples("probability", ["a", "b"], np.array([0.4, 0.6]), draws, "5x patches")
    a, b = prediction.outputs
    assert (a.value, round(a.low, 4), round(a.high, 4)) == (0.4, 0.025, 0.975)
    assert (b.value, round(b.low, 4), round(b.high, 4)) == (0.6, 0.025, 0.975)
    assert prediction.best is b
    assert "201 bootstrap resamples of the slide's 5x patches" in prediction.interval
    assert not of_models("score", ["score"], np.array([[3.0]])).has_interval


def test_geojson_is_what_qupath_reads(tmp_path):
    attention = make_attention()
    write_geojson(attention, tmp_path / "slide.geojson")
    content = json.loads((tmp_path / "slide.geojson").read_text(encoding="utf-8"))
    assert content["type"] == "FeatureCollection"
    rows = attention.table().to_dict("records")
    assert len(content["features"]) == len(rows)
    for feature, row in zip(content["features"], rows, strict=True):
        assert feature["type"] == "Feature"
        assert feature["geometry"]["type"] == "Polygon"
        (ring,) = feature["geometry"]["coordinates"]
        left, top = row["x"], row["y"]
        right, bottom = left + row["width"], top + row["height"]
        assert ring == [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
        properties = feature["properties"]
        assert properties["objectType"] == "tile"
        assert properties["classification"]["name"] == f"Attention {row['magnification']}"
        for colour in (properties["color"], properties["classification"]["color"]):
            assert len(colour) == 3
            assert all(isinstance(value, int) and 0 <= value <= 255 for value in colour)
        assert properties["measurements"] == {
            "Attention": row["attention"],
            "Attention percentile": row["percentile"],
        }

"""How tiles are decoded: what a bag says of it, and that the same configuration gives the same features."""

from __future__ import annotations

import numpy as np
import pytest

from zoomfeat.bags import Bag
from zoomfeat.configuration import check_config
from zoomfeat.encoders import load_encoder
from zoomfeat.errors import ConfigurationError
from zoomfeat.extraction import extract_slide
from zoomfeat.slides import Slide, SlideEntry
from zoomfeat.slides.synthetic import make_slide

ENCODER = "color-stats"


@pytest.fixture
def extract(tmp_path, extract_config):
    """Extracts one slide in the given way of decoding; returns its bag."""
    path = tmp_path / "slides" / "slide.tiff"
    path.parent.mkdir()
    make_slide(path, seed=1, size=(4096, 3072), mpp=0.25)

    def run(decode: str, out: str, source=path) -> Bag:
        config = extract_config(source, f"decode={decode}", "preview=false", f"out={tmp_path / out}", encoder=ENCODER)
        check_config(config)
        report = extract_slide(SlideEntry("slide", source), config, load_encoder(ENCODER, device="cpu"))
        assert report.status in ("done", "exists"), report.error
        return Bag.open(tmp_path / out / "slide.h5")

    return run


def same_features(a: Bag, b: Bag) -> bool:
    return all(np.array_equal(x.features, y.features) for x, y in zip(a.scales, b.scales, strict=True))


def test_features_are_the_same_whichever_reader_runs(extract):
    exact, slow = extract("exact", "exact"), extract("openslide", "slow")
    assert exact.metadata.reader.startswith("simplejpeg")
    assert slow.metadata.reader.startswith("openslide")
    assert same_features(exact, slow)
    assert exact.metadata.configuration == slow.metadata.configuration
    extract("openslide", "exact")  # goes on with the bag that the other reader made


def test_bags_of_shrunk_tiles_say_so(extract):
    exact, shrunk = extract("exact", "exact"), extract("dct", "shrunk")
    assert "1/2 and 1/4 size" in shrunk.metadata.reader
    assert shrunk.metadata.configuration["decode"] == "dct"
    assert "decode" not in exact.metadata.configuration
    assert not same_features(exact, shrunk)
    for fine, coarse in zip(exact.scales, shrunk.scales, strict=True):
        assert np.corrcoef(fine.features.ravel(), coarse.features.ravel())[0, 1] > 0.99
    with pytest.raises(AssertionError, match="another configuration"):
        extract("exact", "shrunk")


def test_unknown_ways_are_refused_before_any_slide_is_opened(tmp_path, extract_config):
    config = extract_config(tmp_path / "none.svs", "decode=fast", f"out={tmp_path / 'bags'}", encoder=ENCODER)
    with pytest.raises(ConfigurationError, match="decode='fast'"):
        check_config(config)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    """The tiles of a slide of two by three tiles of 256 px, the last ones cut."""
    path = tmp_path_factory.mktemp("means") / "slide.tiff"
    make_slide(path, seed=2, size=(700, 500), mpp=0.25)
    with Slide.open(path) as slide:
        assert slide.tiles is not None
        assert slide.tiles.levels[0].tile == (256, 256)
        yield slide.tiles


@pytest.mark.parametrize("corner", [(0, 0), (64, 128), (248, 8)])
@pytest.mark.parametrize("shrink", [1, 2])
def test_means_of_tiles_are_those_of_the_whole_box(tiles, corner, shrink):
    size = (256 // shrink, 256 // shrink)
    corner = tuple(place // shrink for place in corner)
    canvas = tiles.read(0, corner, size, shrink).copy()
    outs = [np.zeros((size[1] // factor, size[0] // factor, 3), np.uint8) for factor in (1, 2, 4)]
    assert tiles.read_means(0, corner, size, outs, shrink)
    assert np.array_equal(outs[0], canvas)
    for factor, out in zip((2, 4), outs[1:], strict=True):
        blocks = canvas.reshape(size[1] // factor, factor, size[0] // factor, factor, 3)
        assert np.abs(out - blocks.mean(axis=(1, 3))).max() <= (0.5 if shrink == 1 else 1.0)


@pytest.mark.parametrize(
    ("corner", "size", "out"),
    [
        ((0, 0), (256, 256), (100, 100)),  # no whole number of pixels each
        ((3, 0), (256, 256), (128, 128)),  # some would lie in two tiles
        ((600, 0), (256, 256), (128, 128)),  # beyond the slide
        ((0, 0), (128, 128), (256, 256)),  # larger than the box
    ],
)
def test_means_that_need_the_whole_box_are_left_alone(tiles, corner, size, out):
    area = np.full((*out, 3), 7, np.uint8)
    assert not tiles.read_means(0, corner, size, [area])
    assert (area == 7).all()


@pytest.mark.shared_data
def test_a_real_slide(shared, extract):
    path = shared / "slides" / "CMU-1-Small-Region.svs"
    exact, slow = extract("exact", "exact", path), extract("openslide", "slow", path)
    assert len(exact) == 37
    assert same_features(exact, slow)

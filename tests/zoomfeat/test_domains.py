"""Domains: the two that ship, one more from a file, and files that are none."""

from __future__ import annotations

import pytest
import yaml

from tests.geotiffs import DOMAIN
from zoomfeat.domains import DEFAULT, domain_names, load_domain
from zoomfeat.encoders import encoder_names, load_encoder
from zoomfeat.errors import ConfigurationError, MagnificationError
from zoomfeat.magnification import BRCA, NAIP, Ladder, Magnification, resolution
from zoomfeat.slides.foreground import RULES
from zoomfeat.slides.sources import READERS


@pytest.fixture
def write(tmp_path):
    def make(name: str = "aerial-5m.yaml", text: str | None = None, **changes: object) -> str:
        content = yaml.safe_load(DOMAIN) | changes
        (tmp_path / name).write_text(text or yaml.safe_dump(content))
        return str(tmp_path / name)

    return make


def test_the_ladders_of_the_publication():
    assert [(s.index, s.name, s.mpp, s.grid, s.pooled_grid) for s in BRCA.steps] == [
        (0, "20x", 0.5, 1, 1), (1, "10x", 1, 2, 2), (2, "5x", 2, 4, 4), (3, "2.5x", 4, 8, 8), (4, "1.25x", 8, 16, 8),
        (5, "0.625x", 16, 32, 8), (6, "0.3125x", 32, 64, 8), (7, "0.15625x", 64, 128, 8),
    ]  # fmt: skip
    assert [(s.index, s.name, s.mpp, s.grid) for s in NAIP.steps] == [
        (0, "1x", 1e6, 1), (1, "2x", 2e6, 2), (2, "3x", 4e6, 4), (3, "4x", 8e6, 8)
    ]  # fmt: skip


@pytest.mark.parametrize("name", domain_names())
def test_domains_that_ship_name_what_exists(name):
    domain = load_domain(name)
    assert domain.reader in READERS
    assert domain.foreground in RULES
    assert domain.embedding in encoder_names()
    assert len(domain.steps()) == 2


def test_the_two_that_ship():
    assert domain_names() == ["brca", "naip"]
    assert load_domain(DEFAULT).ladder == BRCA
    assert load_domain("naip").ladder == NAIP
    assert [str(step) for step in load_domain("naip").steps(["4x", "1x"])] == ["1x", "4x"]


def test_a_third_is_a_file(write):
    domain = load_domain(write())
    assert domain.name == "aerial-5m"
    assert domain.ladder.steps[1] == Magnification(1, "2x", 10e6)
    assert [step.name for step in domain.steps()] == ["1x", "2x"]
    with pytest.raises(MagnificationError, match="asked for twice"):
        domain.steps(["1x", "1x"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": "- a\n- b"}, "a domain of list"),
        ({"text": "ladder: ["}, "not a readable domain"),
        ({"colour": "green"}, "a domain of .*colour.*Its keys are about, ladder"),
        ({"reader": 3}, "reader is 3"),
        ({"weights": "somewhere"}, "weights is 'somewhere'. Write owner/repository/folder"),
        ({"ladder": {"names": ["1x"]}}, "ladder is"),
        ({"ladder": {"names": ["1x"], "finest": "5 feet"}}, "finest is '5 feet'. Write the size of a pixel like"),
        ({"ladder": {"names": ["1x"], "finest": "0 m"}}, "finest is '0 m'"),
        ({"ladder": {"names": ["fine"], "finest": "5 m"}}, "a magnification called 'fine'"),
        ({"ladder": {"names": ["1x", "1.0x"], "finest": "5 m"}}, "Give distinct ones"),
        ({"magnifications": ["20x"]}, "no magnification '20x' in the aerial-5m ladder"),
        ({"magnifications": "1x"}, "magnifications is '1x'"),
    ],
)
def test_a_file_that_is_no_domain_is_told_in_one_line(write, changes, message):
    path = write(**changes)
    with pytest.raises(ConfigurationError, match=message) as caught:
        load_domain(path)
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_domains():
    with pytest.raises(ConfigurationError, match=r"no domain 'mars'\. Use one of brca, naip, or the path"):
        load_domain("mars")
    with pytest.raises(ConfigurationError, match=r"absent\.yaml: not a readable domain"):
        load_domain("absent.yaml")


def test_one_name_in_two_ladders_is_not_one_size():
    coarse = Ladder.of("aerial-5m", ["1x"], "5 m")
    with pytest.raises(
        MagnificationError, match="no 1x of 5 m in the naip ladder, which has 1x, 2x, 3x, 4x from 1 m on"
    ):
        NAIP[coarse.finest]
    assert NAIP["1x"] is NAIP[NAIP.finest]


def test_an_encoder_of_pixels_takes_the_magnifications_of_any_domain():
    encoder = load_encoder("color-stats", NAIP["3x"], "cpu")
    assert encoder.at(NAIP["4x"]).magnification == NAIP["4x"]
    assert load_encoder("color-stats", device="cpu").magnification == BRCA.finest


def test_an_encoder_of_histology_refuses_aerial_images():
    with pytest.raises(MagnificationError, match=r"no 3x of 4 m in the brca ladder.*domain=brca"):
        load_encoder("zoomldm-tiny", NAIP["3x"], "cpu")


@pytest.mark.parametrize(("mpp", "text"), [(0.5, "0.5 um"), (64, "64 um"), (600_000, "0.6 m"), (5e6, "5 m")])
def test_resolutions_have_a_unit(mpp, text):
    assert resolution(mpp) == text

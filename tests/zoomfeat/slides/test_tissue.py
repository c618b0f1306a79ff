from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from zoomfeat.slides.reader import Slide
from zoomfeat.slides.tissue import TissueMask, find_tissue, tissue_mask

EOSIN, HAEMATOXYLIN, PALE, DAB = (225, 150, 190), (130, 90, 160), (238, 222, 232), (150, 105, 65)
GLASS, GRAY, BLACK = (243, 243, 243), (190, 190, 190), (0, 0, 0)


def picture(background: tuple[int, int, int], noise: float = 2.0) -> np.ndarray:
    image = np.random.default_rng(0).normal(background, noise, (400, 400, 3))
    return np.clip(image, 0, 255).astype(np.uint8)


def with_square(background: tuple[int, int, int], colour: tuple[int, int, int]) -> np.ndarray:
    image = picture(background)
    image[100:300, 100:300] = picture(colour)[100:300, 100:300]
    return image


def real(path: Path) -> np.ndarray:
    image = Image.open(path).convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"))


# --- the mask


@pytest.mark.parametrize("colour", [EOSIN, HAEMATOXYLIN, PALE, DAB])
def test_stained_tissue_on_glass(colour: tuple[int, int, int]) -> None:
    mask = tissue_mask(with_square(GLASS, colour), 8.0)
    assert mask[103:297, 103:297].all()
    assert mask.sum() == pytest.approx(200 * 200, rel=0.03)


@pytest.mark.parametrize("colour", [GLASS, (255, 255, 255), GRAY, BLACK])
@pytest.mark.parametrize("noise", [0.0, 4.0])
def test_nothing_on_a_slide_without_tissue(colour: tuple[int, int, int], noise: float) -> None:
    assert not tissue_mask(picture(colour, noise), 8.0).any()


@pytest.mark.parametrize("colour", [EOSIN, HAEMATOXYLIN, DAB])
def test_a_slide_that_is_all_tissue(colour: tuple[int, int, int]) -> None:
    assert tissue_mask(picture(colour, 6.0), 8.0).all()


@pytest.mark.parametrize("colour", [GRAY, BLACK, (30, 140, 120), (40, 70, 200), (210, 20, 35)])
def test_smears_missing_tiles_and_ink_are_no_tissue(colour: tuple[int, int, int]) -> None:
    assert not tissue_mask(with_square(GLASS, colour), 8.0).any()
    on_tissue = tissue_mask(with_square(EOSIN, colour), 8.0)
    if colour != GRAY:
        assert not on_tissue[102:298, 102:298].any()
    assert on_tissue[:90].all()


def test_small_holes_are_filled_and_specks_dropped() -> None:
    image = with_square(GLASS, EOSIN)
    image[150:160, 150:160] = GLASS  # 80 um: a fat cell
    image[200:250, 200:250] = GLASS  # 400 um: a lumen
    image[20:28, 20:28] = EOSIN  # 64 um
    mask = tissue_mask(image, 8.0)
    assert mask[150:160, 150:160].all()
    assert not mask[205:245, 205:245].any()
    assert not mask[:60, :60].any()


# --- real pictures; the floors are a little below what was measured


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "rejected", "tissue"),
    [("green", 0.99, (0.14, 0.20)), ("red", 0.85, (0.40, 0.46)), ("black", 0.98, (0, 0.02))],
)
def test_pen_marks(shared_data: Path, name: str, rejected: float, tissue: tuple[float, float]) -> None:
    folder = shared_data / "stain_and_artifacts"
    mask = tissue_mask(real(folder / f"histoqc_pen_{name}.png"), 8.0)
    pen = np.asarray(Image.open(folder / f"histoqc_pen_{name}_mask.png").convert("L")) > 0
    assert 1 - mask[pen].mean() >= rejected
    assert tissue[0] <= mask.mean() <= tissue[1]


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "mpp", "least", "most"),
    [
        ("histolab_tile_no-tissue.png", 1.0, 0, 0),
        ("histolab_tile_no-tissue-line.png", 1.0, 0, 0),
        ("histolab_tile_no-tissue-green-pen.png", 1.0, 0, 0),
        ("histolab_tile_no-tissue-red-pen.png", 1.0, 0, 0.06),
        ("histolab_tile_tissue-level0-7352-11762-7864-12274.png", 1.0, 0.85, 0.95),
        ("histolab_tile_high-nuclei-score-level2.png", 1.0, 0.12, 0.16),
        ("histolab_tcga-lung-rgb.png", 0.5, 0.99, 1),
        ("histolab_tcga-green-pen.png", 4.0, 0.78, 0.88),
        ("tiatoolbox_target_image.png", 0.5, 0.99, 1),
        ("torchstain_source.png", 0.5, 0.99, 1),
        ("torchstain_target.png", 0.5, 0.99, 1),
        ("henorm_example1.png", 0.5, 0.99, 1),
    ],
)
def test_real_pictures(shared_data: Path, name: str, mpp: float, least: float, most: float) -> None:
    assert least <= tissue_mask(real(shared_data / "stain_and_artifacts" / name), mpp).mean() <= most


@pytest.mark.shared_data
def test_pale_ihc_is_kept(shared_data: Path) -> None:
    image = real(shared_data / "slides_odd" / "kidney-48-5_untiled_IHC.tif")
    mask = tissue_mask(image, 2.0)
    specimen = image.max(axis=2) < 200
    specimen[:480] = specimen[580:] = specimen[:, :270] = specimen[:, 420:] = False
    assert mask[specimen].mean() > 0.95
    assert mask.sum() < 5000  # nothing but the one specimen of about 4,400 pixels


@pytest.mark.shared_data
def test_tissue_of_a_real_slide(cmu: Path) -> None:
    with Slide.open(cmu) as slide:
        tissue = find_tissue(slide)
    assert tissue.mask.shape == (1024, 766)
    assert 0.33 <= tissue.mask.mean() <= 0.40


# --- shares of boxes


def test_find_tissue_in_level0_pixels(write_slide: Callable) -> None:
    image = np.full((1200, 2000, 3), GLASS, np.uint8)
    image[200:800, 400:1600] = EOSIN
    with Slide.open(write_slide([image], mpp=(0.5, 1.0))) as slide:
        tissue = find_tissue(slide)
    assert tissue.scale == pytest.approx((2000 / tissue.mask.shape[1], 1200 / tissue.mask.shape[0]))
    x, y = np.array([500, 0, 300, 0]), np.array([300, 0, 300, -5000])
    assert tissue.fraction(x, y, 200, 200) == pytest.approx([1, 0, 0.5, 0], abs=0.05)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**16), st.integers(-20, 60), st.integers(-20, 60), st.integers(1, 50), st.integers(1, 50))
def test_fraction_is_the_exact_area(seed: int, x: int, y: int, width: int, height: int) -> None:
    mask = np.random.default_rng(seed).random((5, 7)) < 0.5
    level0 = np.pad(np.kron(mask, np.ones((8, 6))), 100)  # 6 x 8 level-0 pixels each, in the middle of nothing
    expected = level0[100 + y : 100 + y + height, 100 + x : 100 + x + width].mean()
    (got,) = TissueMask(mask, (6.0, 8.0)).fraction(np.array([x]), np.array([y]), width, height)
    assert got == pytest.approx(expected, abs=2e-6)

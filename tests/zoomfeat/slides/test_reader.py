from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
from PIL import Image

from zoomfeat.errors import MagnificationError, SlideUnreadableError
from zoomfeat.slides.reader import Slide


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# --- how large a pixel is


def test_mpp_of_the_file_along_both_axes(write_slide: Callable) -> None:
    with Slide.open(write_slide([noise(300, 400)], mpp=(0.25, 0.5)), default_mpp=0.4) as slide:
        assert (slide.width, slide.height) == (400, 300)
        assert slide.mpp == pytest.approx((0.25, 0.5))
        assert slide.mpp_source == "metadata"
        assert slide.metadata_mpp == slide.mpp
        assert slide.reader.startswith("openslide 4")
        assert slide.vendor == "generic-tiff"


def test_mpp_of_the_user_wins(write_slide: Callable) -> None:
    with Slide.open(write_slide([noise(300, 400)]), mpp=0.3, default_mpp=0.4) as slide:
        assert (slide.mpp, slide.mpp_source) == ((0.3, 0.3), "manifest")
        assert slide.metadata_mpp == pytest.approx((0.5, 0.5))


def test_default_mpp_where_the_file_says_nothing(write_slide: Callable) -> None:
    with Slide.open(write_slide([noise(300, 400)], mpp=None), default_mpp=0.4) as slide:
        assert (slide.mpp, slide.mpp_source, slide.metadata_mpp) == ((0.4, 0.4), "configuration", None)


def test_no_mpp_at_all_is_refused(write_slide: Callable) -> None:
    with pytest.raises(
        MagnificationError, match=r"slide\.tif: the file does not say how many um a pixel is.*mpp=0\.25"
    ):
        Slide.open(write_slide([noise(300, 400)], mpp=None))


@pytest.mark.parametrize("mpp", [0.00025, -0.5, float("nan"), float("inf"), (0.5, 0.001)])
def test_implausible_mpp_is_refused(write_slide: Callable, mpp: float | tuple[float, float]) -> None:
    with pytest.raises(MagnificationError, match="implausible"):
        Slide.open(write_slide([noise(300, 400)]), mpp=mpp)


# --- geometry


@pytest.mark.parametrize(
    ("level0", "level1"),
    [
        ((4096, 4096), (1024, 1024)),
        ((3996, 4004), (1000, 1000)),  # 3.996 and 4.004
        ((4004, 3996), (1001, 999)),  # 4 exactly
        ((4098, 2047), (1024, 512)),  # 4.002 and 3.998
        ((4001, 4003), (1000, 1001)),  # 4.001 and 3.999
    ],
)
def test_boxes_are_where_they_say_at_any_downsample(
    write_slide: Callable, ruler: Callable, level0: tuple[int, int], level1: tuple[int, int]
) -> None:
    whole = (0.0, 0.0, float(level0[0]), float(level0[1]))
    path = write_slide([ruler(whole, level0, 128), ruler(whole, level1, 128)])
    with Slide.open(path) as slide:
        assert len(slide.source.level_dimensions) == 2
        for x, y in ((0, 0), (1024, 512), (37, 911), (2900, 1000)):
            # 1 in 4 comes from level 1, 1 in 2 from level 0; a shift of half a pixel is up to 2.5 grey levels.
            for ratio in (4, 2):
                box = (x, y, x + 256 * ratio, y + 256 * ratio)
                (got,) = slide.read(x, y, 256 * ratio, 256 * ratio, [(256, 256)])
                expected = ruler(box, (256, 256), 128)
                rows, columns = (slide.height - y) // ratio, (slide.width - x) // ratio
                error = np.abs(got[:rows, :columns].astype(int) - expected[:rows, :columns])
                assert error.max() <= 2
                assert error.mean() <= 0.5


def test_field_of_view_from_a_level_of_3_996(write_slide: Callable, ruler: Callable) -> None:
    """The length that 256 output pixels cover, measured from the phase of the waves."""
    whole = (0.0, 0.0, 3996.0, 3996.0)
    with Slide.open(write_slide([ruler(whole, (3996, 3996)), ruler(whole, (1000, 1000))])) as slide:
        (patch,) = slide.read(1000, 1000, 1024, 1024, [(256, 256)])
    for wave in (patch[..., 0].mean(axis=0), patch[..., 1].mean(axis=1)):
        frequencies = np.linspace(0.9 / 16, 1.1 / 16, 4001)
        centred = (wave - wave.mean()) * np.hanning(256)
        power = np.abs(np.exp(-2j * np.pi * np.outer(frequencies, np.arange(256))) @ centred)
        assert frequencies[power.argmax()] * 16 == pytest.approx(1, abs=0.005)


def test_a_large_box_is_the_same_in_parts(write_slide: Callable) -> None:
    image = noise(64, 8000)
    with Slide.open(write_slide([image])) as slide:
        wide, narrow = slide.read(-192, 0, 8192, 64, [(2048, 16), (512, 4)])
    padded = np.full((64, 8192, 3), 255, np.uint8)
    padded[:, 192:] = image
    assert np.array_equal(wide, cv2.resize(padded, (2048, 16), interpolation=cv2.INTER_AREA))
    assert np.array_equal(narrow, cv2.resize(padded, (512, 4), interpolation=cv2.INTER_AREA))


def test_beyond_the_slide_is_white(write_slide: Callable) -> None:
    with Slide.open(write_slide([np.zeros((300, 400, 3), np.uint8)])) as slide:
        (patch,) = slide.read(300, 200, 256, 256, [(256, 256)])
        assert (patch[:100, :100] == 0).all()
        assert (patch[100:] == 255).all()
        assert (patch[:, 100:] == 255).all()
        assert (slide.read(5000, 5000, 64, 64, [(64, 64)])[0] == 255).all()


def test_slightly_coarser_slides_are_interpolated(write_slide: Callable, ruler: Callable) -> None:
    with Slide.open(write_slide([ruler((0, 0, 600, 600), (600, 600))], mpp=(0.55, 0.55))) as slide:
        (got,) = slide.read(100, 100, 233, 233, [(256, 256)])
    expected = ruler((100, 100, 333, 333), (256, 256))
    assert np.abs(got[2:-2, 2:-2].astype(int) - expected[2:-2, 2:-2]).max() <= 2


def test_jpeg_slides(write_slide: Callable, ruler: Callable) -> None:
    image = ruler((0, 0, 512, 512), (512, 512))
    with Slide.open(write_slide([image], compression="jpeg")) as slide:
        assert np.abs(slide.read(0, 0, 512, 512, [(512, 512)])[0].astype(int) - image).mean() < 3


def test_thumbnail(write_slide: Callable, ruler: Callable) -> None:
    whole = (0.0, 0.0, 4000.0, 2000.0)
    levels = [ruler(whole, (4000, 2000), 400.0), ruler(whole, (1000, 500), 400.0)]
    with Slide.open(write_slide(levels, mpp=(0.25, 0.5))) as slide:
        thumbnail = slide.thumbnail(5.0)
        assert thumbnail.shape == (200, 200, 3)
        assert np.abs(thumbnail.astype(int) - ruler(whole, (200, 200), 400.0)).max() <= 1
        assert slide.thumbnail(0.01).shape == (2000, 4000, 3)  # never finer than the slide
        assert slide.thumbnail(1e6).shape == (1, 1, 3)


def test_thumbnail_is_bounded(write_slide: Callable) -> None:
    with Slide.open(write_slide([noise(16, 10000)])) as slide:
        assert slide.thumbnail(0.5).shape == (13, 8192, 3)


def test_threads_may_share_a_slide(write_slide: Callable) -> None:
    image = noise(1024, 1024)
    with Slide.open(write_slide([image])) as slide, ThreadPoolExecutor(4) as pool:
        corners = [(x, y) for x in range(0, 1024, 128) for y in range(0, 1024, 128)]
        patches = pool.map(lambda corner: slide.read(*corner, 128, 128, [(128, 128)])[0], corners)
        for (x, y), patch in zip(corners, patches, strict=True):
            assert np.array_equal(patch, image[y : y + 128, x : x + 128])


# --- plain images


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "jpg"])
def test_plain_images(tmp_path: Path, suffix: str) -> None:
    image = np.full((80, 100, 3), (200, 100, 150), np.uint8)
    Image.fromarray(image).save(tmp_path / f"a.{suffix}")
    with Slide.open(tmp_path / f"a.{suffix}", mpp=0.5) as slide:
        assert slide.reader.startswith("pillow ")
        assert (slide.width, slide.height) == (100, 80)
        (patch,) = slide.read(0, 0, 128, 128, [(128, 128)])
        assert np.abs(patch[:80, :100].astype(int) - image).max() <= 2
        assert (patch[80:] == 255).all()


def test_transparent_pixels_go_onto_white_before_averaging(tmp_path: Path) -> None:
    image = np.zeros((64, 64, 4), np.uint8)
    image[::2, :, 3] = 255  # every other row is opaque black, the others are transparent black
    image[:, 32:, 3] = 128
    Image.fromarray(image).save(tmp_path / "a.png")
    with Slide.open(tmp_path / "a.png", mpp=0.5) as slide:
        (patch,) = slide.read(0, 0, 64, 64, [(32, 32)])
    assert np.unique(patch[:, :16]).tolist() == [128]
    assert np.unique(patch[:, 16:]).tolist() == [127]


def test_grey_and_palette_images_become_rgb(tmp_path: Path) -> None:
    grey = Image.fromarray(np.full((40, 40), 77, np.uint8))
    grey.save(tmp_path / "grey.png")
    grey.convert("P").save(tmp_path / "palette.png")
    for name in ("grey.png", "palette.png"):
        with Slide.open(tmp_path / name, mpp=0.5) as slide:
            assert np.unique(slide.read(0, 0, 40, 40, [(40, 40)])[0]).tolist() == [77]


def test_sixteen_bit_images_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((40, 40), 7777, np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(SlideUnreadableError, match="8-bit RGB"):
        Slide.open(tmp_path / "a.png", mpp=0.5)


def test_too_large_an_image_names_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(noise(100, 100)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(SlideUnreadableError, match=r"too large to decode at once.*pyramidal TIFF"):
        Slide.open(tmp_path / "a.png", mpp=0.5)


# --- damage


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SlideUnreadableError, match="no such file"):
        Slide.open(tmp_path / "none.svs")


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_truncated_plain_image(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise(200, 200)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(SlideUnreadableError, match=f"a.{suffix}"):
        Slide.open(path, mpp=0.5)


def read_both_levels(path: Path) -> None:
    with Slide.open(path, mpp=0.5) as slide:
        for size in (1024, 256):
            slide.read(0, 0, 1024, 1024, [(size, size)])


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.95, 0.999])
def test_truncated_pyramid(write_slide: Callable, kept: float) -> None:
    path = write_slide([noise(1024, 1024), noise(256, 256)], compression="jpeg")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(SlideUnreadableError, match=r"slide\.tif"):
        read_both_levels(path)


def test_a_damaged_tile_is_an_error_that_names_the_region(write_slide: Callable) -> None:
    path = write_slide([noise(1024, 1024)], compression="jpeg")
    damaged = bytearray(path.read_bytes())
    middle = len(damaged) // 2
    start = damaged.index(b"\xff\xd8", middle)  # the head of the JPEG of a tile past the middle
    damaged[start : start + 400] = bytes(400)
    path.write_bytes(damaged)
    with (
        Slide.open(path, decode="openslide") as slide,
        pytest.raises(SlideUnreadableError, match=r"slide\.tif: the region x=0, y=0, 1024x1024 px of level 0"),
    ):
        slide.read(0, 0, 1024, 1024, [(256, 256)])


@pytest.mark.shared_data
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_truncated_svs(cmu: Path, tmp_path: Path, kept: float) -> None:
    content = cmu.read_bytes()
    (tmp_path / "cut.svs").write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(SlideUnreadableError, match=r"cut\.svs"), Slide.open(tmp_path / "cut.svs", mpp=0.5) as slide:
        slide.read(0, 0, slide.width, slide.height, [(256, 256)])


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken.svs", "neither a slide"),
        ("lfs_pointer.ndpi", "neither a slide"),
        ("unopenable.tiff", "compression: 52479"),
        ("sm_image_jpegls.dcm", "Unsupported transfer syntax"),
        ("unreadable.svs", "x=0, y=0, 16x16 px of level 0 does not decode"),
    ],
)
def test_odd_files(shared_data: Path, name: str, message: str) -> None:
    with (
        pytest.raises(SlideUnreadableError, match=f"{name}.*{message}"),
        Slide.open(shared_data / "slides_odd" / name, mpp=0.5) as slide,
    ):
        slide.read(0, 0, 16, 16, [(16, 16)])


# --- real slides


@pytest.mark.shared_data
def test_untiled_ihc_goes_through_pillow(shared_data: Path) -> None:
    path = shared_data / "slides_odd" / "kidney-48-5_untiled_IHC.tif"
    with Slide.open(path, mpp=0.5) as slide:
        assert (slide.width, slide.height, slide.vendor) == (1493, 901, "tiff")
        assert np.array_equal(
            slide.read(500, 500, 256, 256, [(256, 256)])[0], np.asarray(Image.open(path))[500:756, 500:756]
        )


@pytest.mark.shared_data
def test_dicom_opens_by_any_file(shared_data: Path) -> None:
    patches = []
    for name in ("boxes_0.dcm", "boxes_1.dcm"):
        with Slide.open(shared_data / "slides" / name) as slide:
            assert (slide.vendor, slide.mpp) == ("dicom", (0.499, 0.499))
            patches.append(slide.read(0, 0, 16, 16, [(16, 16)])[0])
    assert np.array_equal(*patches)


@pytest.mark.shared_data
def test_patches_of_a_real_slide_equal_an_independent_reading(cmu: Path) -> None:
    with Slide.open(cmu) as slide, openslide.OpenSlide(cmu) as independent:
        assert (slide.width, slide.height, slide.mpp) == (2220, 2967, (0.499, 0.499))
        for x, y in ((1028, 1028), (2056, 0), (0, 2056)):
            fine, coarse = slide.read(x, y, 1028, 1028, [(1024, 1024), (256, 256)])
            whole = independent.read_region((x, y), 0, (1028, 1028))
            whole = np.asarray(Image.alpha_composite(Image.new("RGBA", whole.size, "white"), whole))[..., :3].copy()
            for patch, size in ((fine, 1024), (coarse, 256)):
                assert np.array_equal(patch, cv2.resize(whole, (size, size), interpolation=cv2.INTER_AREA))

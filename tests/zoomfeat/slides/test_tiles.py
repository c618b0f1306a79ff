"""The direct reader gives OpenSlide's pixels, or leaves the file to OpenSlide; damage is an error, never a colour."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import openslide
import pytest
import tifffile

from zoomfeat.errors import ConfigurationError, SlideUnreadableError
from zoomfeat.magnification import parse
from zoomfeat.slides import TissueMask, make_grid, read_region, regions
from zoomfeat.slides import tiles as tiles_module
from zoomfeat.slides.reader import Slide
from zoomfeat.slides.synthetic import draw_tissue

TILE = 64
CODES = {"rgb": 2, "ycbcr": 3}  # of libjpeg


@dataclass(frozen=True)
class Layout:
    """How a slide of the tests is written."""

    colours: str = "ycbcr"
    subsampling: tuple[int, int] = (1, 1)
    tables: bool = True
    aperio: bool = True
    missing: tuple[int, ...] = ()
    markers: bool = False  # of applications, which tell libjpeg the colour space


LAYOUTS = {
    "YCbCr 4:4:4": Layout(),
    "YCbCr 4:2:2": Layout(subsampling=(2, 1)),
    "YCbCr 4:2:0": Layout(subsampling=(2, 2)),
    "YCbCr 4:2:0, generic TIFF": Layout(subsampling=(2, 2), aperio=False),
    "RGB": Layout("rgb"),
    "RGB, generic TIFF": Layout("rgb", aperio=False),
    "YCbCr 4:2:0, whole JPEGs": Layout(subsampling=(2, 2), tables=False),
    "YCbCr 4:2:0, whole JPEGs, JFIF": Layout(subsampling=(2, 2), tables=False, markers=True),
    "RGB, whole JPEGs": Layout("rgb", tables=False),
    "RGB, whole JPEGs, Adobe": Layout("rgb", tables=False, markers=True),
    "missing tiles": Layout(subsampling=(2, 2), missing=(6, 27)),
}


def encode(tile: np.ndarray, layout: Layout) -> tuple[bytes, bytes]:
    """The tables of a tile's JPEG, and the JPEG, without them if tables are apart (ITU-T T.81, annex B)."""
    jpeg = bytes(
        imagecodecs.jpeg8_encode(
            tile, level=80, colorspace=2, outcolorspace=CODES[layout.colours], subsampling=layout.subsampling
        )
    )
    tables, body, at = b"\xff\xd8", b"\xff\xd8", 2
    while (marker := jpeg[at + 1]) != 0xDA:
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if marker in (0xDB, 0xC4) and layout.tables:
            tables += jpeg[at:end]
        elif layout.markers or not 0xE0 <= marker <= 0xEF:
            body += jpeg[at:end]
        at = end
    return tables + b"\xff\xd9", body + jpeg[at:]


def write(path: Path, levels: Sequence[np.ndarray], layout: Layout, mpp: float = 0.25) -> Path:
    """A tiled TIFF of compressed tiles as scanners write it; the missing ones are of level 0."""

    def compressed(level: np.ndarray, missing: tuple[int, ...]) -> Iterator[bytes]:
        down, across = (-(-side // TILE) for side in level.shape[:2])
        padded = cv2.copyMakeBorder(
            level, 0, down * TILE - level.shape[0], 0, across * TILE - level.shape[1], cv2.BORDER_REPLICATE
        )
        for index in range(down * across):
            y, x = (place * TILE for place in divmod(index, across))
            tile = np.ascontiguousarray(padded[y : y + TILE, x : x + TILE])
            yield b"" if index in missing else encode(tile, layout)[1]

    height, width = levels[0].shape[:2]
    start = "Aperio Image Library v0\n" if layout.aperio else ""
    description = f"{start}SYNTHETIC {width}x{height}|AppMag = {10 / mpp:g}|MPP = {mpp}"
    with tifffile.TiffWriter(path) as tiff:
        for number, level in enumerate(levels):
            tiff.write(
                compressed(level, layout.missing if number == 0 else ()),
                shape=level.shape,
                dtype=np.uint8,
                tile=(TILE, TILE),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"outcolorspace": layout.colours},
                subsampling=layout.subsampling,
                jpegtables=encode(level[:TILE, :TILE], layout)[0] if layout.tables else None,
                description=description,
                subfiletype=int(number > 0),
                resolution=(1e4 / mpp / width * level.shape[1],) * 2,
                resolutionunit="CENTIMETER",
                metadata=None,
            )
    return path


@pytest.fixture(scope="module")
def tissue() -> np.ndarray:
    return draw_tissue((500, 400), 0.25, seed=3)


def pyramid(image: np.ndarray, *sizes: tuple[int, int]) -> list[np.ndarray]:
    return [image, *(cv2.resize(image, size, interpolation=cv2.INTER_AREA) for size in sizes)]


def whole_level(slide: openslide.OpenSlide, level: int) -> np.ndarray:
    """A level as OpenSlide gives it, on white."""
    rgba = np.asarray(slide.read_region((0, 0), level, slide.level_dimensions[level])).astype(np.uint16)
    alpha = rgba[..., 3:]
    return ((rgba[..., :3] * alpha + 255 * (255 - alpha)) // 255).astype(np.uint8)


def opened(path: Path, decode: str = "exact") -> Slide:
    """A slide that is read tile by tile."""
    slide = Slide.open(path, decode=decode)
    assert slide.tiles is not None
    return slide


def first_tile(path: Path, number: int = 0) -> tuple[int, int]:
    """Where a tile of level 0 lies in the file, and its bytes."""
    with tifffile.TiffFile(path) as tiff:
        return tiff.pages[0].dataoffsets[number], tiff.pages[0].databytecounts[number]


# --- the same pixels


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_pixels_equal_openslide(tmp_path: Path, tissue: np.ndarray, layout: Layout) -> None:
    path = write(tmp_path / "slide.svs", pyramid(tissue, (250, 200), (125, 100)), layout)
    with opened(path) as slide, openslide.OpenSlide(path) as reference:
        assert slide.vendor == ("aperio" if layout.aperio else "generic-tiff")
        assert slide.reader.startswith("simplejpeg 1")
        assert "checked against openslide 4" in slide.reader
        assert sorted(slide.tiles.levels) == ([0] if layout.missing else [0, 1, 2])
        for level in slide.tiles.levels:
            expected = whole_level(reference, level)
            height, width = expected.shape[:2]
            for left, top, right, bottom in (
                (0, 0, width, height),
                (17, 30, 90, 99),
                (64, 0, 120, 64),
                (width - 5, 3, width, 9),
            ):
                found = slide.tiles.read(level, (left, top), (right - left, bottom - top))
                assert np.array_equal(found, expected[top:bottom, left:right])
        assert np.abs(whole_level(reference, 0).astype(int) - tissue).mean() < (12 if layout.missing else 6)


def test_a_missing_tile_is_white(tmp_path: Path, tissue: np.ndarray) -> None:
    path = write(tmp_path / "slide.svs", [tissue], LAYOUTS["missing tiles"])
    with opened(path) as slide:
        (whole,) = slide.read(0, 0, 500, 400, [(500, 400)])
    assert (whole[192:256, 192:256] == 255).all()
    assert (whole[192:256, 128:192] != 255).any()


@pytest.mark.parametrize("lacking", [0, 1])
def test_levels_coarser_than_a_missing_tile_are_left_to_openslide(
    tmp_path: Path, tissue: np.ndarray, lacking: int
) -> None:
    """It makes them from finer pixels there."""
    path = write(tmp_path / "slide.svs", pyramid(tissue, (250, 200), (125, 100)), Layout())
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        counts = list(tiff.pages[lacking].databytecounts)
        tiff.pages[lacking].tags["TileByteCounts"].overwrite([*counts[:2], 0, *counts[3:]])
    with opened(path) as slide, Slide.open(path, decode="openslide") as reference:
        assert list(slide.tiles.levels) == [0]
        assert np.array_equal(
            slide.read(0, 0, 500, 400, [(250, 200)])[0], reference.read(0, 0, 500, 400, [(250, 200)])[0]
        )


@pytest.mark.parametrize("mpp", [0.25, 0.2527, 0.5, 0.55])
@pytest.mark.parametrize("coarser", [(250, 200), (249, 201), (125, 100), (126, 101)])
def test_patches_are_the_same_whichever_reader_runs(tmp_path: Path, coarser: tuple[int, int], mpp: float) -> None:
    """At 40x and 20x, and with levels that are a whole number of times coarser or not."""
    image = draw_tissue((500, 400), mpp, seed=4)
    path = write(tmp_path / "slide.svs", pyramid(image, coarser), LAYOUTS["YCbCr 4:2:0"], mpp)
    mask = TissueMask(np.ones((1, 1), bool), (500, 400))
    with opened(path) as slide, Slide.open(path, decode="openslide") as reference:
        assert (1 in slide.tiles.levels) == (coarser in ((250, 200), (125, 100)))
        assert reference.tiles is None
        for names in (["20x", "5x"], ["10x"], ["5x"]):
            grid = make_grid(slide, mask, parse(names), 0)
            for region in regions(grid):
                both = zip(read_region(slide, region), read_region(reference, region), strict=True)
                for (scale, rows, found), (_, _, expected) in both:
                    assert found.shape == (len(rows), 256, 256, 3)
                    assert np.array_equal(found, expected), (scale, names)


def test_boxes_that_leave_the_slide_are_white_there(tmp_path: Path, tissue: np.ndarray) -> None:
    path = write(tmp_path / "slide.svs", [tissue], Layout())
    with opened(path) as slide, openslide.OpenSlide(path) as reference:
        around = np.full((560, 640, 3), 255, np.uint8)
        around[70:470, 90:590] = whole_level(reference, 0)
        assert np.array_equal(slide.tiles.read(0, (-90, -70), (640, 560)), around)
        assert np.array_equal(slide.read(-90, -70, 640, 560, [(640, 560), (160, 140)])[0], around)


def test_threads_share_a_slide_and_its_cut_tiles(
    tmp_path: Path, tissue: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "slide.svs", [tissue], Layout())
    boxes = [(x, y) for y in range(0, 360, 40) for x in range(0, 460, 40)] * 3
    for cached in (64 * 2**20, 3 * TILE * TILE * 3, 0):
        monkeypatch.setattr(tiles_module, "_CACHED_BYTES", cached)
        with opened(path) as slide, openslide.OpenSlide(path) as reference, ThreadPoolExecutor(4) as pool:
            expected = whole_level(reference, 0)
            found = pool.map(lambda box, slide=slide: slide.read(*box, 40, 40, [(40, 40)])[0], boxes)
            for (x, y), patch in zip(boxes, found, strict=True):
                assert np.array_equal(patch, expected[y : y + 40, x : x + 40])
            assert slide.tiles._cut_tiles._bytes <= cached


def test_each_tile_is_decoded_once(tmp_path: Path, tissue: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Regions that cut tiles and come row by row, as in a plan."""
    path = write(tmp_path / "slide.svs", [tissue], Layout())
    with opened(path) as slide:
        decoded = []
        decode = tiles_module.simplejpeg.decode_jpeg
        monkeypatch.setattr(
            tiles_module.simplejpeg, "decode_jpeg", lambda *args, **how: decoded.append(1) or decode(*args, **how)
        )
        for y in range(0, 400, 100):
            for x in range(0, 500, 100):
                slide.read(x, y, 100, 100, [(100, 100)])
        assert len(decoded) == math.ceil(500 / TILE) * math.ceil(400 / TILE)
        assert len(slide.tiles._cut_tiles._tiles) == 0, "nothing is kept that no box will ask for again"


# --- decoding at a smaller size


@pytest.mark.parametrize(("ratio", "shrink"), [(1, 1), (1.9, 1), (2, 2), (4, 4), (8, 4)])
def test_shrunk_tiles_are_close_to_the_mean(tmp_path: Path, tissue: np.ndarray, ratio: float, shrink: int) -> None:
    path = write(tmp_path / "slide.svs", [tissue], LAYOUTS["YCbCr 4:2:0"])
    size = (round(480 / ratio), round(384 / ratio))
    with opened(path, "dct") as slide, opened(path) as exact:
        assert "1/2 and 1/4 size" in slide.reader
        assert slide._shrink_for(0, ratio, ratio) == shrink
        (found,), (expected,) = (each.read(8, 8, 480, 384, [size]) for each in (slide, exact))
        assert np.array_equal(found, expected) == (shrink == 1)
        assert np.abs(found.astype(int) - expected).mean() < 2


@pytest.mark.parametrize("shrink", [2, 4])
def test_shrunk_boxes_are_where_they_say(tmp_path: Path, tissue: np.ndarray, shrink: int) -> None:
    path = write(tmp_path / "slide.svs", [tissue], Layout())
    with opened(path, "dct") as slide:
        whole = slide.tiles.read(0, (0, 0), (500 // shrink, 400 // shrink), shrink).copy()
        part = slide.tiles.read(0, (21, 13), (70, 60), shrink)
        assert np.array_equal(part, whole[13:73, 21:91])
        beyond = slide.tiles.read(0, (500 // shrink - 10, 0), (20, 20), shrink)
        assert np.array_equal(beyond[:, :10], whole[:20, -10:])
        assert (beyond[:, 10:] == 255).all()


def test_unknown_ways_of_decoding_are_refused(tmp_path: Path, tissue: np.ndarray) -> None:
    path = write(tmp_path / "slide.svs", [tissue], Layout())
    with pytest.raises(ConfigurationError, match=r"decode='fast'.*exact, dct, openslide"):
        Slide.open(path, decode="fast")


# --- damage


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda jpeg: bytes(len(jpeg)), "starts with 00 00"),
        (lambda jpeg: jpeg[: len(jpeg) // 2] + bytes(len(jpeg) - len(jpeg) // 2), "JPEG"),
        (lambda jpeg: jpeg[: len(jpeg) // 2] + b"\xff\xd9" + bytes(len(jpeg) - len(jpeg) // 2 - 2), "JPEG"),
        (lambda jpeg: jpeg[:-60] + b"\xff" * 60, "JPEG"),
    ],
    ids=["zeros", "half zeros", "ends early", "ones at the end"],
)
def test_a_damaged_tile_is_an_error_that_names_it(
    tmp_path: Path, tissue: np.ndarray, damage: Callable[[bytes], bytes], problem: str
) -> None:
    path = write(tmp_path / "slide.svs", [tissue], Layout(subsampling=(2, 2)))
    offset, length = first_tile(path, 27)
    content = bytearray(path.read_bytes())
    content[offset : offset + length] = damage(bytes(content[offset : offset + length]))
    path.write_bytes(content)
    with opened(path) as slide:
        slide.read(0, 0, 180, 180, [(180, 180)])  # the tiles around are fine
        with pytest.raises(
            SlideUnreadableError,
            match=rf"slide\.svs: the tile in column 3, row 3 of level 0 \(from x=192, y=192 of that level\).*{problem}",
        ):
            slide.read(0, 0, 500, 400, [(250, 200)])


def test_no_damage_is_missed_that_openslide_notices(tmp_path: Path, tissue: np.ndarray) -> None:
    """Twenty spoilt bytes in a tile, at places of all kinds."""
    path = write(tmp_path / "slide.svs", [tissue], Layout(subsampling=(2, 2)))
    offset, length = first_tile(path, 27)
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    noticed = {"exact": [], "openslide": []}
    for _ in range(30):
        start = offset + int(random.integers(40, length - 40))
        spoilt = whole[:start] + random.bytes(20) + whole[start + 20 :]
        path.write_bytes(spoilt)
        for decode, found in noticed.items():
            with Slide.open(path, decode=decode) as slide:
                try:
                    slide.read(192, 192, TILE, TILE, [(TILE, TILE)])
                    found.append(False)
                except SlideUnreadableError:
                    found.append(True)
    assert sum(noticed["exact"]) >= 15
    assert all(here >= there for here, there in zip(noticed["exact"], noticed["openslide"], strict=True))


@pytest.mark.parametrize("kept", [0.5, 0.9, 0.99])
def test_a_truncated_file(tmp_path: Path, tissue: np.ndarray, kept: float) -> None:
    """Cut before it is opened, which OpenSlide mostly notices, and while it is open, which nobody tells."""
    path = write(tmp_path / "slide.svs", [tissue], Layout())
    cut = tmp_path / "cut.svs"
    content = path.read_bytes()
    cut.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(SlideUnreadableError, match=r"cut\.svs"), Slide.open(cut) as slide:
        slide.read(0, 0, 500, 400, [(250, 200)])
    with opened(path) as slide:
        os.truncate(path, int(len(content) * kept))
        slide.read(0, 0, 500, TILE, [(500, TILE)])
        with pytest.raises(SlideUnreadableError, match=r"slide\.svs: the tile in column \d.*the file ends \d+ bytes"):
            slide.read(0, 0, 500, 400, [(250, 200)])


def test_a_file_whose_every_tile_looks_damaged_is_left_to_openslide(tmp_path: Path, tissue: np.ndarray) -> None:
    """Bytes before the end of each JPEG that do not belong there: libjpeg warns, OpenSlide does not care."""
    path = tmp_path / "slide.svs"
    encoder = encode

    def padded(tile: np.ndarray, layout: Layout) -> tuple[bytes, bytes]:
        tables, jpeg = encoder(tile, layout)
        return tables, jpeg[:-2] + bytes(8) + jpeg[-2:]

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "encode", padded)
        write(path, [tissue], Layout())
    with Slide.open(path) as slide:
        assert slide.tiles is None
        assert slide.reader.startswith("openslide")
        assert np.abs(slide.read(0, 0, 500, 400, [(500, 400)])[0].astype(int) - tissue).mean() < 6


# --- what is left to OpenSlide


@pytest.mark.parametrize(
    "how",
    [
        {"compression": "zlib"},
        {"compression": "lzw", "predictor": True},
        {"compression": "jpeg", "planarconfig": "separate"},
        {"compression": None},
    ],
    ids=lambda how: " ".join(map(str, how.values())),
)
def test_other_kinds_of_tiles(tmp_path: Path, tissue: np.ndarray, how: dict) -> None:
    path = tmp_path / "slide.tiff"
    planes = how.get("planarconfig") == "separate"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(
            np.moveaxis(tissue, 2, 0) if planes else tissue,
            tile=(TILE, TILE),
            photometric="rgb",
            resolution=(4e4, 4e4),
            resolutionunit="CENTIMETER",
            **how,
        )
    with Slide.open(path) as slide:
        assert slide.tiles is None
        assert slide.reader.startswith("openslide")


def test_grey_jpegs(tmp_path: Path, tissue: np.ndarray) -> None:
    path = tmp_path / "slide.tiff"
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(tissue[..., 0], tile=(TILE, TILE), photometric="minisblack", compression="jpeg")
    with Slide.open(path, mpp=0.5) as slide:
        assert slide.tiles is None


def test_a_single_pixel_that_differs(tmp_path: Path, tissue: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "slide.svs", [tissue], Layout())
    decode = tiles_module.simplejpeg.decode_jpeg

    def off_by_one(*args: object, **how: object) -> np.ndarray:
        pixels = decode(*args, **how)
        pixels[3, 5, 1] ^= 1
        return pixels

    monkeypatch.setattr(tiles_module.simplejpeg, "decode_jpeg", off_by_one)
    with Slide.open(path) as slide:
        assert slide.tiles is None


def test_tables_that_lie_about_colours(tmp_path: Path, tissue: np.ndarray) -> None:
    """An RGB JPEG in a TIFF that says YCbCr, its own marker notwithstanding: OpenSlide believes the TIFF."""
    path = write(tmp_path / "slide.svs", [tissue], replace(LAYOUTS["RGB, whole JPEGs, Adobe"], tables=False))
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tiff.pages[0].tags["PhotometricInterpretation"].overwrite(6)
    with opened(path) as slide, openslide.OpenSlide(path) as reference:
        assert np.array_equal(slide.read(0, 0, 500, 400, [(500, 400)])[0], whole_level(reference, 0))
        assert np.abs(whole_level(reference, 0).astype(int) - tissue).mean() > 20


# --- a real slide


@pytest.mark.shared_data
def test_a_real_slide(cmu: Path) -> None:
    with opened(cmu) as slide, openslide.OpenSlide(cmu) as reference:
        assert "simplejpeg" in slide.reader
        expected = whole_level(reference, 0)
        for y in range(0, slide.height, 700):
            for x in range(0, slide.width, 700):
                size = (min(700, slide.width - x), min(700, slide.height - y))
                assert np.array_equal(slide.tiles.read(0, (x, y), size), expected[y : y + size[1], x : x + size[0]])


@pytest.mark.shared_data
def test_patches_of_a_real_slide_are_the_same_whichever_reader_runs(cmu: Path) -> None:
    for mpp in (None, 0.25):  # as it is, and as if it were a 40x scan
        with Slide.open(cmu, mpp) as slide, Slide.open(cmu, mpp, decode="openslide") as reference:
            mask = TissueMask(np.ones((1, 1), bool), (slide.width, slide.height))
            for region in regions(make_grid(slide, mask, parse(["20x", "5x"])))[::3]:
                both = zip(read_region(slide, region), read_region(reference, region), strict=True)
                assert all(np.array_equal(found, expected) for (_, _, found), (_, _, expected) in both)


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["boxes.tiff", "pyramid_mask_15360x23552.tiff", "boxes_0.dcm", "small.svs"])
def test_other_real_files_open_as_before(shared_data: Path, name: str) -> None:
    with (
        Slide.open(shared_data / "slides" / name) as slide,
        openslide.OpenSlide(shared_data / "slides" / name) as known,
    ):
        size = (min(300, slide.width), min(300, slide.height))
        expected = np.asarray(known.read_region((0, 0), 0, size))[..., :3]
        assert np.array_equal(slide.read(0, 0, *size, [size])[0], expected)

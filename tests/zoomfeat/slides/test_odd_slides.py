"""Odd slides, each either right or clearly refused; docs/slides-supported.md prints the table of this file.

"Right" means: every patch that is kept shows what the picture that the slide was made of shows there, at its physical
size. All slides are drawn.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.zoomfeat.odd_slides import aperio, dicom, mirax, plain, pyramid, tiff, tissue
from zoomfeat.bags import Bag
from zoomfeat.configuration import check_config
from zoomfeat.encoders import load_encoder
from zoomfeat.errors import ConfigurationError
from zoomfeat.extraction import extract_slide
from zoomfeat.magnification import parse
from zoomfeat.slides import (
    QUALITY_FILTERS,
    Slide,
    SlideEntry,
    TissueMask,
    drop_faulty,
    find_tissue,
    make_grid,
    read_region,
    regions,
)

GUIDE = Path(__file__).parents[3] / "docs" / "slides-supported.md"
Written = tuple[Path, np.ndarray]
"""A file, and the picture that level 0 of it shows."""


@dataclass(frozen=True)
class Odd:
    """An odd slide and what becomes of it.

    Attributes:
        write: makes it in a folder.
        refused: what the error says; nothing where the slide is extracted.
        size: level-0 pixels of a 20x patch along x and y.
        magnification: the finest asked for.
        mpp: what the user says.
        tolerance: mean difference of a patch from the picture, in 255 steps of colour.
        note: what the table adds.
    """

    write: Callable[[Path], Written]
    refused: str = ""
    size: tuple[int, int] = (256, 256)
    magnification: str = "20x"
    mpp: float | None = None
    tolerance: float = 3.0
    note: str = ""


def _tiff(folder: Path, mpp: tuple[float, float] | None = (0.5, 0.5), **options: object) -> Written:
    image = tissue(768, 0.5 if mpp is None else max(mpp))
    return tiff(folder / "slide.tif", pyramid(image, 4), mpp, **options), image


def _aperio(folder: Path, **options: object) -> Written:
    return aperio(folder / "slide.svs", tissue(), **options), tissue()


def _level_of_3_9996(folder: Path) -> Written:
    image = np.tile(tissue()[128:640, 128:640], (2, 20, 1))[:, :9999]
    return tiff(folder / "slide.tif", [image, cv2.resize(image, (2500, 256), interpolation=cv2.INTER_AREA)]), image


def _lacking_tiles(folder: Path) -> Written:
    """Tiles that were never scanned have no bytes in the file."""
    image = tissue()
    tiles = [image[y : y + 256, x : x + 256] for y in range(0, 768, 256) for x in range(0, 768, 256)]
    stored = [imagecodecs.zlib_encode(np.ascontiguousarray(tile).tobytes()) for tile in tiles]
    stored[4] = b""
    image[256:512, 256:512] = 255
    path = folder / "slide.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(
            iter(stored), shape=image.shape, dtype=np.uint8, tile=(256, 256), photometric="rgb", compression="zlib",
            resolution=(2e4, 2e4), resolutionunit="CENTIMETER", metadata=None,
        )  # fmt: skip
    return path, image


def _transparent_png(folder: Path) -> Written:
    image = np.dstack([tissue(), np.full((768, 768), 255, np.uint8)])
    image[300:500, 300:500] = 0
    Image.fromarray(image).save(folder / "slide.png")
    image[300:500, 300:500] = 255
    return folder / "slide.png", np.ascontiguousarray(image[..., :3])


def _mirax(folder: Path) -> Written:
    image = tissue()
    path = mirax(folder, image, missing=((1, 1),))
    image[256:512, 256:512] = 255
    return path, image


def _pieces(folder: Path) -> Written:
    image = np.full((1400, 2200, 3), 243, np.uint8)
    for x, y in ((50, 50), (1450, 80), (700, 700)):
        image[y : y + 600, x : x + 600] = tissue(600, seed=x)
    return tiff(folder / "slide.tif", pyramid(image, 4)), image


def _pen(folder: Path) -> Written:
    image = tissue(1024, seed=1)
    cv2.line(image, (384, 0), (384, 1023), (20, 150, 60), 120)
    return tiff(folder / "slide.tif", pyramid(image, 4)), image


def _blurred(folder: Path) -> Written:
    image = cv2.GaussianBlur(tissue(), (0, 0), 4)
    return tiff(folder / "slide.tif", pyramid(image, 4), compression="zlib"), image


def _empty(folder: Path) -> Written:
    image = np.full((1024, 1024, 3), 243, np.uint8)
    cv2.circle(image, (500, 500), 40, (196, 132, 184), -1)
    return tiff(folder / "slide.tif", [image]), image


def _bilevel(folder: Path) -> Written:
    Image.fromarray((tissue()[..., 1] < 200).astype(np.uint8) * 255).convert("1").save(folder / "slide.png")
    return folder / "slide.png", tissue()


def _bilevel_tiled(folder: Path) -> Written:
    return tiff(folder / "slide.tif", [tissue()[..., 1] < 200], compression=None, photometric="minisblack"), tissue()


def _deep(folder: Path) -> Written:
    return tiff(folder / "slide.tif", [tissue().astype(np.uint16) * 257], compression="zlib"), tissue()


def _grey(folder: Path) -> Written:
    return tiff(folder / "slide.tif", [tissue()[..., 1]], photometric="minisblack"), tissue()


def _ome(folder: Path, resolution: bool) -> Written:
    """A pyramid in sub-IFDs, as Bio-Formats writes it; um/px is in the OME-XML, and where told in the tags as well."""
    image = tissue()
    tags = {"resolution": (2e4, 2e4), "resolutionunit": "CENTIMETER"} if resolution else {}
    path = folder / "slide.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        meta = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
        file.write(image, tile=(256, 256), photometric="rgb", compression="jpeg", subifds=1, metadata=meta, **tags)
        small = cv2.resize(image, (192, 192), interpolation=cv2.INTER_AREA)
        file.write(small, tile=(256, 256), photometric="rgb", compression="jpeg", subfiletype=1)
    return path, image


def _ome_channels(folder: Path) -> Written:
    path = folder / "slide.ome.tif"
    stack = np.moveaxis(tissue(), -1, 0).astype(np.uint16)
    tifffile.imwrite(path, stack, ome=True, tile=(256, 256), photometric="minisblack", metadata={"axes": "CYX"})
    return path, tissue()


def _plain(folder: Path, suffix: str) -> Written:
    return plain(folder / f"slide.{suffix}", tissue()), tissue()


ODD = {
    "SVS, JPEG, 0.5 um/px": Odd(_aperio),
    "SVS without um/px": Odd(lambda f: _aperio(f, mpp=None), refused="does not say how many um a pixel is"),
    "SVS without um/px, `mpp=0.5`": Odd(lambda f: _aperio(f, mpp=None), mpp=0.5),
    "SVS, JPEG 2000": Odd(lambda f: _aperio(f, jpeg2000=True), tolerance=5),
    "TIFF, 0.25 x 0.5 um/px": Odd(lambda f: _tiff(f, (0.25, 0.5)), size=(512, 256)),
    "TIFF, 0.23 um/px": Odd(lambda f: _tiff(f, (0.23, 0.23)), size=(557, 557)),
    "TIFF, 0.2639 um/px": Odd(lambda f: _tiff(f, (0.2639, 0.2639)), size=(485, 485)),
    "TIFF, 0.46 um/px": Odd(lambda f: _tiff(f, (0.46, 0.46)), size=(278, 278)),
    "TIFF, 0.6 um/px, at 20x": Odd(lambda f: _tiff(f, (0.6, 0.6)), refused="too coarse for 20x"),
    "TIFF without um/px": Odd(lambda f: _tiff(f, None), refused="um"),
    "TIFF, a level of downsample 3.9996, at 5x": Odd(_level_of_3_9996, size=(1024, 1024), magnification="5x"),
    "TIFF, LZW": Odd(lambda f: _tiff(f, compression="lzw")),
    "TIFF, deflate": Odd(lambda f: _tiff(f, compression="zlib")),
    "TIFF, BigTIFF": Odd(lambda f: _tiff(f, bigtiff=True)),
    "TIFF, WebP": Odd(lambda f: _tiff(f, compression="webp"), refused="Unsupported TIFF compression: 50001"),
    "TIFF, Zstandard": Odd(lambda f: _tiff(f, compression="zstd")),
    "TIFF, JPEG 2000 (not Aperio's)": Odd(
        lambda f: _tiff(f, compression="jpeg2000"), refused="Unsupported TIFF compression: 34712"
    ),
    "TIFF, a plane a colour": Odd(
        lambda f: (tiff(f / "slide.tif", [np.moveaxis(tissue(), -1, 0)], planarconfig="separate"), tissue())
    ),
    "TIFF, 16 bits a colour": Odd(_deep),
    "TIFF, grey": Odd(_grey, refused="no 20x patch"),
    "TIFF, tiles that were never scanned": Odd(_lacking_tiles, note="white there"),
    "MRXS with gaps": Odd(_mirax, note="white there"),
    "PNG with transparency, `mpp=0.5`": Odd(_transparent_png, mpp=0.5, note="white there"),
    "several pieces of tissue": Odd(_pieces),
    "pen over tissue": Odd(_pen, note="no patches where most is ink"),
    "blurred": Odd(_blurred, note="`quality=[blur]` leaves it out"),
    "nearly empty": Odd(_empty, refused="no 20x patch is at least 0.5 tissue"),
    "PNG of 1 bit, `mpp=0.5`": Odd(_bilevel, refused="no 20x patch", mpp=0.5),
    "TIFF of 1 bit": Odd(_bilevel_tiled, refused="Cannot get required TIFF tag"),
    "DICOM, JPEG": Odd(lambda f: (dicom(f / "slide.dcm", tissue()), tissue())),
    "DICOM, uncompressed": Odd(lambda f: (dicom(f / "slide.dcm", tissue(), transfer="raw"), tissue())),
    "DICOM, 0.25 x 0.5 um/px": Odd(
        lambda f: (dicom(f / "slide.dcm", tissue(), mpp=(0.25, 0.5)), tissue()), size=(512, 256)
    ),
    "OME-TIFF, um/px in the tags": Odd(lambda f: _ome(f, resolution=True), note="level 0 only"),
    "OME-TIFF, um/px in the XML alone": Odd(lambda f: _ome(f, resolution=False), refused="does not say"),
    "OME-TIFF of 16-bit channels": Odd(_ome_channels, mpp=0.5, refused="no 20x patch"),
    "PNG": Odd(lambda f: _plain(f, "png"), refused="does not say how many um a pixel is"),
    "PNG, `mpp=0.5`": Odd(lambda f: _plain(f, "png"), mpp=0.5),
    "JPEG, `mpp=0.5`": Odd(lambda f: _plain(f, "jpg"), mpp=0.5, tolerance=4),
    "BMP, `mpp=0.5`": Odd(lambda f: _plain(f, "bmp"), mpp=0.5),
    "TIFF without tiles, `mpp=0.5`": Odd(lambda f: _plain(f, "tif"), mpp=0.5),
}


@pytest.mark.parametrize("name", ODD)
def test_right_or_refused(name: str, tmp_path: Path, extract_config: Callable) -> None:
    odd = ODD[name]
    folder = tmp_path / "slides"
    folder.mkdir()
    path, picture = odd.write(folder)
    words = [f"magnifications={odd.magnification}", *([] if odd.mpp is None else [f"mpp={odd.mpp}"])]
    config = extract_config(path, *words)
    report = extract_slide(SlideEntry("slide", path), config, load_encoder("color-stats", odd.magnification, "cpu"))
    assert not report.details, report.details
    assert (tmp_path / "bags" / "slide.h5").exists() == (not odd.refused)
    if odd.refused:
        assert report.status == "failed"
        assert odd.refused in report.error
        assert str(path) in report.error
        assert report.cure
        return
    assert report.status == "done", report.error
    assert (tmp_path / "bags" / "previews" / "slide.png").stat().st_size > 1000
    with Slide.open(path, default_mpp=odd.mpp) as slide:
        grid = make_grid(slide, find_tissue(slide), parse([odd.magnification]))
        (scale,) = grid.scales
        assert scale.size == odd.size
        width, height = scale.size
        padded = cv2.copyMakeBorder(picture, 0, height, 0, width, cv2.BORDER_CONSTANT, value=(255, 255, 255))
        for region in regions(grid):
            for _, rows, patches in read_region(slide, region):
                for (x, y), patch in zip(scale.coords[rows], patches, strict=True):
                    box = padded[y : y + height, x : x + width]
                    expected = cv2.resize(box, (256, 256), interpolation=cv2.INTER_AREA)
                    assert np.abs(patch.astype(int) - expected).mean() < odd.tolerance


def table() -> str:
    """The list of this file as the guide prints it."""
    rows = ["| slide | result | remark |", "|---|---|---|"]
    for name, odd in ODD.items():
        result = f'refused: "{odd.refused}"' if odd.refused else "right"
        said = not odd.refused and odd.size != (256, 256)
        pixels = f"a {odd.magnification} patch is {odd.size[0]} x {odd.size[1]} px of level 0" if said else ""
        rows.append(f"| {name} | {result} | {'; '.join(filter(None, (pixels, odd.note)))} |")
    return "\n".join(rows) + "\n"


def test_the_guide_prints_this_list() -> None:
    assert table() in GUIDE.read_text(encoding="utf-8")


def test_filters_of_quality(tmp_path: Path) -> None:
    """A slide of four quarters: good, blurred, dark and inked."""
    image = np.concatenate([np.concatenate([_full(), _full()], 1), np.concatenate([_full(), _full()], 1)])
    blurred, dark, inked = image[:512, 512:], image[512:, :512], image[512:, 512:]
    blurred[:] = cv2.GaussianBlur(blurred, (0, 0), 4)
    dark[:] = dark // 6 + np.array([20, 0, 15], np.uint8)
    for x in (40, 296):
        inked[:, x : x + 144] = (20, 150, 60)
    path = tiff(tmp_path / "slide.tif", pyramid(image, 4), compression="zlib")
    with Slide.open(path) as slide:
        mask = TissueMask(np.ones((64, 64), bool), (16.0, 16.0))  # as if all of it were taken for tissue
        grid = make_grid(slide, mask, parse(["20x", "5x"]))
        assert len(grid.scales[0].coords) == 16
        kept = {name: drop_faulty(slide, grid, [name]) for name in QUALITY_FILTERS}
        both = drop_faulty(slide, grid, ["blur", "pen", "dark"])
    places = {"blur": (512, 0), "dark": (0, 512), "pen": (512, 512)}
    for name, filtered in kept.items():
        left = {tuple(corner) for corner in filtered.scales[0].coords.tolist()}
        x, y = places[name]
        assert not left & {(x + i, y + j) for i in (0, 256) for j in (0, 256)}, name
        assert filtered.dropped == {"tissue": 0, name: 16 - len(left)}
        assert {(0, 0), (256, 0), (0, 256), (256, 256)} <= left
    assert both.scales[0].coords.tolist() == [[0, 0], [256, 0], [0, 256], [256, 256]]
    assert both.scales[1].coords.tolist() == [[0, 0]]
    assert both.parents["5x"].tolist() == [0, 0, 0, 0]
    assert both.parents["5x"].dtype == np.int32
    assert sum(both.dropped.values()) == 12


def _full() -> np.ndarray:
    """512 x 512 px of tissue without glass."""
    return tissue(1024)[256:768, 256:768].copy()


def test_what_the_filters_left_out_is_in_report_bag_and_hash(tmp_path: Path, extract_config: Callable) -> None:
    image = np.concatenate([_full(), cv2.GaussianBlur(_full(), (0, 0), 4)], axis=1)
    path = tiff(tmp_path / "slide.tif", pyramid(image, 4), compression="zlib")
    encoder, bags = load_encoder("color-stats", "20x", "cpu"), {}
    for out, words in {"all": [], "sharp": ["quality=[blur]"], "most": ["quality=[dark,blur]"]}.items():
        report = extract_slide(SlideEntry("slide", path), extract_config(path, *words, out=out), encoder)
        assert report.status == "done", report.error
        bags[out] = Bag.open(tmp_path / out / "slide.h5")
        assert report.dropped == bags[out].metadata.dropped
    assert len(bags["sharp"]) == len(bags["most"]) < len(bags["all"])
    assert bags["sharp"].metadata.dropped["blur"] == len(bags["all"]) - len(bags["sharp"])
    assert bags["most"].metadata.dropped["dark"] == 0
    assert "quality" not in bags["all"].metadata.configuration
    assert bags["sharp"].metadata.configuration["quality"] == {"blur": 30.0}
    assert len({bag.metadata.config_hash for bag in bags.values()}) == 3
    where = {tuple(corner): row for row, corner in enumerate(bags["all"].coords.tolist())}
    rows = [where[tuple(corner)] for corner in bags["sharp"].coords.tolist()]
    np.testing.assert_array_equal(bags["sharp"].features, bags["all"].features[rows])


def test_filters_that_leave_nothing_or_are_unknown(tmp_path: Path, extract_config: Callable) -> None:
    path = tiff(tmp_path / "slide.tif", [cv2.GaussianBlur(_full(), (0, 0), 4)], compression="zlib")
    config = extract_config(path, "quality=[blur,pen]")
    report = extract_slide(SlideEntry("slide", path), config, load_encoder("color-stats", "20x", "cpu"))
    assert (report.status, report.stage) == ("failed", "quality")
    assert re.search(r"none passes the quality filters \(pen 0, blur 4\)", report.error)
    for words, message in (("quality=[fold]", "no quality filter 'fold'"), ("quality=[pen,pen]", "twice")):
        with pytest.raises(ConfigurationError, match=message):
            check_config(extract_config(path, words))


@pytest.mark.shared_data
def test_filters_on_real_ink(shared_data: Path) -> None:
    """Tiles of ink alone are refused, tissue is not."""
    folder = shared_data / "stain_and_artifacts"
    pen = QUALITY_FILTERS["pen"]
    for name, inked in {
        "histolab_tile_no-tissue-green-pen": True,
        "histolab_tile_no-tissue-red-pen": True,
        "histolab_tile_tissue-level0-7352-11762-7864-12274": False,
        "histolab_tile_high-nuclei-score-level2": False,
    }.items():
        image = np.asarray(Image.open(folder / f"{name}.png").convert("RGB"))
        assert pen.refuses(cv2.resize(image, (256, 256), interpolation=cv2.INTER_AREA), 0.5) == inked

"""Files and names made to do harm, or looking like it: refused in one line, or taken for what they are."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.zoomfeat.odd_slides import dicom, pyramid, tiff, tissue
from zoomfeat.errors import ConfigurationError, SlideUnreadableError
from zoomfeat.files import guarded, unguarded
from zoomfeat.slides import Slide, SlideEntry, check_apart, find_slides, read_manifest, slides

# --- sizes


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"ImageWidth": 10**9, "ImageLength": 10**9}, "does not open it"),  # OpenSlide misses tiles
        ({"ImageWidth": 10**9}, "does not open it"),
        ({"TileWidth": 2**16 - 16, "TileLength": 2**16 - 16}, "claims tiles of 65520x65520 px"),
    ],
)
def test_absurd_sizes_are_refused_before_memory_is_taken(tmp_path: Path, tags: dict[str, int], message: str) -> None:
    path = tiff(tmp_path / "a.tif", [tissue(320)], compression="zlib")
    with tifffile.TiffFile(path, mode="r+b") as file:
        for name, value in tags.items():
            file.pages[0].tags[name].overwrite(value, dtype="I")
    with pytest.raises(SlideUnreadableError, match=message):
        Slide.open(path)


@pytest.mark.parametrize(("width", "height", "tile"), [(4_000_000, 256, 256), (600_000, 600_000, 4096)])
def test_absurd_slides_of_tiles_that_are_nowhere(tmp_path: Path, width: int, height: int, tile: int) -> None:
    """A file of some 100 kB may say that its tiles were never scanned; a thumbnail would take hours."""
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(
            (b"" for _ in range(-(-width // tile) * -(-height // tile))), shape=(height, width, 3), dtype=np.uint8,
            tile=(tile, tile), photometric="rgb", compression="zlib", metadata=None,
        )  # fmt: skip
    assert path.stat().st_size < 400_000
    with pytest.raises(SlideUnreadableError, match=f"claims {width}x{height} px, which no slide has"):
        Slide.open(path, mpp=0.5)


def test_an_absurd_dicom_is_refused(tmp_path: Path) -> None:
    path = dicom(tmp_path / "a.dcm", tissue(320))
    data = path.read_bytes()
    for tag in (b"\x48\x00\x06\x00UL\x04\x00", b"\x48\x00\x07\x00UL\x04\x00"):  # TotalPixelMatrixColumns, ...Rows
        at = data.index(tag) + len(tag)
        data = data[:at] + struct.pack("<I", 10**9) + data[at + 4 :]
    path.write_bytes(data)
    with pytest.raises(SlideUnreadableError, match=r"a\.dcm: .*(which no slide has|does not open it)"):
        Slide.open(path)


def test_a_picture_that_claims_to_be_absurd(tmp_path: Path) -> None:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b""))
    with pytest.raises(SlideUnreadableError, match="too large to decode at once"):
        Slide.open(path, mpp=0.5)


def test_a_tile_that_expands_hugely_is_a_tile(tmp_path: Path) -> None:
    """What a deflate stream holds beyond its tile is never expanded: the reader asks for the pixels of a tile."""
    bomb = zlib.compress(bytes(50_000_000), 9)
    assert len(bomb) < 60_000
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(
            iter([bomb]), shape=(256, 256, 3), dtype=np.uint8, tile=(256, 256), photometric="rgb", compression="zlib",
            resolution=(2e4, 2e4), resolutionunit="CENTIMETER", metadata=None,
        )  # fmt: skip
    with Slide.open(path) as slide:
        assert not slide.read(0, 0, 256, 256, [(256, 256)])[0].any()


def test_sizes_of_real_slides_are_far_below_the_bounds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif", [tissue(320)], compression="zlib")
    # 15 cm x 10 cm at 0.25 um/px: a whole-mount section, larger than any slide of a usual scanner.
    monkeypatch.setattr(openslide.OpenSlide, "dimensions", (600_000, 400_000))
    Slide.open(path).close()


# --- names

BAD_NAMES = {
    "": "not empty",
    ".hidden": "does not start with a dot",
    "..": "does not start with a dot",
    "../x": "does not start with a dot",
    "a/b": "holds no '/'",
    "/etc/passwd": "holds no '/'",
    "a\\b": r"holds no '\\\\'",
    "C:x": "holds no ':'",
    "a\0b": r"holds no '\\x00'",
    "a\nb": r"holds no '\\n'",
    "a\x7fb": r"holds no '\\x7f'",
    "what?": r"holds no '\?'",
    "CON": "device",
    "nul.1": "device",
    "Com1": "device",
    "x" * 201: "at most 200 bytes, this one has 201",
    "é" * 101: "at most 200 bytes, this one has 202",
}
GOOD_NAMES = [
    "TCGA-A1-A0SB-01Z-00-DX1.uuid",
    "=1+1",
    "-x",
    "@x",
    "conference",
    "Ω 5 (2)",
    "x" * 200,
    "a..b",
    "a'b",
    "%x",
]


@pytest.mark.parametrize("name", [name for name in BAD_NAMES if name and not set(name) & set("\0\n")])
def test_ids_of_a_manifest_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "slides.csv"
    path.write_text(f'path,slide_id\na.svs,"{name}"\n', encoding="utf-8")
    with pytest.raises(ConfigurationError, match=f"row 2: .* cannot name a bag: .*{BAD_NAMES[name]}"):
        read_manifest(path)


@pytest.mark.parametrize("name", [n for n in BAD_NAMES if n and "/" not in n and "\0" not in n and n[0] != "."])
def test_files_whose_names_no_bag_can_have_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.svs").touch()
    with pytest.raises(ConfigurationError, match=BAD_NAMES[name]) as caught:
        find_slides(tmp_path)
    assert "manifest" in caught.value.cure
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_odd_names_are_names(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.svs").touch()
    assert [entry.slide_id for entry in find_slides(tmp_path)] == [name]


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    try:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.svs")).touch()
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    with pytest.raises(ConfigurationError, match=r"\\udcff.*its path is not UTF-8") as caught:
        find_slides(tmp_path)
    str(caught.value).encode()


def test_names_that_differ_in_case_alone_are_one_file_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "slides.csv").write_text("path\nA.svs\na.svs\n")
    with pytest.raises(ConfigurationError, match="row 3 and row 2 are both called 'a'"):
        read_manifest(tmp_path / "slides.csv")


def test_results_are_kept_apart_from_slides(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "raw")
    entries = [SlideEntry("a", tmp_path / "raw" / "a.svs")]
    check_apart(entries, tmp_path / "out")
    for out in (tmp_path / "raw", tmp_path / "link", tmp_path / "raw" / ".." / "raw"):
        with pytest.raises(ConfigurationError, match="slides lie in this folder"):
            check_apart(entries, out)


# --- links and pipes


def test_links_and_pipes_among_the_slides(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "slides", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    tiff(elsewhere / "real.tif", [tissue(320)])
    (folder / "linked.tif").symlink_to(elsewhere / "real.tif")
    (folder / "gone.tif").symlink_to(elsewhere / "none.tif")
    (folder / "loop.dcm").symlink_to(folder / "loop.dcm")
    (folder / "folder").symlink_to(elsewhere)
    os.mkfifo(folder / "pipe.dcm")  # whose header would be waited for
    os.mkfifo(folder / "other-pipe.svs")
    entries = {entry.slide_id: entry.path for entry in find_slides(folder)}
    assert set(entries) == {"linked", "gone", "loop", "pipe", "other-pipe"}
    Slide.open(entries.pop("linked")).close()
    for path in entries.values():
        with pytest.raises(SlideUnreadableError, match="no such file"):
            Slide.open(path)
    with pytest.raises(SlideUnreadableError, match="no such file"):
        Slide.open(folder / ("x" * 300))


# --- manifests


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("path\né.svs\n".encode("latin-1"), "UTF-8"),
        ("path\na.svs\n".encode("utf-16"), "UTF-8"),
        (b"path\n\xff\xfe\n\xc3\xa9.svs\n", "UTF-8"),
        (b"path,Path\na.svs,b.svs\n", "two columns are called 'path'"),
        (b"path,mpp\na.svs,=1/4\n", "must be a positive number, not '=1/4'"),
        (b"path\n~nobody-of-this-name/../../..\n", "cannot name a bag"),
        (b"\x00\x01\x02\x03", "slides.csv"),
        (b'path\n"a.svs\n', "slides.csv"),
    ],
)
def test_manifests_that_are_none(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "slides.csv").write_bytes(data)
    with pytest.raises(ConfigurationError, match=message):
        read_manifest(tmp_path / "slides.csv")


def test_a_manifest_with_a_mark_and_formulas_is_text(tmp_path: Path) -> None:
    text = "\ufeffpath,slide_id,note\n=HYPERLINK.svs,,=1+1\n~nobody-of-this-name/a.svs,@x,+1\n"
    (tmp_path / "slides.csv").write_text(text, encoding="utf-8")
    assert [entry.slide_id for entry in read_manifest(tmp_path / "slides.csv")] == ["=HYPERLINK", "@x"]


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_are_a_manifest_or_a_planned_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("manifest") / "slides.csv"
    path.write_bytes(b"path,slide_id,mpp\n" + data)
    try:
        entries = read_manifest(path)
    except ConfigurationError:
        return
    for entry in entries:
        bag = Path("/out") / f"{entry.slide_id}.h5"
        assert Path(os.path.normpath(bag)).parent == Path("/out")


# --- spreadsheets


@given(st.text())
def test_guarded_text_is_no_formula_and_comes_back(text: str) -> None:
    assert not guarded(text).startswith(("=", "+", "-", "@", "\t", "\r"))
    assert unguarded(guarded(text)) == text


def test_a_slide_named_like_a_formula(tmp_path: Path, extract_config: Callable) -> None:
    from zoomfeat.commands.extract import run
    from zoomfeat.commands.verify import check_folder

    folder = tmp_path / "slides"
    folder.mkdir()
    tiff(folder / "=1+1.tif", pyramid(tissue(), 4))
    (folder / "-2+3.svs").write_bytes(b"no slide")
    assert run(extract_config(folder, "preview=false")) == 1
    rows = (tmp_path / "bags" / "report.csv").read_text().splitlines()
    assert {row.split(",")[0] for row in rows[1:]} == {"'=1+1", "'-2+3"}
    assert (tmp_path / "bags" / "=1+1.h5").is_file()
    assert not check_folder(tmp_path / "bags")


def test_one_slide_by_a_bad_name(tmp_path: Path) -> None:
    (tmp_path / "aux.svs").touch()
    with pytest.raises(ConfigurationError, match="device"):
        slides(tmp_path / "aux.svs")

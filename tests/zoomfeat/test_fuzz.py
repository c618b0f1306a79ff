"""Broken slides, bags and weights: extracted or refused, and never a crash, a hang, or a file out of place.

The corpus of past crashes comes first: each file that once ended in an error nobody planned for, as a recipe.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from safetensors.torch import save_file

from tests.zoomfeat.fuzzing import Findings, Worker, meet_corpus, mutated
from tests.zoomfeat.odd_slides import aperio, dicom, plain, pyramid, tiff, tissue
from zoomfeat.apart import Apart
from zoomfeat.bags import Bag, BagMetadata, ScaleFeatures
from zoomfeat.cli import main
from zoomfeat.commands.verify import check_apart
from zoomfeat.encoders.pretrained import read_weights
from zoomfeat.errors import ZoomfeatError

SLOW_MINUTES = float(os.environ.get("ZOOMFEAT_FUZZ_MINUTES", "8"))


@pytest.fixture(scope="module")
def whole_slides(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A slide of every kind of file, small: a case takes milliseconds."""
    folder, image = tmp_path_factory.mktemp("whole"), tissue(600)[100:420, 100:420].copy()
    return [
        aperio(folder / "a.svs", image),
        tiff(folder / "jpeg.tiff", pyramid(image, 4)),
        tiff(folder / "deflate.tiff", pyramid(image, 4), compression="zlib"),
        tiff(folder / "big.tif", pyramid(image, 4), compression="lzw", bigtiff=True),
        aperio(folder / "j2k.svs", image, jpeg2000=True),
        dicom(folder / "jpeg.dcm", image),
        dicom(folder / "raw.dcm", image, transfer="raw"),
        tiff(folder / "untiled.tif", [image], tile=None, compression=None),
        plain(folder / "plain.png", image),
        plain(folder / "plain.jpg", image),
        plain(folder / "plain.bmp", image),
    ]


@pytest.fixture(scope="module")
def whole_bags(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    rng = np.random.default_rng(0)
    coords = np.stack(np.meshgrid(np.arange(8), np.arange(8)), -1).reshape(-1, 2) * 256
    scales = (
        _scale("20x", coords, 256, 0.5, rng),
        _scale("5x", np.array([[0, 0], [1024, 0], [0, 1024], [1024, 1024]]), 1024, 2.0, rng),
    )
    rows = (coords[:, 1] // 1024 * 2 + coords[:, 0] // 1024).astype(np.int32)
    described = {"level0_width": 2048, "level0_height": 2048, "mpp_level0": (0.5, 0.5)}
    metadata = BagMetadata(slide_id="bag", encoder="color-stats", **described)
    path = tmp_path_factory.mktemp("whole") / "bag.h5"
    Bag(scales, {"5x": rows}, metadata=metadata).save(path)
    return [path]


def _scale(name: str, coords: np.ndarray, size: int, mpp: float, rng: np.random.Generator) -> ScaleFeatures:
    features = rng.normal(size=(len(coords), 16)).astype(np.float32)
    return ScaleFeatures(
        magnification=name, coords=coords.astype(np.int64), patch_size_level0=(size, size), mpp=mpp, features=features
    )


@pytest.fixture(scope="module")
def whole_weights(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, state = tmp_path_factory.mktemp("whole"), torch.nn.Linear(8, 4).state_dict()
    save_file(state, folder / "a.safetensors")
    torch.save(state, folder / "zip.pt")
    torch.save(state, folder / "old.pt", _use_new_zipfile_serialization=False)
    return [folder / name for name in ("a.safetensors", "zip.pt", "old.pt")]


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker()
    yield worker
    worker.close()


def told(findings: Findings) -> str:
    """What a failed test prints."""
    return f"crashed {findings.crashed}, hung {findings.hung}, broke {findings.broke}"


# --- past crashes


def _tag(path: Path, code: int, kind: int, count: int, value: int) -> Path:
    """Overwrites a tag of the first directory of a little-endian TIFF."""
    data = bytearray(path.read_bytes())
    (at,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, at)
    for entry in range(at + 2, at + 2 + 12 * entries, 12):
        if struct.unpack_from("<H", data, entry)[0] == code:
            struct.pack_into("<HII", data, entry + 2, kind, count, value)
    path.write_bytes(data)
    return path


def _two_tile_widths(folder: Path) -> Path:
    """A tuple compared with a number in tifffile: TypeError."""
    path = tiff(folder / "a.tif", [tissue(320)])
    return _tag(path, 322, 3, 2, 256 | 256 << 16)


def _strips_of_text(folder: Path) -> Path:
    """Pillow seeks to a text: TypeError."""
    path = tiff(folder / "a.tif", [tissue(320)], tile=None, compression=None)
    return _tag(path, 273, 2, 3, int.from_bytes(b"ab\0\0", "little"))


def _sampling_that_differs(folder: Path) -> Path:
    """What libtiff says of it, and so the report's error, went over two lines."""
    path = tiff(folder / "a.tif", [tissue(320)], subsampling=(1, 1))
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        starts = file.pages[0].dataoffsets
    for start in starts:
        frame = data.index(b"\xff\xc0", start)
        data[frame + 11] = 0x22  # sampling of the first component (ITU-T T.81, B.2.2)
    path.write_bytes(data)
    return path


def _dicom_group_of_a_byte(folder: Path) -> Path:
    """The length of the first group, which is a number of four bytes: pydicom's own error ended the whole run."""
    path = dicom(folder / "a.dcm", tissue(320), transfer="raw")
    data = bytearray(path.read_bytes())
    assert data[128:140] == b"DICM\x02\0\0\0UL\x04\0"
    data[138] = 1
    path.write_bytes(data)
    return path


def _dicom_of_gigabytes(folder: Path) -> Path:
    """The length of an element of the head: MemoryError while slides were listed, the end of the whole run."""
    path = dicom(folder / "a.dcm", tissue(320), transfer="raw")
    data = bytearray(path.read_bytes())
    assert data[144:156] == b"\x02\0\x01\0OB\0\0\x02\0\0\0"
    data[152:156] = b"\xfe\xff\xff\xff"
    path.write_bytes(data)
    return path


def _tile_of_gigabytes(folder: Path) -> Path:
    """Memory was taken for as many bytes as the tag said: MemoryError, and in OpenSlide the end of the process."""
    path = tiff(folder / "a.tif", [tissue(256)[:256, :256].copy()])
    return _tag(path, 325, 4, 1, 2**32 - 1)


def _jpeg_of_version_17(folder: Path) -> Path:
    """To OpenSlide libjpeg's warning is an error, after which not even the size of the slide is to be had."""
    path = tiff(folder / "a.tif", [tissue(320)])
    data = path.read_bytes()
    assert b"JFIF\0\x01" in data
    path.write_bytes(data.replace(b"JFIF\0\x01", b"JFIF\0\x11"))
    return path


PAST_SLIDES = [
    _two_tile_widths,
    _strips_of_text,
    _sampling_that_differs,
    _dicom_group_of_a_byte,
    _dicom_of_gigabytes,
    _tile_of_gigabytes,
    _jpeg_of_version_17,
]


def test_past_weights(whole_weights: list[Path], tmp_path: Path) -> None:
    """PyTorch's old layout, cut within a number: struct.error."""
    data = whole_weights[2].read_bytes()
    path = tmp_path / "cut.pt"
    refused = 0
    for end in range(len(data) - 60, len(data)):
        path.write_bytes(data[:end])
        with pytest.raises(ZoomfeatError, match=r"cut\.pt"):
            read_weights(path)
        refused += 1
    assert refused == 60


@pytest.mark.parametrize("recipe", PAST_SLIDES)
def test_past_crashes(recipe: Callable[[Path], Path], worker: Worker, tmp_path: Path) -> None:
    (tmp_path / "slides").mkdir()
    answer = worker.meet(recipe(tmp_path / "slides"))
    assert answer["status"] in ("done", "failed", "refused"), answer


def _heap_without_end(path: Path) -> Path:
    """The free space at the end of a heap of texts says that it is 0 bytes long: libhdf5 looks at it for ever."""
    data = bytearray(path.read_bytes())
    at = data.index(b"GCOL") + 16
    while data[at : at + 2] != b"\0\0":  # objects of (number, references, size) and bytes in eights; 0: free space
        at += 16 + -(-int.from_bytes(data[at + 8 : at + 16], "little") // 8) * 8
    data[at + 8 : at + 16] = bytes(8)
    path.write_bytes(data)
    return path


def test_a_bag_that_libhdf5_does_not_return_from(
    whole_bags: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is a row, in time, and the others are not missed."""
    bag = Bag.open(whole_bags[0])
    for name in ("bag", "other"):
        Bag(bag.scales, bag.parents, metadata=replace(bag.metadata, slide_id=name)).save(tmp_path / f"{name}.h5")
    _heap_without_end(tmp_path / "bag.h5")
    assert main(["verify", str(tmp_path), "bag_timeout=10"]) == 1
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "bag.h5 not finished after 10 s" in text
    assert "2 bags checked, 1 file not as it should be" in text
    monkeypatch.setattr("zoomfeat.bags.files.TRIAL_SECONDS", 10)
    assert main(["convert", f"source={tmp_path}", "to=clam", f"out={tmp_path / 'clam'}"]) == 1
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "the HDF5 file is damaged (not finished after 10 s)" in text
    assert "2 slides: 1 converted, 1 failed" in text


def test_the_worker_sees_what_it_is_there_for(worker: Worker, tmp_path: Path) -> None:
    """A harness that finds nothing must be able to: a good slide is done, an unplanned error is told."""
    (tmp_path / "slides").mkdir()
    tiff(tmp_path / "slides" / "a.tif", [tissue()])
    assert worker.meet(tmp_path / "slides" / "a.tif") == {"status": "done"}
    (tmp_path / "unknown").mkdir()
    assert worker.meet(tmp_path / "unknown" / "a") == {"status": "broke", "error": "KeyError: 'unknown'"}


# --- new cases


def test_a_few_dozen_slides(worker: Worker, whole_slides: list[Path], tmp_path: Path) -> None:
    findings = meet_corpus(worker, whole_slides, tmp_path, range(44), "slides")
    assert findings.cases == 44
    assert findings.clean, told(findings)
    assert findings.answers["done"] > 3
    assert findings.answers["failed"] > 10


def test_a_few_dozen_bags_and_weights(
    worker: Worker, whole_bags: list[Path], whole_weights: list[Path], tmp_path: Path
) -> None:
    for files, kind in ((whole_bags, "bags"), (whole_weights, "weights")):
        (tmp_path / kind).mkdir()
        findings = meet_corpus(worker, files, tmp_path / kind, range(30), kind)
        assert findings.clean, told(findings)
        assert findings.answers["refused"] > 5


def _is_told_by_verify(files: list[Path], case: int, folder: Path) -> bool:
    path = folder / f"case-{case}.h5"
    path.write_bytes(mutated(files[case % len(files)].read_bytes(), case))
    apart = Apart()
    found = check_apart(path, apart, 60)
    apart.stop()
    return len(found) == 1


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_thousands(
    worker: Worker, whole_slides: list[Path], whole_bags: list[Path], whole_weights: list[Path], tmp_path: Path
) -> None:
    """Prints what docs/reliability.md tells; ``ZOOMFEAT_FUZZ_MINUTES`` bounds each kind of slides, bags and weights."""
    broken = []
    for files, kind, share in (
        (whole_slides, "slides", 0.7),
        (whole_bags, "bags", 0.2),
        (whole_weights, "weights", 0.1),
    ):
        (tmp_path / kind).mkdir()
        until = time.monotonic() + 60 * SLOW_MINUTES * share
        findings = meet_corpus(worker, files, tmp_path / kind, range(10_000), kind, until=until)
        print(
            f"\n{kind}: {findings.cases} cases in {findings.seconds:.0f} s, {dict(findings.answers)}, {told(findings)}"
        )
        if kind == "bags":  # libhdf5 itself does not return from some; `zoomfeat verify` does
            findings.hung = [case for case in findings.hung if not _is_told_by_verify(files, case, tmp_path)]
        if not findings.clean:
            broken.append(kind)
    assert not broken


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.timeout(3600)
def test_hundreds_of_a_real_slide(worker: Worker, shared: Path, tmp_path: Path) -> None:
    files = [shared / "slides" / "CMU-1-Small-Region.svs", shared / "slides" / "boxes_0.dcm"]
    until = time.monotonic() + 60 * SLOW_MINUTES * 0.5
    findings = meet_corpus(worker, files, tmp_path, range(1000), "slides", until=until)
    print(f"\nreal: {findings.cases} cases in {findings.seconds:.0f} s, {dict(findings.answers)}, {told(findings)}")
    assert findings.clean, told(findings)

import shutil
from pathlib import Path

import pydicom
import pytest

from zoomfeat.errors import ConfigurationError
from zoomfeat.slides.cohort import SlideEntry, find_slides, read_manifest, slides


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def write_dicom(path: Path, series: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = pydicom.Dataset()
    header.SOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.6"
    header.SOPInstanceUID = pydicom.uid.generate_uid()
    header.SeriesInstanceUID = series
    header.file_meta = pydicom.dataset.FileMetaDataset()
    header.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    header.save_as(path, enforce_file_format=True)


def ids(folder: Path) -> list[str]:
    return [entry.slide_id for entry in find_slides(folder)]


# --- folders


def test_slides_below_a_folder_sorted_by_path(tmp_path: Path) -> None:
    touch(tmp_path, "b.SVS", "a/TCGA-A1.01Z.uuid.svs", "c.ome.tif", "d.OME.TIFF", "e.jpeg")
    touch(tmp_path, "notes.txt", "f.svs.partial", ".hidden.svs", ".cache/g.svs")
    assert find_slides(tmp_path) == [
        SlideEntry("TCGA-A1.01Z.uuid", tmp_path / "a" / "TCGA-A1.01Z.uuid.svs"),
        SlideEntry("b", tmp_path / "b.SVS"),
        SlideEntry("c", tmp_path / "c.ome.tif"),
        SlideEntry("d", tmp_path / "d.OME.TIFF"),
        SlideEntry("e", tmp_path / "e.jpeg"),
    ]


def test_files_of_mrxs_and_vms_slides_are_no_slides(tmp_path: Path) -> None:
    touch(tmp_path, "a.mrxs", "a/Data0001.dat", "a/Slide.jpg", "b.vms", "b(1,0).jpg", "b_map2.jpg", "c.jpg")
    assert ids(tmp_path) == ["a", "b", "c"]


def test_a_dicom_series_is_one_slide(tmp_path: Path) -> None:
    for name in ("1.dcm", "2.dcm", "3.dcm"):
        write_dicom(tmp_path / "patient-1" / name, "1.2.3")
    write_dicom(tmp_path / "mixed" / "4.dcm", "1.2.4")
    write_dicom(tmp_path / "mixed" / "5.dcm", "1.2.4")
    write_dicom(tmp_path / "mixed" / "6.dcm", "1.2.5")
    touch(tmp_path, "damaged/7.dcm")
    assert [(entry.slide_id, entry.path.name) for entry in find_slides(tmp_path)] == [
        ("7", "7.dcm"),
        ("4", "4.dcm"),
        ("6", "6.dcm"),
        ("patient-1", "1.dcm"),
    ]


def test_two_slides_of_one_name(tmp_path: Path) -> None:
    touch(tmp_path, "x/a.svs", "y/a.tif")
    with pytest.raises(ConfigurationError, match=r"'a'.*x/a\.svs.*y/a\.tif.*manifest"):
        find_slides(tmp_path)


def test_no_slides(tmp_path: Path) -> None:
    touch(tmp_path, "a.txt")
    with pytest.raises(ConfigurationError, match=r"no slides.*\.svs.*\.mrxs"):
        find_slides(tmp_path)
    with pytest.raises(ConfigurationError, match="no such folder"):
        find_slides(tmp_path / "none")


@pytest.mark.shared_data
def test_the_real_slides(shared_data: Path) -> None:
    assert ids(shared_data / "slides") == [
        "CMU-1-Small-Region",
        "boxes",
        "boxes_0",  # with boxes_1 one DICOM series
        "pyramid_mask_15360x23552",
        "small",
    ]


@pytest.mark.shared_data
def test_a_real_dicom_series_is_named_after_its_folder(shared_data: Path, tmp_path: Path) -> None:
    for name in ("boxes_0.dcm", "boxes_1.dcm"):
        shutil.copy(shared_data / "slides" / name, tmp_path / name)
    assert find_slides(tmp_path) == [SlideEntry(tmp_path.name, tmp_path / "boxes_0.dcm")]


# --- manifests


def manifest(tmp_path: Path, text: str, encoding: str = "utf-8") -> Path:
    path = tmp_path / "slides.csv"
    path.write_text(text, encoding=encoding)
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_manifest(tmp_path: Path, encoding: str) -> None:
    text = "path,slide_id,mpp,label\nsub/a.svs,,0.25,x\n/data/é.b.tif,two, ,y\n"
    assert read_manifest(manifest(tmp_path, text, encoding)) == [
        SlideEntry("a", tmp_path / "sub" / "a.svs", (0.25, 0.25)),
        SlideEntry("two", Path("/data/é.b.tif"), None),
    ]


def test_manifest_with_mpp_of_each_axis_and_loose_headings(tmp_path: Path) -> None:
    entries = read_manifest(manifest(tmp_path, "MPP_Y, Path ,mpp_x\n0.5,a.svs,0.25\n,b.svs,\n"))
    assert [entry.mpp for entry in entries] == [(0.25, 0.5), None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file\na.svs\n", "no column 'path' among file"),
        ("path\n", "no rows"),
        ("", "not a readable CSV table"),
        ("path,slide_id\na.svs,x\nb.svs,x\n", "row 3 and row 2 are both called 'x'"),
        ("path\na/s.svs\nb/s.svs\n", "row 3 and row 2 are both called 's'"),
        ("path,mpp\na.svs,abc\n", "row 2: um/px must be a positive number, not 'abc'"),
        ("path,mpp\na.svs,0\n", "row 2: um/px must be"),
        ("path,mpp\na.svs,nan\n", "row 2: um/px must be"),
        ("path,mpp_x,mpp_y\na.svs,0.5,\n", "row 2: um/px must be a positive number, not '0.5', ''"),
        ("path,mpp_x\na.svs,0.5\n", "columns mpp_x do not go together"),
        ("path,mpp,mpp_x,mpp_y\na.svs,1,1,1\n", "columns mpp, mpp_x, mpp_y do not go together"),
        ("path,slide_id\na.svs,..\n", "row 2: '..' cannot name a bag"),
        ("path,slide_id\na.svs,a/b\n", "row 2: 'a/b' cannot name a bag"),
        ("path,mpp\n,0.5\n", "row 2 has no path"),
    ],
)
def test_what_a_manifest_must_not_be(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"slides.csv: .*{message}"):
        read_manifest(manifest(tmp_path, text))


def test_a_manifest_in_another_encoding(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="UTF-8"):
        read_manifest(manifest(tmp_path, "path\né.svs\n", "latin-1"))


# --- either


def test_slides_of_a_folder_a_file_or_a_manifest(tmp_path: Path) -> None:
    touch(tmp_path, "cohort/a.svs")
    expected = [SlideEntry("a", tmp_path / "cohort" / "a.svs")]
    assert slides(tmp_path / "cohort") == expected
    assert slides(tmp_path / "cohort" / "a.svs") == expected
    assert slides(manifest(tmp_path, "path\ncohort/a.svs\n")) == expected
    with pytest.raises(ConfigurationError, match="no such file or folder"):
        slides(tmp_path / "none.csv")

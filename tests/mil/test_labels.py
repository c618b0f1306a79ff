from __future__ import annotations

import h5py
import numpy as np
import pandas as pd
import pytest

from mil.cohort import find_bags, join
from mil.labels import Columns, read_labels, slide_name
from mil.metrics import auroc
from zoomfeat.errors import ConfigurationError


@pytest.fixture
def write(tmp_path):
    """Writes a table and returns its path."""

    def make(text, name="labels.csv"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return make


@pytest.fixture
def bag_folder(tmp_path):
    """Makes empty-looking bags of some names."""

    def make(*names):
        folder = tmp_path / "bags"
        folder.mkdir(exist_ok=True)
        for name in names:
            with h5py.File(folder / name, "w") as file:
                file["features"] = np.zeros((1, 2), np.float32)
        return folder

    return make


TABLE = """slide_id,patient_id,subtype,score,fold,center
A.1.svs,P1,IDC,3.5,0,x
B.1.svs,P2,ILC,1.5,1,y
B.2.svs,P2,ILC,1.5,1,y
C.1,P3,IDC,2.5,2,x
D.1,P4,,,2,x
"""


def test_slides_without_a_label_are_left_out_and_counted(write):
    labels = read_labels(write(TABLE), Columns(label="subtype"))
    assert labels.slide_ids.tolist() == ["A.1", "B.1", "B.2", "C.1"]
    assert labels.y.tolist() == ["IDC", "ILC", "ILC", "IDC"]
    assert labels.classes == ("IDC", "ILC")
    assert labels.unlabelled == 1
    assert labels.folds.tolist() == ["0", "1", "1", "2"]
    assert labels.centers.tolist() == ["x", "y", "y", "x"]
    patients = labels.patients
    assert patients.names.tolist() == ["P1", "P2", "P3"]
    assert patients.y[patients.of_slide].tolist() == labels.y.tolist()


def test_numbers_and_chosen_classes(write):
    assert read_labels(write(TABLE), Columns(label="score"), task="regression").y.tolist() == [3.5, 1.5, 1.5, 2.5]
    assert read_labels(write(TABLE), Columns(label="subtype"), classes=["ILC", "IDC"]).classes == ("ILC", "IDC")


def test_survival(write):
    text = "slide_id,patient_id,time,event\na,P,12,1\nb,Q,3.5,0\nc,R,,1\n"
    labels = read_labels(write(text), task="survival")
    assert labels.y.tolist() == [12, 3.5]
    assert labels.event.tolist() == [True, False]


def test_parquet_semicolons_and_gaps_give_the_same_classes(write, tmp_path):
    text = "slide_id;patient_id;label\na;P;1\nb;Q;0\nc;R;\n"
    pd.DataFrame({"slide_id": ["a", "b", "c"], "patient_id": ["P", "Q", "R"], "label": [1.0, 0.0, None]}).to_parquet(
        tmp_path / "labels.parquet"
    )
    for path in (write(text), tmp_path / "labels.parquet"):
        labels = read_labels(path)
        assert labels.classes == ("0", "1")
        assert labels.y.tolist() == ["1", "0"]


def test_a_table_of_patients_takes_its_slides_from_another(write):
    write("ID,case_id,test\na.svs,P,0\nb.svs,P,0\nc.svs,Q,1\nd.svs,S,1\n", "slides.csv")
    text = write("sampleID,HRD,label\nP,40,1\nQ,12,0\nR,5,0\n")
    columns = Columns(label="HRD", patient="sampleID", fold="test")
    labels = read_labels(text, columns, task="regression", slide_table=text.parent / "slides.csv")
    assert labels.slide_ids.tolist() == ["a", "b", "c"]
    assert labels.y.tolist() == [40, 40, 12]
    assert labels.folds.tolist() == ["0", "0", "1"]
    assert labels.unlabelled == 1  # slide d


def test_tissue_source_sites_and_their_names(write):
    text = "slide_id,patient_id,label\na,TCGA-A2-0001,1\nb,TCGA-BH-0002,0\nc,TCGA-AN-0003,0\n"
    assert read_labels(write(text), Columns(center="tcga-site")).centers.tolist() == ["A2", "BH", "AN"]
    names = write("TSS Code;Source Site\nA2;Walter Reed\nBH;Pittsburgh\nAN;Walter Reed\n", "sites.csv")
    labels = read_labels(write(text), Columns(center="tcga-site"), center_names=names)
    assert labels.centers.tolist() == ["Walter Reed", "Pittsburgh", "Walter Reed"]
    with pytest.raises(ConfigurationError, match="3 patients without a TCGA barcode: P1, P2, P3"):
        read_labels(write(TABLE), Columns(label="subtype", center="tcga-site"))


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("slide_id,patient_id\na,P\n", Columns(label="subtype"), "no column 'subtype'"),
        ("name,patient_id,label\na,P,1\n", Columns(), "no column 'slide_id' or 'slide' or 'ID'"),
        ("slide_id,name,label\na,P,1\n", Columns(), "patient_column="),
        ("slide_id,patient_id,label\na,P,1\nb,Q,1\n", Columns(), "one class only"),
        ("slide_id,patient_id,label\na,P,1\nb,P,0\n", Columns(), r"1 patient with different labels: P \(P: 0, 1\)"),
        ("slide_id,patient_id,label\na,P,1\na.svs,Q,0\n", Columns(), "1 slide listed twice: a"),
        ("slide_id,patient_id,label\na,,1\nb,Q,0\n", Columns(), "row 2 has no patient_id"),
        ("slide_id,patient_id,label\na,P,\nb,Q,\n", Columns(), "no row has a value of label"),
        ("", Columns(), "not a readable table"),
        ("slide_id,patient_id,label\n", Columns(), "no rows"),
    ],
)  # fmt: skip
def test_bad_tables_are_one_line(write, text, columns, message):
    with pytest.raises(ConfigurationError, match=message) as caught:
        read_labels(write(text), columns)
    assert "\n" not in str(caught.value)
    assert "labels.csv" in str(caught.value)


def test_bad_numbers_and_events(write):
    with pytest.raises(ConfigurationError, match="score is 'high' in 1 rows, expected a number"):
        read_labels(write(TABLE.replace("3.5", "high")), Columns(label="score"), task="regression")
    with pytest.raises(ConfigurationError, match="event is 'dead'"):
        read_labels(write("slide_id,patient_id,time,event\na,P,1,dead\nb,Q,2,0\n"), task="survival")
    with pytest.raises(ConfigurationError, match="no patient has the event"):
        read_labels(write("slide_id,patient_id,time,event\na,P,1,0\nb,Q,2,0\n"), task="survival")


def test_names_lose_suffixes_and_keep_dots():
    assert slide_name("TCGA-A7-A6VV-01Z-00-DX1.07AE0E16-A883.svs") == "TCGA-A7-A6VV-01Z-00-DX1.07AE0E16-A883"
    assert slide_name("a.b.OME.TIFF") == "a.b"
    assert slide_name("1.5.h5") == "1.5"
    assert slide_name("plain.07AE0E16") == "plain.07AE0E16"


def test_join_reports_both_ways(write, bag_folder):
    labels = read_labels(write(TABLE), Columns(label="subtype"))
    folder = bag_folder("A.1.h5", "B.1.svs.h5", "C.1.h5", "C.1.pt", "E.9.h5", ".hidden.h5")
    cohort, report = join(labels, folder)
    assert cohort.slide_ids.tolist() == ["A.1", "B.1", "C.1"]
    assert [path.name for path in cohort.paths] == ["A.1.h5", "B.1.svs.h5", "C.1.h5"]
    assert cohort.y.tolist() == ["IDC", "ILC", "IDC"]
    assert cohort.folds.tolist() == ["0", "1", "2"]
    assert report.without_bag == ("B.2",)
    assert report.without_label == ("E.9",)
    assert report.lines() == [
        "3 slides with a label and a bag",
        "1 labelled slide without a bag: B.2",
        "1 bag without a label: E.9",
        "1 row of the table without a label, or of other classes",
    ]


def test_short_names_match_only_where_unambiguous(write, bag_folder):
    text = "slide_id,patient_id,label\nX-DX1.uuid1,P,1\nY-DX1.uuid2,Q,0\nZ.1,R,0\nZ.2,R,0\nW.1,S,1\n"
    labels = read_labels(write(text))
    cohort, report = join(labels, bag_folder("X-DX1.h5", "Y-DX1.uuid2.h5", "Z.h5", "W.2.h5"))
    assert cohort.slide_ids.tolist() == ["X-DX1.uuid1", "Y-DX1.uuid2"]  # Z fits two slides; W.2 is not W.1
    assert report.by_short_name == 1
    assert set(report.without_bag) == {"Z.1", "Z.2", "W.1"}
    assert set(report.without_label) == {"Z", "W.2"}


def test_an_empty_join_is_an_error_and_so_is_one_class_left(write, bag_folder, tmp_path):
    labels = read_labels(write(TABLE), Columns(label="subtype"))
    with pytest.raises(ConfigurationError, match=r"none of its 4 slides has a bag .* A.1, B.1 .* Q"):
        join(labels, bag_folder("Q.h5"))
    with pytest.raises(ConfigurationError, match=r"one class only \(IDC\) among the slides that have bags"):
        join(labels, bag_folder("A.1.h5", "C.1.h5"))
    (tmp_path / "clam" / "pt_files").mkdir(parents=True)
    (tmp_path / "clam" / "pt_files" / "A.1.pt").touch()
    with pytest.raises(ConfigurationError, match="some in pt_files below"):
        find_bags(tmp_path / "clam")
    with pytest.raises(ConfigurationError, match="no such folder"):
        find_bags(tmp_path / "absent")


@pytest.mark.shared_data
def test_tcga_tables(shared):
    folder = shared / "labels"
    labels = read_labels(folder / "brca_mhrd.csv", Columns(fold="test"))
    assert (len(labels), len(labels.patients.names)) == (912, 853)
    assert [int((labels.y == name).sum()) for name in labels.classes] == [465, 447]
    labels = read_labels(folder / "brca_histotypes.csv", Columns(fold="test"))
    assert (len(labels), len(labels.patients.names), labels.classes) == (1041, 977, ("ductal", "lobular"))
    labels = read_labels(folder / "hipt_tcga_brca_subset.csv", Columns(label="oncotree_code"), classes=["IDC", "ILC"])
    assert (len(labels), labels.unlabelled) == (875, 62)
    assert not any(name.endswith(".svs") for name in labels.slide_ids)


@pytest.mark.shared_data
def test_hrd_as_a_number_and_as_a_class(shared, bag_folder):
    """The numeric score, by patient, and the binary label, by slide, name the same slides and agree (AUC 0.955)."""
    folder = shared / "labels"
    columns = Columns(label="HRD_index", patient="sampleID", fold="test")
    scores = read_labels(
        folder / "tcga_brca_hrd_hallmarks.csv", columns, task="regression", slide_table=folder / "brca_mhrd.csv"
    )
    classes = read_labels(folder / "brca_mhrd.csv", Columns(fold="test"))
    assert len(scores) + scores.unlabelled == len(classes) == 912
    of_slide = dict(zip(classes.slide_ids.tolist(), classes.y.tolist(), strict=True))
    truth = np.array([of_slide[name] == "1" for name in scores.slide_ids.tolist()], dtype=float)
    area = auroc(np.ones((1, len(scores))), truth, scores.y)[0]
    print(f"numeric HRD score against the binary label: AUROC {area:.3f} on {len(scores)} slides")
    assert area == pytest.approx(0.955, abs=0.005)
    bags = bag_folder(
        *(f"{name}.h5" for name in scores.slide_ids[:40]), *(f"{name}.h5" for name in classes.slide_ids[:60])
    )
    for labels in (scores, classes):
        cohort, report = join(labels, bags)
        assert report.matched == len(cohort) >= 40
        assert report.without_label == tuple(sorted({p.stem for p in bags.iterdir()} - set(labels.slide_ids.tolist())))

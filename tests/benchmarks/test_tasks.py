"""Tasks read, checked and versioned; the tables of TCGA-BRCA built from the public ones, and refused when changed."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import shutil
import zipfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from benchmarks.tasks import brca, load_task, patients_sha256, task_names
from benchmarks.tasks.cohorts import provide_cohort, write_regions
from mil.labels import read_labels
from mil.splits import check_leaks, column_folds, load_splits
from zoomfeat import Bag
from zoomfeat.conf.schema import ExtractConfig
from zoomfeat.encoders import encoder_names, load_encoder
from zoomfeat.errors import ConfigurationError
from zoomfeat.extraction import extract_slide
from zoomfeat.magnification import BRCA
from zoomfeat.slides import slides

QUIET = Console(quiet=True)


@pytest.mark.parametrize("name", task_names())
def test_tasks_of_the_package_name_encoders_and_magnifications_that_exist(name):
    task = load_task(name)
    assert task.name == name
    assert set(task.encoders) <= set(encoder_names())
    for magnification in (*task.magnifications, *(each.magnification for each in task.published)):
        assert set(magnification.split("+")) <= {step.name for step in BRCA.steps}
    assert {each.encoder for each in task.published} <= {None, *encoder_names()}
    assert all(each.source for each in task.published)


def test_published_values_stand_in_the_unit_of_our_metrics():
    hrd = {(p.row, p.magnification): p.value for p in load_task("brca_hrd").published}
    assert hrd["ZoomLDM", "20x+5x"] == 0.8803
    patches = load_task("patch_generation").published
    assert [p.magnification for p in patches if p.row == "ZoomLDM"] == [step.name for step in BRCA.steps]
    assert len([p for p in patches if p.row == "best other"]) == 8
    large = {(p.row, p.magnification, p.metric): p.value for p in load_task("large_image").published}
    assert large["ZoomLDM", "1.25x", "seconds"] == 8 * 60
    assert large["Graikos et al.", "1.25x", "crop_fid"] == 11.30


def test_the_version_follows_what_decides_a_result_and_nothing_else():
    task = load_task("phantom")
    other = dataclasses.replace(task, protocol=dataclasses.replace(task.protocol, folds=3))
    assert other.version != task.version
    assert dataclasses.replace(task, size=41).version != task.version
    assert dataclasses.replace(task, seed=task.seed + 1).version != task.version
    assert dataclasses.replace(task, title="another", encoders=("uni",), primary=()).version == task.version


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("kind: classification", "kind"),
        ("metric: auroc", "metric: Field required"),
        ("classes: [LUAD, LUSC]", "without classes"),
        ("title:", "title"),
    ],
)
def test_a_definition_with_a_field_missing_is_refused_by_the_field(tmp_path, change, message):
    text = load_task("luad_lusc_regions").path.read_text()
    lines = [line for line in text.splitlines() if not line.startswith(change)]
    assert len(lines) == len(text.splitlines()) - 1
    (tmp_path / "mine.yaml").write_text("\n".join(lines))
    with pytest.raises(ConfigurationError, match=message):
        load_task(str(tmp_path / "mine.yaml"))


def test_unknown_names_keys_and_files_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="Did you mean brca_subtyping"):
        load_task("brca_subtypng")
    path = tmp_path / "mine.yaml"
    text = load_task("phantom").path.read_text()
    path.write_text(text.replace("{split:", "{training: {colour: 1}, split:"))
    with pytest.raises(ConfigurationError, match="colour is no key of crossval"):
        load_task(str(path))
    path.write_text(text.replace("primary: [[20x,", "primary: [[10x,"))
    with pytest.raises(ConfigurationError, match="primary: 10x is none of the magnifications"):
        load_task(str(path))
    path.write_text("\n".join(line for line in text.splitlines() if not line.startswith("seed:")))
    with pytest.raises(ConfigurationError, match="phantom without size or seed"):
        load_task(str(path))
    path.write_text("[")
    with pytest.raises(ConfigurationError, match="not readable as YAML"):
        load_task(str(path))


def test_hash_of_patients_knows_neither_order_nor_repeats():
    pairs = [("b", "1"), ("a", "0"), ("b", "1")]
    assert patients_sha256(pairs) == patients_sha256([("a", "0"), ("b", "1")])
    assert patients_sha256(pairs) == hashlib.sha256(b"a,0\nb,1\n").hexdigest()


@pytest.mark.shared_data
def test_tables_of_tcga_brca_have_their_counts_and_ten_folds_by_patient(shared, tmp_path):
    lines = "\n".join(brca.build_tables(shared / "labels", tmp_path))
    assert "1041 slides (ductal 831, lobular 210) of 977 patients" in lines
    assert "912 slides (HRP 465, HRD 447) of 853 patients" in lines
    for name in ("brca_subtyping", "brca_hrd"):
        task = load_task(name)
        labels = read_labels(tmp_path / task.labels, classes=task.classes)
        folds = column_folds(labels)
        check_leaks(folds, labels)
        assert len(folds.folds) == 10
        assert sorted(slide for fold in folds.folds for slide in fold.test) == sorted(labels.slide_ids.tolist())
        table = pd.read_csv(tmp_path / task.labels, dtype=str)
        assert patients_sha256(zip(table.patient_id, table.label, strict=True)) == task.patients_sha256
        shares = [(labels.y[np.isin(labels.slide_ids, fold.test)] == task.classes[1]).mean() for fold in folds.folds]
        assert np.ptp(shares) < 0.1


@pytest.mark.shared_data
def test_hipt_folds_run_only_where_slides_stand_for_patients(shared, tmp_path):
    lines = "\n".join(brca.build_tables(shared / "labels", tmp_path))
    assert "share 1 to 10 patients in every fold" in lines
    task = load_task("brca_subtyping_hipt_folds")
    assert "share" in task.title
    assert task.protocol.unit == "slide"
    labels = read_labels(tmp_path / task.labels, classes=task.classes)
    assert len(labels) == 875
    splits = load_splits(tmp_path / task.protocol.split, labels)
    check_leaks(splits, labels)  # as slides; as patients they leak:
    patients = dataclasses.replace(labels, patient_ids=np.array([name[:12] for name in labels.slide_ids.tolist()]))
    with pytest.raises(ConfigurationError, match="10 of 10 folds with patients in two parts"):
        check_leaks(splits, patients)


@pytest.mark.shared_data
def test_a_changed_public_table_is_refused(shared, tmp_path):
    sources = tmp_path / "sources"
    shutil.copytree(shared / "labels", sources)
    path = sources / "brca_mhrd.csv"
    path.write_text(path.read_text().replace(",1,", ",0,", 1))
    with pytest.raises(ConfigurationError, match=r"brca_mhrd\.csv: sha256"):
        brca.build_tables(sources, tmp_path / "out")
    path.unlink()
    with pytest.raises(ConfigurationError, match=r"brca_mhrd\.csv: no such file"):
        brca.build_tables(sources, tmp_path / "out")


def test_tables_of_other_patients_are_not_written(tmp_path, monkeypatch):
    table = pd.DataFrame(
        [
            (f"TCGA-AA-{n:04d}-01Z-00-DX1.{n}", ["ductal", "lobular"][n % 2], f"TCGA-AA-{n:04d}", n % 5)
            for n in range(40)
        ],
        columns=["ID", "label", "case_id", "test"],
    )
    table.to_csv(tmp_path / "brca_histotypes.csv", index=False)
    hipt = pd.DataFrame({"slide_id": table.ID + ".svs", "case_id": table.case_id, "oncotree_code": "IDC"})
    hipt.to_csv(tmp_path / "hipt_tcga_brca_subset.csv", index=False)
    names = ("brca_histotypes.csv", "hipt_tcga_brca_subset.csv")
    digests = {name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in names}
    monkeypatch.setattr(brca, "SOURCES", digests)
    with pytest.raises(ConfigurationError, match="patients and labels of brca_subtyping hash to"):
        brca.build_tables(tmp_path, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def made_archive(path, regions=2, tiles=3):
    """An archive in the layout of the LUAD/LUSC patches, of noise; the pixels of each region."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as files:
        for split in ("train", "test"):
            for label in ("LUAD", "LUSC"):
                for region in range(regions):
                    for tile in range(tiles):
                        image = Image.fromarray(rng.integers(60, 200, (256, 256, 3), dtype=np.uint8))
                        buffer = io.BytesIO()
                        image.save(buffer, format="JPEG", quality=95)
                        files.writestr(f"x/{split}/{label}/{region}_{tile}_512.jpg", buffer.getvalue())
    return path


def test_regions_become_pictures_whose_features_are_those_of_the_patches(tmp_path):
    archive = made_archive(tmp_path / "made.zip")
    labels, manifest = write_regions(archive, tmp_path)
    table = pd.read_csv(labels)
    assert table.label.value_counts().to_dict() == {"LUAD": 4, "LUSC": 4}
    assert set(table.fold) == {"train part", "test part"}
    encoder = load_encoder("color-stats", "20x", "cpu")
    entry = next(each for each in slides(str(manifest)) if each.slide_id == "LUSC-test-01")
    config = ExtractConfig(
        slides=str(manifest), out=str(tmp_path / "bags"), encoder=None, magnifications=["20x"], min_tissue=0.0,
        preview=False,
    )  # fmt: skip
    (tmp_path / "bags").mkdir()
    assert extract_slide(entry, config, encoder).status == "done"
    with zipfile.ZipFile(archive) as files:
        names = [f"x/test/LUSC/1_{tile}_512.jpg" for tile in range(3)]
        patches = np.stack([np.asarray(Image.open(io.BytesIO(files.read(name)))) for name in names])
    np.testing.assert_array_equal(Bag.open(tmp_path / "bags" / "LUSC-test-01.h5").features, encoder(patches))


@pytest.mark.shared_data
def test_the_real_regions_are_nineteen(shared, tmp_path):
    labels, _ = write_regions(shared / "histology_patches" / "tcga_luad_lusc_190.zip", tmp_path)
    table = pd.read_csv(labels)
    assert table.label.value_counts().to_dict() == {"LUAD": 10, "LUSC": 9}
    assert table.fold.value_counts().to_dict() == {"train part": 13, "test part": 6}
    assert {Image.open(path).size for path in tmp_path.glob("*.png")} == {(2560, 256)}


def test_what_a_task_needs_is_said_before_anything_runs(tmp_path):
    with pytest.raises(ConfigurationError, match=r"needs data=.*archive of that repository"):
        provide_cohort(load_task("luad_lusc_regions"), tmp_path, None, None, QUIET)
    with pytest.raises(ConfigurationError, match=r"no brca_hrd\.csv.*benchmarks\.tasks\.brca"):
        provide_cohort(load_task("brca_hrd"), tmp_path, str(tmp_path), None, QUIET)
    (tmp_path / "empty.zip").write_bytes(b"PK\x05\x06" + bytes(18))
    with pytest.raises(ConfigurationError, match="no patch named"):
        write_regions(tmp_path / "empty.zip", tmp_path)

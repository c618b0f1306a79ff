"""Label and fold tables of the TCGA-BRCA tasks: ``python -m benchmarks.tasks.brca TABLES OUT``.

TABLES is a folder with the public tables below, under these names; each is checked against its SHA-256. OUT gets a
table a task (slide_id, patient_id, label, fold) and, for the named reproduction, HIPT's splits. What was counted and
checked is printed; a table whose patients, labels or folds are not the expected ones is not written.

    brca_histotypes.csv            github.com/trislaz/Democratizing_WSI at dba6db1, csv/brca_histotypes.csv (MIT)
    brca_mhrd.csv                  github.com/trislaz/Democratizing_WSI at dba6db1, csv/brca_mhrd.csv (MIT)
    tcga_brca_hrd_hallmarks.csv    github.com/secrierlab/MultiscaleHRD at c4e955c,
                                   Data/Results_MutationClassifier/TCGA_BRCA_ClassificationHallmarks.csv (GPL-3.0)
    hipt_tcga_brca_subset.csv      github.com/mahmoodlab/HIPT at 780fafae, the member of
                                   2-Weakly-Supervised-Subtyping/dataset_csv/tcga_brca_subset.csv.zip
    hipt_tcga_brca_10fold.zip      the same, 2-Weakly-Supervised-Subtyping/splits/10foldcv_subtype/tcga_brca

The folds are drawn here, ten by patient, stratified; the tables' own are five. The cut of brca_mhrd.csv is not stated
there; it is checked against the numeric scores.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from rich.console import Console

from benchmarks.tasks.definition import load_task, patients_sha256
from mil.labels import read_labels, slide_name
from mil.metrics import auroc
from mil.splits import stratified_folds
from mil.tables import read_table
from zoomfeat.errors import ConfigurationError
from zoomfeat.files import file_sha256, make_folder, replacing
from zoomfeat.words import counted

SOURCES = {
    "brca_histotypes.csv": "679c7139e46d7ccf4da3360f4ad9a406bd0344f6d64c55549c2aef1837f0de91",
    "brca_mhrd.csv": "b436bde51af284ac7569cee57bb7e24090fc439ed41ce135a587c7f8641f79ca",
    "tcga_brca_hrd_hallmarks.csv": "d1b7cfbd05d093d0539c62a2d3d9b492c662ae22b199fdafd4b13555604fbcdf",
    "hipt_tcga_brca_subset.csv": "3c28a990a844cd8ccae5c54081761c9084cc785e24e9f542c08da873019cc5a4",
    "hipt_tcga_brca_10fold.zip": "e2c1974345566098decb1042f05b544c5da1c487cd33378f329555c646bc9fa8",
}
"""The public tables and the SHA-256 of each."""

FOLDS = 10

FOLDS_SHA256 = {
    "brca_subtyping": "d5e2306ec0a121569d795e534cd8105413f7d021b7ff6a9fa739211674abdb04",
    "brca_hrd": "94b8641ece19fa762d265e63e17ace001076aea5f98eaee8aafa2b234152ce26",
}
"""Of patients and folds, as `patients_sha256` makes it: everybody's folds are the same."""


def main() -> None:
    """Writes the tables and prints what was counted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", type=Path, help="folder of the public tables")
    parser.add_argument("out", type=Path, help="folder to write to")
    arguments = parser.parse_args()
    for line in build_tables(arguments.tables, arguments.out):
        Console().print(line, highlight=False, soft_wrap=True)


def build_tables(sources: Path, out: Path) -> list[str]:
    """Writes the tables of all TCGA-BRCA tasks whose sources are there.

    Args:
        sources: folder of the public tables.
        out: folder to write to.

    Returns:
        What was counted and checked, a line each.

    Raises:
        ConfigurationError: a source is missing or another version of it, or a check fails.
    """
    for name, digest in SOURCES.items():
        _check_source(sources / name, digest)
    make_folder(out)
    subset = read_table(sources / "hipt_tcga_brca_subset.csv")
    hipt = subset[subset.oncotree_code.isin(["IDC", "ILC"])].assign(slide_id=lambda t: t.slide_id.map(slide_name))
    lines = _subtyping(read_table(sources / "brca_histotypes.csv"), hipt, out)
    lines += _hrd(read_table(sources / "brca_mhrd.csv"), read_table(sources / "tcga_brca_hrd_hallmarks.csv"), out)
    return lines + _hipt_folds(hipt, sources / "hipt_tcga_brca_10fold.zip", out)


def _subtyping(table: pd.DataFrame, hipt: pd.DataFrame, out: Path) -> list[str]:
    lines = _write_folds(
        pd.DataFrame({"slide_id": table.ID, "patient_id": table.case_id, "label": table.label}), "brca_subtyping", out
    )
    both = table.merge(hipt, left_on="ID", right_on="slide_id")
    same = (both.label == both.oncotree_code.map({"IDC": "ductal", "ILC": "lobular"})).sum()
    _require(same / len(both) > 0.95, f"labels agree with HIPT's on {same} of {len(both)} slides only", out)
    return [*lines, f"  of {len(both)} slides that HIPT labels too, {len(both) - same} have another label there"]


def _hrd(table: pd.DataFrame, scores: pd.DataFrame, out: Path) -> list[str]:
    named = table.assign(label=table.label.map({"0": "HRP", "1": "HRD"}))
    lines = _write_folds(
        pd.DataFrame({"slide_id": named.ID, "patient_id": named.case_id, "label": named.label}), "brca_hrd", out
    )
    both = named.drop_duplicates("case_id").merge(scores, left_on="case_id", right_on="sampleID")
    both = both[both.HRD_index.notna()]
    score, truth = both.HRD_index.astype(float).to_numpy(), (both.label == "HRD").astype(float).to_numpy()
    area = float(auroc(np.ones((1, len(both))), truth, score)[0])
    _require(area > 0.9, f"the numeric HRD scores order these labels with an AUROC of {area:.3f} only", out)
    return [*lines, f"  numeric HRD scores of {counted(len(both), 'patient')} order the labels: AUROC {area:.3f}"]


def _hipt_folds(hipt: pd.DataFrame, archive: Path, out: Path) -> list[str]:
    """HIPT's task as it is: slides stand for patients, since the splits share patients and could not be run else."""
    name = "brca_subtyping_hipt_folds"
    table = pd.DataFrame({"slide_id": hipt.slide_id, "patient_id": hipt.slide_id, "label": hipt.oncotree_code})
    _write(table, out / f"{name}.csv")
    patient_of, shared, tested = dict(zip(hipt.slide_id, hipt.case_id, strict=True)), [], set()
    folder = make_folder(out / name)
    with zipfile.ZipFile(archive) as files:
        for number in range(FOLDS):
            content = files.read(f"splits_{number}.csv")
            with replacing(folder / f"splits_{number}.csv") as path:
                path.write_bytes(content)
            fold = pd.read_csv(io.BytesIO(content), dtype=str)
            train, test = (
                {s for s in map(slide_name, fold[part].dropna()) if s in patient_of} for part in ("train", "test")
            )
            shared.append(len({patient_of[s] for s in train} & {patient_of[s] for s in test}))
            tested |= test
    return [
        f"{name}: {_counts(table)}",
        f"  a named reproduction: training and test parts share {min(shared)} to {max(shared)} patients in every fold; "
        f"the test parts cover {len(tested)} slides",
    ]


def _write_folds(table: pd.DataFrame, name: str, out: Path) -> list[str]:
    """Ten stratified folds by patient, checked and written; what was counted."""
    barcodes = table.slide_id.str[:12] == table.patient_id
    _require(bool(barcodes.all()), f"{int((~barcodes).sum())} slides whose barcode is not their patient's", out)
    task = load_task(name)
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.csv"
        _write(table, path)
        labels = read_labels(path, classes=task.classes)  # refuses slides listed twice and patients of two labels
    folds = stratified_folds(labels, FOLDS, (0,)).folds
    table = table.assign(fold=table.slide_id.map({slide: fold.name for fold in folds for slide in fold.test}))
    patients = table.groupby("patient_id").fold.nunique()
    whole = bool((patients == 1).all() and table.fold.notna().all())
    _require(whole, "a patient in two folds, or a slide in none", out)
    for what, column, expected in (
        ("labels", table.label, task.patients_sha256),
        ("folds", table.fold, FOLDS_SHA256[name]),
    ):
        found = patients_sha256(zip(table.patient_id, column, strict=True))
        _require(found == expected, f"patients and {what} of {name} hash to {found}, expected {expected}", out)
    _write(table, out / f"{name}.csv")
    sizes = table.drop_duplicates("patient_id").fold.value_counts()
    return [
        f"{name}: {_counts(table)}",
        f"  {FOLDS} folds of {sizes.min()} to {sizes.max()} patients, no patient in two",
        "  patients, labels and folds are those of the task (sha256)",
    ]


def _counts(table: pd.DataFrame) -> str:
    classes = ", ".join(f"{label} {count}" for label, count in table.label.value_counts().items())
    return f"{counted(len(table), 'slide')} ({classes}) of {counted(table.patient_id.nunique(), 'patient')}"


def _write(table: pd.DataFrame, path: Path) -> None:
    with replacing(path) as temporary:
        table.sort_values("slide_id").to_csv(temporary, index=False, lineterminator="\n")


def _check_source(path: Path, digest: str) -> None:
    if not path.is_file():
        raise ConfigurationError(
            "no such file", cure="python -m benchmarks.tasks.brca --help says where it is from", path=path
        )
    if file_sha256(path) != digest:
        raise ConfigurationError(
            f"sha256 {file_sha256(path)}, expected {digest}",
            cure="python -m benchmarks.tasks.brca --help says which version it must be",
            path=path,
        )


def _require(condition: bool, problem: str, out: Path) -> None:
    if not condition:
        raise ConfigurationError(problem, cure="Check the sources; the table is not fit for use", path=out)


if __name__ == "__main__":
    main()

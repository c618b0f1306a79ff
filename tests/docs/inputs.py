"""What the pages name and a reader has: slides, labels, bags, models, pictures. All of it is synthetic."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from generation.conditioning import ConditioningDiT
from mil import MILClassifier
from tests.benchmarks.records import SMALL, make_record, save
from tests.mil.bags import make_bag, saved, two_scale_bags
from tests.releases import write_release
from zoomfeat.cli import main
from zoomfeat.slides.synthetic import draw_tissue, make_slide

Maker = Callable[[Path], "dict[str, Any] | None"]
"""Writes into a folder; gives the names that the page's Python has besides."""


def slides(folder: Path, count: int = 3, side: int = 1100) -> None:
    """``slides/slide.tiff`` and others at 20x, and ``slide.svs``."""
    (folder / "slides").mkdir()
    for number in range(count):
        name = "slide" if number == 0 else f"slide-{number}"
        make_slide(folder / "slides" / f"{name}.tiff", seed=number, size=(side, side), mpp=0.5)


def first_hour(folder: Path) -> None:
    """What the recipes of the README name; synthetic under the name of the slide that they show."""
    slides(folder, count=5, side=600)
    (folder / "slides" / "slide.tiff").rename(folder / "slides" / "CMU-1-Small-Region.svs")
    names = sorted(path.stem for path in (folder / "slides").iterdir())
    write_labels(folder, names, np.arange(len(names)) % 2)
    pictures(folder)


def two_slides(folder: Path) -> None:
    """``slides/a.tiff`` and ``b.tiff``."""
    (folder / "slides").mkdir()
    for seed, name in enumerate("ab"):
        make_slide(folder / "slides" / f"{name}.tiff", seed=seed, size=(600, 600), mpp=0.5)


def one_slide(folder: Path) -> None:
    """``slide.svs``, which many guides name."""
    make_slide(folder / "slide.tiff", seed=0, size=(1100, 1100), mpp=0.5)
    (folder / "slide.tiff").rename(folder / "slide.svs")


def bags(folder: Path, count: int = 24) -> dict[str, Any]:
    """``bags/`` at 20x and 5x and ``labels.csv``, for which both are needed; the names that Python examples use."""
    (folder / "bags").mkdir(exist_ok=True)
    made, labels = two_scale_bags(count)
    paths = [saved(bag, folder / "bags") for bag in made]
    write_labels(folder, [path.stem for path in paths], labels)
    return {
        "paths": paths[:16], "labels": labels[:16], "patients": [path.stem for path in paths[:16]],
        "others": paths[16:], "y": labels, "probabilities": np.eye(2)[labels] * 0.8 + 0.1,
    }  # fmt: skip


def write_labels(folder: Path, names: list[str], labels: np.ndarray) -> None:
    """``labels.csv``, a patient a slide."""
    table = pd.DataFrame({"slide_id": names, "patient_id": [f"patient-{name}" for name in names]})
    table["subtype"] = np.where(np.asarray(labels) == 1, "ILC", "IDC")
    table.to_csv(folder / "labels.csv", index=False)


def study(folder: Path) -> None:
    """Slides, their bags, and models of them in ``run/``; ``slide.h5`` is one of the bags."""
    slides(folder, count=4)
    assert main(["extract", f"slides={folder / 'slides'}", f"out={folder / 'bags'}", "encoder=color-stats"]) == 0
    (folder / "run").mkdir()
    paths = sorted((folder / "bags").glob("*.h5"))
    for seed in range(2):
        model = MILClassifier(seed=seed, epochs=2, width=8).fit(paths, np.array(["IDC", "ILC"] * 2))
        model.save(folder / "run" / f"seed-{seed}.safetensors")
    (folder / "slide.h5").write_bytes(paths[0].read_bytes())


def runs(folder: Path) -> dict[str, Any]:
    """Cross-validations of other seeds on the same patients, for ``compare``; and all that :func:`bags` makes."""
    names = bags(folder)
    for number, name in enumerate(("uni", "zoomldm", "zoomldm-fused")):
        words = ["epochs=2", "folds=2", f"seeds=[{number}]", "width=8", "label=subtype"]
        paths = [f"bags={folder / 'bags'}", f"labels={folder / 'labels.csv'}", f"out={folder / name}"]
        assert main(["crossval", *paths, *words]) == 0
    return names


def hrd(folder: Path) -> None:
    """Scores with a row a patient, and the table of their slides."""
    names = [path.stem for path in sorted((folder / "bags").glob("*.h5"))]
    scores = np.linspace(0, 60, len(names)).round(1)
    patients = [f"patient-{name}" for name in names]
    pd.DataFrame({"sampleID": patients, "HRD_index": scores}).to_csv(folder / "hrd_scores.csv", index=False)
    pd.DataFrame({"slide_id": names, "sampleID": patients}).to_csv(folder / "slides.csv", index=False)


def graded(folder: Path) -> None:
    """``bags/`` of features that claim to be UNI's, and ``grade.csv``."""
    (folder / "bags").mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for number in range(20):
        features = rng.normal(size=(20, 6)) + (np.arange(20) < 4)[:, None] * 8.0 * (number % 2)
        saved(make_bag(features, slide_id=f"s{number}", encoder="uni"), folder / "bags")
        rows.append((f"s{number}", f"p{number}", ("low", "high")[number % 2]))
    pd.DataFrame(rows, columns=["slide_id", "patient_id", "label"]).to_csv(folder / "grade.csv", index=False)


def records(folder: Path) -> None:
    """``results/`` of two records, one of them ``record.json``, and the task that they belong to."""
    shutil.copy(SMALL, folder / "small.yaml")
    for head in ("mean", "abmil"):
        save(make_record("20x", head), folder / "results")
    shutil.copy(save(make_record("20x", "abmil"), folder / "results"), folder / "record.json")


def aerial(folder: Path) -> None:
    """``images/``: a GeoTIFF of 5 m pixels, under the name that the guide opens."""
    geotiffs = pytest.importorskip("tests.geotiffs", reason="the extra 'satellite' is not installed")
    (folder / "images").mkdir()
    geotiffs.make_geotiff(folder / "images" / "m_4709963_se_14_1_20140720.tif", geotiffs.picture(600, 600), metres=5.0)


def release(folder: Path) -> None:
    """``weights.ckpt`` and ``config.yaml`` in the layout of the release, tiny and random."""
    write_release(folder, width=1024, magnifications=8)


def images(folder: Path) -> None:
    """Folders of pictures: two sets, pairs, and large ones to crop."""
    tissue = draw_tissue((1536, 1024), 0.5, seed=1)
    rng = np.random.default_rng(0)
    for name in ("samples", "patches", "restored", "truth", "large"):
        (folder / name).mkdir()
    for number in range(8):
        row, column = divmod(number, 4)
        patch = tissue[row * 256 : row * 256 + 256, column * 256 : column * 256 + 256]
        noisy = np.clip(patch + rng.normal(0, 9, patch.shape), 0, 255).astype(np.uint8)
        for name, picture in (("patches", patch), ("truth", patch), ("samples", noisy), ("restored", noisy)):
            Image.fromarray(picture).save(folder / name / f"{number}.png")
    Image.fromarray(tissue[:512, :512]).save(folder / "large" / "0.png")


def pictures(folder: Path) -> None:
    """A region at 5x and at 10x with one 20x patch or four under it, and the embeddings of sixteen."""
    tissue = draw_tissue((256, 256), 0.5, seed=2)
    for name, side in (("region_5x.png", 64), ("region_10x.png", 128), ("region.png", 64)):
        Image.fromarray(tissue[:side, :side]).save(folder / name)
    rng = np.random.default_rng(0)
    for name, side in (("grid.npy", 4), ("one.npy", 1)):
        np.save(folder / name, rng.normal(size=(1280, side, side)).astype(np.float32))


def conditioning(folder: Path) -> None:
    """``cdm.pt``: a small conditioning model of random weights, as ``save_pretrained`` writes it."""
    torch.manual_seed(0)
    ConditioningDiT(hidden_dim=32, num_layers=1, num_heads=2).save_pretrained(folder / "cdm.pt")


def deit(folder: Path) -> None:
    """``model.safetensors``: DeiT-Ti with random weights and the head that the file on the hub has."""
    network = timm.create_model("deit_tiny_patch16_224", pretrained=False, num_classes=1000)
    save_file(network.state_dict(), folder / "model.safetensors")


INPUTS: dict[str, tuple[Maker, ...]] = {
    "docs/benchmarks.md": (graded,),
    "docs/leaderboard.md": (records,),
    "docs/satellite.md": (aerial,),
    "docs/training-data.md": (slides,),
    "docs/bags.md": (study,),
    "docs/cohorts.md": (two_slides,),
    "docs/magnification.md": (slides,),
    "docs/statistics.md": (runs,),
    "docs/cdm.md": (conditioning,),
    "docs/encoders.md": (slides, deit),
    "docs/explain.md": (study,),
    "docs/extraction.md": (slides, one_slide),
    "docs/faq.md": (two_slides,),
    "docs/generation.md": (one_slide,),
    "docs/generation-large.md": (one_slide, pictures),
    "docs/metrics.md": (images,),
    "docs/mil.md": (bags, hrd),
    "docs/mil-heads.md": (bags,),
    "docs/model-card.md": (release, slides),
    "README.md": (first_hour,),
}
"""What the folder of a page holds before its first block runs."""

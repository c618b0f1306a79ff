"""What the features of a ZoomLDM know: ``python -m benchmarks.tiny.probe DATA OUT [--weights FOLDER]``.

Logistic regression on frozen features of real labelled patches that no training saw: two lung cancers (LUAD, LUSC;
130 patches of 19 regions to train, 60 to test, no region in both) and five classes of colorectal tissue (600). Every
tap and timestep is compared by cross-validation on training patches; the best one of both data sets together is then
tested once, against colour statistics, the same network untrained and the encoder that the model is conditioned on. The
60 test patches of lung are of six regions, few to compare anything on, so the default settings are also cross-validated
over all patches, whole regions at a time.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from zoomfeat.conf.schema import ZoomLDMTinyConfig
from zoomfeat.encoders import load_encoder
from zoomfeat.encoders.zoomldm import ZoomLDMEncoder, untrained_tiny
from zoomfeat.files import make_folder, replacing
from zoomfeat.magnification import PATCH_SIZE
from zoomfeat.models.denoiser import activations
from zoomfeat.models.summarizer import embedding_grid
from zoomfeat.progress import progress_bar

TAPS = ("mid", *(f"up_blocks.{block}" for block in range(4)))
TIMESTEPS = (1, 25, 50, 100, 200, 300, 400, 600)
CONDITIONS = ("null", "ssl")
RESAMPLES = 2000
REPEATS = 5
_BATCH = 16
_COLOUR = "colour statistics"


@dataclass(frozen=True, eq=False)
class Patches:
    """Labelled patches.

    Attributes:
        name: of the data set.
        images: ``(N, 256, 256, 3)`` uint8.
        labels: ``(N,)`` class names.
        groups: ``(N,)``; patches of one group lie side by side in a slide.
        test: ``(N,)``, true for those that choose nothing.
    """

    name: str
    images: NDArray[np.uint8]
    labels: NDArray[np.str_]
    groups: NDArray[np.int64]
    test: NDArray[np.bool_]


def lung(data: Path) -> Patches:
    """LUAD and LUSC in the split that they come with; a group is a region of interest."""
    rows = []
    with zipfile.ZipFile(data / "histology_patches" / "tcga_luad_lusc_190.zip") as archive:
        for name in sorted(n for n in archive.namelist() if n.endswith(".jpg")):
            _, split, label, file = name.split("/")
            rows.append((_read(archive, name), label, f"{split}-{label}-{file.split('_')[0]}", split == "test"))
    return _patches("LUAD / LUSC", rows)


def colorectal(data: Path) -> Patches:
    """Five classes; no split comes with them and their slides are not named: every fifth patch of a class is a test."""
    rows = []
    with zipfile.ZipFile(data / "histology_patches" / "colorectal5_train_600.zip") as archive:
        for number, name in enumerate(sorted(n for n in archive.namelist() if n.endswith(".jpg"))):
            rows.append((_read(archive, name), name.split("/")[1], str(number), number % 5 == 0))
    return _patches("colorectal, 5 classes", rows)


def _read(archive: zipfile.ZipFile, name: str) -> NDArray[np.uint8]:
    picture = Image.open(io.BytesIO(archive.read(name))).convert("RGB")
    return np.asarray(picture.resize((PATCH_SIZE, PATCH_SIZE), Image.Resampling.BICUBIC))


def _patches(name: str, rows: Sequence[tuple[NDArray[np.uint8], str, str, bool]]) -> Patches:
    images, labels, groups, test = zip(*rows, strict=True)
    return Patches(name, np.stack(images), np.array(labels), np.unique(groups, return_inverse=True)[1], np.array(test))


def classifier() -> Pipeline:
    """Standardised features, logistic regression with a weak prior."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=3000, class_weight="balanced"))


def validated(features: NDArray[np.float32], patches: Patches) -> float:
    """Balanced accuracy in five folds over the training patches, whole groups at a time."""
    part = ~patches.test
    labels, groups = patches.labels[part], patches.groups[part]
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0) if len(set(groups)) < len(groups) else GroupKFold(5)
    predicted = cross_val_predict(classifier(), features[part], labels, groups=groups, cv=folds)
    return float(balanced_accuracy_score(labels, predicted))


def tested(features: NDArray[np.float32], patches: Patches) -> tuple[float, float, float]:
    """Balanced accuracy on the test patches, with the 95 % interval of a bootstrap over groups."""
    model = classifier().fit(features[~patches.test], patches.labels[~patches.test])
    predicted, labels = model.predict(features[patches.test]), patches.labels[patches.test]

    def score(chosen: NDArray[np.intp]) -> float:
        return float(balanced_accuracy_score(labels[chosen], predicted[chosen]))

    return score(np.arange(len(labels))), *_interval(score, labels, patches.groups[patches.test])


def cross_validated(features: NDArray[np.float32], patches: Patches) -> NDArray[np.str_]:
    """What is said of every patch by five folds over whole groups, ``(REPEATS, N)`` class names; other folds a row."""
    folds = [StratifiedGroupKFold(5, shuffle=True, random_state=seed) for seed in range(REPEATS)]
    return np.stack(
        [cross_val_predict(classifier(), features, patches.labels, groups=patches.groups, cv=f) for f in folds]
    )


def compared(
    predicted: NDArray[np.str_], other: NDArray[np.str_] | None, patches: Patches
) -> tuple[float, float, float]:
    """Mean balanced accuracy of the repeats, or its difference to another's, with the 95 % interval over groups."""

    def accuracy(predictions: NDArray[np.str_], chosen: NDArray[np.intp]) -> float:
        return float(np.mean([balanced_accuracy_score(patches.labels[chosen], row[chosen]) for row in predictions]))

    def score(chosen: NDArray[np.intp]) -> float:
        return accuracy(predicted, chosen) - (0.0 if other is None else accuracy(other, chosen))

    return score(np.arange(len(patches.labels))), *_interval(score, patches.labels, patches.groups)


def _interval(
    score: Callable[[NDArray[np.intp]], float], labels: NDArray[np.str_], groups: NDArray[np.int64]
) -> tuple[float, float]:
    """95 % interval of a score of patches, by a bootstrap over their groups."""
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    rng = np.random.default_rng(0)
    draws: list[float] = []
    while len(draws) < RESAMPLES:
        chosen = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        if len(set(labels[chosen])) == len(set(labels)):
            draws.append(score(chosen))
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


@torch.inference_mode()
def sweep(
    encoder: ZoomLDMEncoder, patches: Patches, conditioned: bool
) -> Iterator[tuple[int, tuple[str, ...], NDArray[np.float32]]]:
    """Features of the patches at every timestep and tap, and of all taps together.

    The first stage runs once for all of them, and one pass of the denoiser serves all taps.
    """
    bundle, noise = encoder.bundle, encoder._noises[0]
    latents = torch.cat([bundle.encode(encoder.transform(image[None])) for image in patches.images])
    tokens = bundle.summarizer.null_context(len(latents))
    if conditioned:
        grids = load_encoder("efficientnet-lite0", device="cpu")(patches.images)[:, :, None, None]
        tokens = bundle.summarizer(embedding_grid(torch.from_numpy(grids)), 0)
    for timestep in TIMESTEPS:
        time = torch.tensor([timestep])
        noisy = bundle.scheduler.add_noise(latents, noise.expand_as(latents), time)
        pooled: dict[str, list[torch.Tensor]] = {tap: [] for tap in TAPS}
        for start in range(0, len(noisy), _BATCH):
            part = slice(start, start + _BATCH)
            for tap, maps in activations(bundle.unet, noisy[part], time, tokens[part], TAPS).items():
                pooled[tap].append(maps.mean((2, 3)))
        features = {tap: torch.cat(parts).numpy() for tap, parts in pooled.items()}
        for taps in (*((tap,) for tap in TAPS), TAPS):
            yield timestep, taps, np.concatenate([features[tap] for tap in taps], axis=1)


def main() -> None:
    """Sweeps, chooses, tests, prints and writes ``probe.csv``, ``probe-test.csv`` and ``probe-folds.csv``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of the test data")
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--weights", help="a ZoomLDM folder; default: zoomldm-tiny as it ships")
    parser.add_argument("--folds-only", action="store_true", help="only cross-validate the default settings")
    arguments = parser.parse_args()
    console, out = Console(), make_folder(arguments.out)
    sets = [lung(arguments.data), colorectal(arguments.data)]
    console.print(folds_table(sets, arguments.weights, out))
    if arguments.folds_only:
        return
    settings: dict[tuple[str, int, str], dict[str, float]] = {}
    encoder = _encoder(arguments.weights, TAPS, TIMESTEPS[0], "null")
    with progress_bar(console) as progress:
        task = progress.add_task("sweep", total=2 * len(sets) * len(TIMESTEPS) * (len(TAPS) + 1), unit="settings")
        for patches in sets:
            for conditioning in CONDITIONS:
                for timestep, taps, features in sweep(encoder, patches, conditioning == "ssl"):
                    scores = settings.setdefault((conditioning, timestep, "+".join(taps)), {})
                    scores[patches.name] = validated(features, patches)
                    progress.advance(task)
    rows = [(*setting, *scores.values()) for setting, scores in settings.items()]
    table = pd.DataFrame(rows, columns=["conditioning", "timestep", "tap", *(patches.name for patches in sets)])
    table["mean"] = table[[patches.name for patches in sets]].mean(axis=1)
    with replacing(out / "probe.csv") as path:
        table.to_csv(path, index=False, float_format="%.4f")
    best = {c: table[table["conditioning"] == c].sort_values("mean", ascending=False).iloc[0] for c in CONDITIONS}
    console.print(test_table(sets, best, arguments.weights, out))


def folds_table(sets: Sequence[Patches], weights: str | None, out: Path) -> Table:
    """The default settings over all patches, whole groups at a time, beside what they must beat."""
    options = {} if weights is None else {"weights": weights}
    encoders: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.float32]]] = {
        _COLOUR: load_encoder("color-stats"),
        "untrained": ZoomLDMEncoder(untrained_tiny(), ZoomLDMTinyConfig("zoomldm-tiny"), "20x", "auto"),
        "zoomldm-tiny, condition null": load_encoder("zoomldm-tiny", **options),
        "zoomldm-tiny, condition ssl": load_encoder("zoomldm-tiny", conditioning="ssl", **options),
        "efficientnet-lite0": load_encoder("efficientnet-lite0"),
    }
    rows = []
    for patches in sets:
        predicted = {name: cross_validated(encoder(patches.images), patches) for name, encoder in encoders.items()}
        for name in encoders:
            accuracy = compared(predicted[name], None, patches)
            rows.append((name, patches.name, *accuracy, *compared(predicted[name], predicted[_COLOUR], patches)))
    columns = ["features", "data", "balanced_accuracy", "low", "high", "above_colour", "above_low", "above_high"]
    with replacing(out / "probe-folds.csv") as path:
        pd.DataFrame(rows, columns=columns).to_csv(path, index=False, float_format="%.4f")
    table = Table("features", "data", "accuracy", "above colour", title="five folds over whole regions, 95 % interval")
    for name, data, *figures in rows:
        table.add_row(name, data, *("{:.3f} ({:.3f} to {:.3f})".format(*figures[i : i + 3]) for i in (0, 3)))
    return table


def _encoder(weights: str | None, taps: Sequence[str], timestep: int, conditioning: str) -> ZoomLDMEncoder:
    options = {} if weights is None else {"weights": weights}
    encoder = load_encoder("zoomldm-tiny", taps=list(taps), timestep=timestep, conditioning=conditioning, **options)
    assert isinstance(encoder, ZoomLDMEncoder)
    return encoder


def test_table(sets: Sequence[Patches], best: dict[str, pd.Series], weights: str | None, out: Path) -> Table:
    """Tests the chosen settings beside what they must beat."""
    chosen = best["null"]
    encoders: dict[str, Callable[[NDArray[np.uint8]], NDArray[np.float32]]] = {
        _COLOUR: load_encoder("color-stats"),
        "untrained, same tap and timestep": ZoomLDMEncoder(untrained_tiny(), _options(chosen), "20x", "auto"),
    }
    for conditioning, row in best.items():
        name = f"zoomldm-tiny, {row['tap']}, t = {row['timestep']}, condition {conditioning}"
        encoders[name] = _encoder(weights, row["tap"].split("+"), int(row["timestep"]), conditioning)
    encoders["efficientnet-lite0"] = load_encoder("efficientnet-lite0")
    table = Table("features", "dim", *(patches.name for patches in sets), title="balanced accuracy, 95 % interval")
    rows = []
    for name, encoder in encoders.items():
        features = [encoder(patches.images) for patches in sets]
        scores = [tested(f, patches) for f, patches in zip(features, sets, strict=True)]
        table.add_row(
            name, str(features[0].shape[1]), *(f"{s:.3f} ({low:.3f} to {high:.3f})" for s, low, high in scores)
        )
        rows += [(name, patches.name, *score) for patches, score in zip(sets, scores, strict=True)]
    with replacing(out / "probe-test.csv") as path:
        pd.DataFrame(rows, columns=["features", "data", "balanced_accuracy", "low", "high"]).to_csv(path, index=False)
    return table


def _options(row: pd.Series) -> ZoomLDMTinyConfig:
    return ZoomLDMTinyConfig("zoomldm-tiny", taps=row["tap"].split("+"), timestep=int(row["timestep"]))


if __name__ == "__main__":
    main()

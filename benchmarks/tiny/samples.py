"""What a ZoomLDM draws: ``python -m benchmarks.tiny.samples DATA OUT [--weights FOLDER]``.

For every magnification: the loss on validation patches with their condition and without; samples under the
conditions of validation patches; their kernel distance (KID, Binkowski et al., "Demystifying MMD GANs", 2018) to
validation patches, beside those of the untrained model, of white noise and of training patches; and how near they come
to a training patch. Features are EfficientNet-Lite0's and not an Inception's: the figures compare with each other only.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.metrics.kernel import kernel_distance
from benchmarks.tiny.images import HELD_OUT_PREFIX
from generation.batches import Levels, TrainingData, choose_items, read_batch
from generation.data import TrainingSet
from generation.monitoring import sample_images, validate, write_grid
from zoomfeat.encoders import load_encoder
from zoomfeat.encoders.zoomldm import TINY, untrained_tiny
from zoomfeat.files import make_folder, replacing
from zoomfeat.magnification import BRCA, PATCH_SIZE
from zoomfeat.models.zoomldm import ZoomLDM, as_input
from zoomfeat.progress import progress_bar

_BATCH = 16
_UNTRAINED = 64  # samples of the untrained model, whose distance needs no fine measure
_SUBSETS, _SUBSET_SIZE = 100, 200
_REFERENCE = 256  # patches of a magnification that are looked at, at most


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn.

    Attributes:
        count: of each magnification.
        steps: of DDIM.
        guidance: scale of classifier-free guidance.
    """

    count: int = 256
    steps: int = 20
    guidance: float = 1.5


def main() -> None:
    """Measures, prints, and writes ``samples.csv``, ``losses.csv`` and ``samples.png``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="the prepared sets of the cohort, side by side")
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--weights", help="a ZoomLDM folder; default: zoomldm-tiny as it ships")
    parser.add_argument("--items", type=int, default=64, help="validation patches of each magnification for the losses")
    parser.add_argument(
        "--count", type=int, default=Sampling.count, help="samples of each magnification; 0: losses only"
    )
    parser.add_argument("--steps", type=int, default=Sampling.steps, help="DDIM steps")
    parser.add_argument("--guidance", type=float, default=Sampling.guidance, help="scale of classifier-free guidance")
    parser.add_argument("--workers", type=int, default=2, help="processes, a magnification at a time each")
    arguments = parser.parse_args()
    console, out = Console(), make_folder(arguments.out)
    sampling = Sampling(arguments.count, arguments.steps, arguments.guidance)
    weights = arguments.weights or TINY
    data, bundle = TrainingSet.open(arguments.data), ZoomLDM.load(weights)
    validation = _validation(data)[1]
    losses = pd.DataFrame(validate(bundle, data, validation, Accelerator(cpu=True), items=arguments.items, seed=0))
    with replacing(out / "losses.csv") as path:
        losses.to_csv(path, index=False, float_format="%.5f")
    if not sampling.count:
        console.print(losses.groupby("magnification", sort=False)[["loss", "null_loss"]].mean())
        return
    rows, pictures = [], []
    with progress_bar(console) as progress, ProcessPoolExecutor(arguments.workers, initializer=_one_thread) as pool:
        task = progress.add_task("sampling", total=len(validation), unit="magnifications")
        jobs = [pool.submit(measure, arguments.data, weights, level, sampling) for level in validation]
        for level, job in zip(validation, jobs, strict=True):
            row, shown = job.result()
            part = losses[losses["magnification"] == str(BRCA.steps[level])]
            rows.append({"magnification": str(BRCA.steps[level]), **part[["loss", "null_loss"]].mean(), **row})
            pictures.append(shown)
            with replacing(out / "samples.csv") as path:
                pd.DataFrame(rows).to_csv(path, index=False, float_format="%.5f")
            progress.advance(task)
    write_grid(pictures, out / "samples.png")
    table = Table(*rows[0], title="samples under the conditions of validation patches")
    for row in rows:
        table.add_row(*(f"{value:.4f}" if isinstance(value, float) else str(value) for value in row.values()))
    console.print(table)


def _one_thread() -> None:
    torch.set_num_threads(1)


def _validation(data: TrainingSet) -> tuple[Levels, Levels]:
    return choose_items(data, [], [f"{HELD_OUT_PREFIX}*"], seed=0)


def measure(
    folder: Path, weights: str | Path, level: int, sampling: Sampling
) -> tuple[dict[str, float], tuple[torch.Tensor, torch.Tensor]]:
    """One magnification: its row of the table, and pairs of a validation patch and a sample under its condition."""
    data, bundle = TrainingSet.open(folder), ZoomLDM.load(weights)
    training, validation = (levels[level] for levels in _validation(data))
    embed = load_encoder("efficientnet-lite0", device="cpu")
    rng = np.random.default_rng(0)
    known = np.stack([data[int(i)].image for i in rng.permutation(training)[:_REFERENCE]])
    reference = np.stack([data[int(i)].image for i in rng.permutation(validation)[:_REFERENCE]])
    oriented = np.concatenate(
        [np.rot90(side, turn, (1, 2)) for side in (reference, reference[:, :, ::-1]) for turn in range(4)]
    )
    oriented = oriented[rng.permutation(len(oriented))[:_REFERENCE]]
    conditions = [int(i) for i in np.resize(rng.permutation(validation), sampling.count)]
    untrained = untrained_tiny()
    untrained.vae = bundle.vae  # the same first stage: what differs is the denoiser
    made = draw(bundle, data, conditions, sampling)
    meaningless = draw(untrained, data, conditions[:_UNTRAINED], replace(sampling, guidance=1))
    noise = rng.integers(0, 256, (sampling.count, PATCH_SIZE, PATCH_SIZE, 3), dtype=np.uint8)
    real, seen = embed(np.ascontiguousarray(oriented)), embed(known)
    features = embed(made)
    row: dict[str, float] = {"validation patches": len(reference), "training patches": len(training)}
    row |= {
        "KID": kid(real, features),
        "KID untrained": kid(real, embed(meaningless)),
        "KID noise": kid(real, embed(noise)),
        "KID training patches": kid(real, seen),
    }
    copies = distance_to_nearest(embed(reconstructed(bundle, known[:64])), seen)
    row |= {
        "nearest, sample": float(np.median(distance_to_nearest(features, seen))),
        "nearest, validation": float(np.median(distance_to_nearest(embed(reference), seen))),
        "nearest, copy": float(np.median(copies)),
        "copies": float((distance_to_nearest(features, seen) < np.quantile(copies, 0.95)).mean()),
    }
    shown = [data[i].image for i in conditions[:4]]
    return row, (as_input(np.stack(shown)), as_input(made[:4]))


def draw(bundle: ZoomLDM, data: TrainingData, conditions: list[int], sampling: Sampling) -> NDArray[np.uint8]:
    """Samples ``(N, 256, 256, 3)``; a condition that occurs again gets another noise."""
    made = []
    for start in range(0, len(conditions), _BATCH):
        batch = read_batch(data, conditions[start : start + _BATCH])
        with torch.autocast("cpu", torch.bfloat16):  # half the time; the pictures differ by less than their noise
            pixels = sample_images(bundle, batch, steps=sampling.steps, guidance=sampling.guidance, seed=start)
        made.append((pixels.float() * 127.5 + 127.5).round().byte().permute(0, 2, 3, 1).numpy())
    return np.concatenate(made)


@torch.inference_mode()
def reconstructed(bundle: ZoomLDM, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images through the first stage and back: as like as a memorised patch could be."""
    pixels = [bundle.decode(bundle.encode(as_input(image[None]))).clamp(-1, 1) for image in images]
    return (torch.cat(pixels) * 127.5 + 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def kid(real: NDArray[np.float32], made: NDArray[np.float32]) -> float:
    """Kernel distance of two sets of features ``(N, D)``, over subsets of equal size."""
    return kernel_distance(made, real, _SUBSETS, _SUBSET_SIZE)[0]


def distance_to_nearest(features: NDArray[np.float32], seen: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosine distance of each feature vector to the nearest of ``seen``."""
    ours, theirs = (f / np.linalg.norm(f, axis=1, keepdims=True) for f in (features, seen))
    return 1 - (ours @ theirs.T).max(axis=1)


if __name__ == "__main__":
    main()

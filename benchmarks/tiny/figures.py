"""The figures of the model card: ``python -m benchmarks.tiny.figures RUNS RESULTS OUT``.

RUNS holds the folders ``first-stage``, ``ldm`` and ``cdm`` that the training commands wrote, RESULTS what
`benchmarks.tiny.probe` wrote.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from zoomfeat.files import make_folder, replacing
from zoomfeat.magnification import BRCA


def main() -> None:
    """Writes ``zoomldm-tiny-curves.png`` and ``features-probe.png``."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("runs", "results", "out"):
        parser.add_argument(name, type=Path)
    arguments = parser.parse_args()
    out = make_folder(arguments.out)
    _save(curves(arguments.runs), out / "zoomldm-tiny-curves.png")
    _save(probe(pd.read_csv(arguments.results / "probe.csv", keep_default_na=False)), out / "features-probe.png")


def curves(runs: Path) -> plt.Figure:
    """Training loss of each of the three runs by magnification, and what validation says of two of them."""
    figure, axes = plt.subplots(1, 5, figsize=(20, 3.8), layout="constrained")
    titles = {
        "first-stage": "first stage: L1",
        "ldm": "denoiser: error of the noise",
        "cdm": "CDM: error of the tokens",
    }
    for axis, (name, title) in zip(axes[[0, 2, 4]], titles.items(), strict=True):
        table = pd.read_csv(runs / name / "metrics.csv")
        for step in BRCA.steps:
            smooth = table[f"loss_{step}"].rolling(20, min_periods=1).mean()
            axis.plot(table["step"], smooth, label=str(step), linewidth=1)
        axis.set(title=title, xlabel="step", yscale="log")
    axes[0].legend(fontsize=7, ncols=2)
    held_out = pd.read_csv(runs / "first-stage" / "validation.csv")
    for name in map(str, BRCA.steps):
        part = held_out[held_out["magnification"] == name]
        axes[1].plot(part["step"], part["psnr"], label=name, linewidth=1)
    axes[1].set(title="first stage: PSNR on validation, dB", xlabel="step")
    held_out = pd.read_csv(runs / "ldm" / "validation.csv").groupby(["magnification", "step"], as_index=False).mean()
    for number, name in enumerate(map(str, BRCA.steps)):
        part = held_out[held_out["magnification"] == name]
        axes[3].plot(part["step"], part["loss"], color=f"C{number}", linewidth=1)
        axes[3].plot(part["step"], part["null_loss"], color=f"C{number}", linewidth=1, linestyle=":")
    axes[3].set(title="denoiser on validation; dotted: no condition", xlabel="step", yscale="log")
    return figure


def probe(table: pd.DataFrame) -> plt.Figure:
    """Balanced accuracy in cross-validation by timestep, a line a tap, a panel a data set and condition."""
    sets = [name for name in table.columns if name not in ("conditioning", "timestep", "tap", "mean")]
    figure, axes = plt.subplots(1, 2 * len(sets), figsize=(5 * 2 * len(sets), 3.8), layout="constrained")
    panels = [(data, conditioning) for data in sets for conditioning in ("null", "ssl")]
    for axis, (data, conditioning) in zip(np.ravel(axes), panels, strict=True):
        part = table[table["conditioning"] == conditioning]
        for tap, rows in part.groupby("tap", sort=False):
            axis.plot(rows["timestep"], rows[data], marker="o", markersize=3, label=tap)
        axis.set(title=f"{data}; condition: {conditioning}", xlabel="timestep", ylabel="balanced accuracy")
    axes[0].legend(fontsize=8)
    return figure


def _save(figure: plt.Figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=80)


if __name__ == "__main__":
    main()

"""The figures of the model card: ``python -m benchmarks.tiny.figures RUNS RESULTS OUT``.

RUNS holds the folders ``first-stage``, ``ldm`` and ``cdm`` that the training commands wrote, RESULTS what
`benchmarks.tiny.probe` wrote.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray

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


def curves(runs: Path) -> Figure:
    """Training loss of each of the three runs by magnification, and what validation says of two of them."""
    figure, axes = _panels(2, 3)
    titles = {
        "first-stage": "first stage: L1 error",
        "ldm": "denoiser: squared error of the noise",
        "cdm": "conditioning model: error of the tokens",
    }
    for axis, (name, title) in zip(axes[0], titles.items(), strict=True):
        table = pd.read_csv(runs / name / "metrics.csv")
        for step, color in _COLORS.items():
            smooth = table[f"loss_{step}"].rolling(20, min_periods=1).mean()
            axis.plot(table["step"], smooth, label=step, linewidth=1, color=color)
        axis.set(title=title, xlabel="step", yscale="log")
    held_out = pd.read_csv(runs / "first-stage" / "validation.csv")
    for name, color in _COLORS.items():
        part = held_out[held_out["magnification"] == name]
        axes[1, 0].plot(part["step"], part["psnr"], linewidth=1, color=color)
    axes[1, 0].set(title="first stage on validation: PSNR, dB", xlabel="step")
    held_out = pd.read_csv(runs / "ldm" / "validation.csv").groupby(["magnification", "step"], as_index=False).mean()
    for name, color in _COLORS.items():
        part = held_out[held_out["magnification"] == name]
        axes[1, 1].plot(part["step"], part["loss"], color=color, linewidth=1)
        axes[1, 1].plot(part["step"], part["null_loss"], color=color, linewidth=1, linestyle=":")
        axes[1, 2].plot(part["step"], 100 * (1 - part["loss"] / part["null_loss"]), color=color, linewidth=1)
    axes[1, 1].set(title="denoiser on validation; dotted: no condition", xlabel="step", yscale="log")
    axes[1, 2].set(title="what the condition takes off that error, %", xlabel="step")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=8, frameon=False)
    return figure


def probe(table: pd.DataFrame) -> Figure:
    """Balanced accuracy in cross-validation by timestep, a line a tap, a panel a data set and condition."""
    sets = [name for name in table.columns if name not in ("conditioning", "timestep", "tap", "mean")]
    figure, axes = _panels(len(sets), 2)
    panels = [(data, conditioning) for data in sets for conditioning in ("null", "ssl")]
    for axis, (data, conditioning) in zip(axes.flat, panels, strict=True):
        part = table[table["conditioning"] == conditioning]
        taps = list(part.groupby("tap", sort=False))
        for (tap, rows), color in zip(taps, _ramp(len(taps)), strict=True):
            label = "all of them" if "+" in str(tap) else str(tap)
            axis.plot(rows["timestep"], rows[data], marker="o", markersize=3, linewidth=1, label=label, color=color)
        axis.set(title=f"{data}; condition: {conditioning}", xlabel="timestep", ylabel="balanced accuracy")
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    return figure


def _ramp(count: int) -> list[tuple[float, ...]]:
    """Colours from dark to light, told apart by everybody: magnifications and taps have an order."""
    return [tuple(color) for color in colormaps["viridis"](np.linspace(0, 0.88, count))]


_COLORS = dict(zip(map(str, BRCA.steps), _ramp(len(BRCA.steps)), strict=True))


def _panels(rows: int, columns: int) -> tuple[Figure, NDArray[Any]]:
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows + 0.3), dpi=110, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")


if __name__ == "__main__":
    main()

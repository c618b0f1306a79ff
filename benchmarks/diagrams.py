"""The diagrams of docs/how-it-works.md and the picture of the README: ``python -m benchmarks.diagrams docs/``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib
import matplotlib.image
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from zoomfeat.files import replacing
from zoomfeat.palette import BLUE, as_hex

# The palette, darker where text has the colour, and mixed with white for the fills.
_BLUE, _ORANGE, _GREEN, _GREY = as_hex(BLUE), "#b35a00", "#00734f", "#4a4a4a"
_FILLS = {_BLUE: "#d6e8f5", _ORANGE: "#fbe3cf", _GREEN: "#d3eee5", _GREY: "#eeeeee"}


def draw_model(axes: Axes) -> None:
    """A patch through first stage and denoiser to features; the condition through the Summarizer."""
    _size(axes, 12, 5.6)
    _box(axes, 0.1, 3.3, 1.6, 1.2, "patch\n256 x 256 px\nat 20x, 5x, ...", _GREY)
    _box(axes, 2.3, 3.3, 1.6, 1.2, "first stage\n(VQ-f4)\nencoder", _BLUE)
    _box(axes, 4.5, 3.3, 1.5, 1.2, "latent\n3 x 64 x 64\n+ noise to t", _GREY)
    blocks = ((6.6, 1.5, "down\nblocks"), (8.3, 0.9, "mid"), (9.4, 2.4, "up_blocks\n0, 1, 2, 3"))
    for left, width, text in blocks:
        _box(axes, left, 3.3, width, 1.2, text, _BLUE)
    axes.text(9.2, 4.75, "denoiser (UNet); stops at the last tap", ha="center", color=_BLUE, fontsize=10)
    for start, end in ((1.7, 2.3), (3.9, 4.5), (6.0, 6.6), (8.1, 8.3), (9.2, 9.4)):
        _arrow(axes, (start, 3.9), (end, 3.9))
    _box(axes, 0.1, 0.3, 2.2, 1.2, "SSL embeddings of the\n20x patches below\n(1 x 1 ... 8 x 8)", _GREY)
    _box(axes, 2.8, 0.3, 1.7, 1.2, "Summarizer\n(transformer)", _ORANGE)
    _box(axes, 5.0, 0.3, 2.3, 1.2, "65 tokens: one of the\nmagnification, 64 of\nthe embeddings", _GREY)
    _arrow(axes, (2.3, 0.9), (2.8, 0.9))
    _arrow(axes, (4.5, 0.9), (5.0, 0.9))
    _arrow(axes, (7.3, 1.1), (8.6, 3.3), "cross-attention, or zeros", (5.3, 2.35))
    _box(axes, 9.4, 0.3, 2.4, 1.2, "features: each tap's\nmean over space,\nside by side", _GREEN)
    _arrow(axes, (9.9, 3.3), (10.1, 1.5), "tap", (10.15, 2.35))


def draw_fusion(axes: Axes) -> None:
    """One 5x patch, the 20x patches in it, and the rows of the bag that come of them."""
    _size(axes, 12, 4.6)
    axes.add_patch(Rectangle((0.3, 0.5), 3.2, 3.2, facecolor=_FILLS[_ORANGE], edgecolor=_ORANGE, linewidth=2.5))
    kept = {(0, 1), (1, 1), (1, 2), (2, 1), (2, 2), (3, 2)}
    for column in range(4):
        for row in range(4):
            fill = _FILLS[_BLUE] if (column, row) in kept else "none"
            axes.add_patch(
                Rectangle((0.3 + 0.8 * column, 0.5 + 0.8 * row), 0.8, 0.8, facecolor=fill, edgecolor=_BLUE, linewidth=1)
            )
    axes.text(1.9, 3.95, "one 5x patch = 4 x 4 patches of 20x", ha="center", fontsize=10)
    axes.text(2.1, 0.12, "kept: those with enough tissue, and their parents", ha="center", fontsize=9, color=_GREY)
    _box(axes, 4.6, 2.5, 2.2, 1.2, "features\n(N, D)\none row a 20x patch", _BLUE)
    _box(axes, 4.6, 0.5, 2.2, 1.2, "features_5x\n(M, D)\none row a 5x patch", _ORANGE)
    _box(axes, 7.3, 1.5, 1.6, 1.2, "parent_5x\n(N,)\nwhich row", _GREY)
    _arrow(axes, (3.5, 3.1), (4.6, 3.1))
    _arrow(axes, (3.5, 1.1), (4.6, 1.1))
    _arrow(axes, (6.8, 3.1), (7.5, 2.7))
    _arrow(axes, (6.8, 1.1), (7.5, 1.5))
    _box(axes, 9.5, 1.5, 2.3, 1.2, "Bag.fused()\n(N, 2 D): each 20x row\nbeside its 5x parent", _GREEN)
    _arrow(axes, (8.9, 2.1), (9.5, 2.1))


def draw_guidance(axes: Axes) -> None:
    """One pull of a 20x patch towards its part of the guide."""
    _size(axes, 12, 5.4)
    _box(axes, 0.1, 3.7, 2.0, 1.2, "guide (5x, or a\ngiven picture):\nclean, decoded", _ORANGE)
    _box(axes, 2.9, 3.7, 1.9, 1.2, "y: the part of it\nover this patch", _ORANGE)
    _box(axes, 0.1, 0.5, 2.0, 1.2, "noisy latent x\nof a 20x patch", _BLUE)
    _box(axes, 2.9, 0.5, 1.9, 1.2, "clean latent z\n(denoiser)", _BLUE)
    _box(axes, 5.5, 0.5, 1.8, 1.2, "picture I\n(decoder)", _BLUE)
    _box(axes, 5.5, 3.7, 2.4, 1.2, "e: what I, seen from\nafar, lacks of y", _GREEN)
    _box(axes, 8.4, 3.7, 3.4, 1.2, "dz: where e moves z\n(two encodings of I and I + h e)", _GREEN)
    _box(axes, 8.4, 0.5, 3.4, 1.2, "g: where dz moves x\n(two passes of the denoiser)", _GREEN)
    _arrow(axes, (2.1, 4.3), (2.9, 4.3))
    _arrow(axes, (4.8, 4.3), (5.5, 4.3))
    _arrow(axes, (2.1, 1.1), (2.9, 1.1))
    _arrow(axes, (4.8, 1.1), (5.5, 1.1))
    _arrow(axes, (6.4, 1.7), (6.6, 3.7), "down-sampled", (6.65, 2.65))
    _arrow(axes, (7.9, 4.3), (8.4, 4.3))
    _arrow(axes, (10.1, 3.7), (10.1, 1.7))
    axes.annotate(
        "", xy=(1.1, 0.5), xytext=(10.1, 0.5),
        arrowprops={"arrowstyle": "-|>", "color": _GREEN, "connectionstyle": "bar,fraction=-0.04", "linewidth": 1.5},
    )  # fmt: skip
    axes.text(5.6, -0.2, "x moves along g; repeated, then the usual step to less noise", ha="center", fontsize=10)


DIAGRAMS: dict[str, Callable[[Axes], None]] = {
    "how-model.svg": draw_model,
    "how-fusion.svg": draw_fusion,
    "how-guidance.svg": draw_guidance,
}


def draw_diagrams(folder: Path) -> list[Path]:
    """Writes all of them; the same code gives the same bytes.

    Args:
        folder: where to.
    """
    paths = []
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "zoomfeat", "font.family": "sans-serif"}):
        for name, draw in DIAGRAMS.items():
            figure = Figure(figsize=(10, 4.6), layout="constrained")
            draw(figure.subplots())
            with replacing(folder / name) as temporary:
                figure.savefig(temporary, format="svg", facecolor="white", metadata={"Date": None})
            paths.append(folder / name)
    return paths


def draw_overview(folder: Path) -> Path:
    """The picture of the README, ``overview.png``: slide, patches, bag, map, table.

    Args:
        folder: where ``preview.png`` and ``explain.png`` are (pictures of CMU-1-Small-Region that zoomfeat made), and
            ``results/phantom.md``, whose first rows are the table.
    """
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    grid, bag, heat, table = figure.subplots(1, 4, width_ratios=(0.95, 1.0, 0.95, 1.25))
    pictures = {name: matplotlib.image.imread(folder / f"{name}.png") for name in ("preview", "explain")}
    height, width = pictures["explain"].shape[:2]
    left, top, right, bottom = (int(share * side) for share, side in zip(_MAP, (width, height) * 2, strict=True))
    for axes, picture, title in (
        (grid, pictures["preview"][96:1162], "slide, patches at 5x and 20x"),
        (heat, pictures["explain"][top:bottom, left:right], "where a MIL head looks"),
    ):
        axes.imshow(picture)
        axes.set_title(title, fontsize=11)
        axes.axis("off")
    _size(bag, 3.4, 4.6)
    bag.set_title("bag: one HDF5 file", fontsize=11)
    _box(bag, 0.2, 3.0, 3.0, 1.1, "features (37, D)\none row a 20x patch", _BLUE)
    _box(bag, 0.2, 1.6, 3.0, 1.1, "features_5x (6, D)\nparent_5x (37,)", _ORANGE)
    _box(bag, 0.2, 0.2, 3.0, 1.1, "fused (37, 2 D)\n20x beside its 5x parent", _GREEN)
    table.set_title("table, with intervals", fontsize=11)
    table.axis("off")
    rows = _rows(folder / "results" / "phantom.md")
    drawn = table.table(rows[1:], colLabels=rows[0], loc="center", cellLoc="left", edges="horizontal")
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(9)
    drawn.auto_set_column_width(list(range(len(rows[0]))))
    drawn.scale(1, 1.9)
    path = folder / "overview.png"
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, facecolor="white")
    return path


_MAP = (0.16, 0.074, 0.598, 0.723)  # where the map lies on explain.png, in shares: left, top, right, bottom


def _rows(page: Path, shown: int = 7) -> list[list[str]]:
    """The first table of a page of results: encoder, magnification, head and the metric with its interval."""
    lines = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    cells = [[cell.strip(" `*") for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2 : 1 + shown])]
    kept = [cells[0].index(name) for name in ("encoder", "magnification", "head", "ours [95 %]")]
    return [["AUROC [95 %]" if cell == "ours [95 %]" else cell for cell in (row[at] for at in kept)] for row in cells]


def _size(axes: Axes, width: float, height: float) -> None:
    axes.set(xlim=(0, width), ylim=(-0.45, height), aspect="equal")
    axes.axis("off")


def _box(axes: Axes, left: float, bottom: float, width: float, height: float, text: str, color: str) -> None:
    corner = "round,pad=0,rounding_size=0.12"
    fill = _FILLS[color]
    axes.add_patch(
        FancyBboxPatch((left, bottom), width, height, boxstyle=corner, facecolor=fill, edgecolor=color, linewidth=1.5)
    )
    axes.text(left + width / 2, bottom + height / 2, text, ha="center", va="center", fontsize=9.5, linespacing=1.35)


def _arrow(
    axes: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    text: str = "",
    at: tuple[float, float] = (0.0, 0.0),
) -> None:
    axes.annotate("", xy=end, xytext=start, arrowprops={"arrowstyle": "-|>", "color": _GREY, "linewidth": 1.5})
    if text:
        axes.text(*at, text, fontsize=9, color=_GREY)


def main() -> None:
    """Draws into the folder that is named."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.diagrams", description="Draws the diagrams of the guide."
    )
    parser.add_argument("out", type=Path, help="folder to write to: docs/")
    folder = parser.parse_args().out
    for path in (*draw_diagrams(folder), draw_overview(folder)):
        print(path)


if __name__ == "__main__":
    main()

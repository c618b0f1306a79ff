"""The ladder of magnifications: a magnification is a physical size, and each step doubles it.

20x means 0.5 um/px. A patch is always 256 x 256 px; a patch one step coarser covers twice the length.
Indices, names and embedding grids are those of ZoomLDM (CVPR 2025, section 3 and the public release).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from zoomfeat.errors import MagnificationError

PATCH_SIZE = 256
"""Width and height of a patch in pixels, at every magnification."""

MAX_GRID = 8
"""Embedding grids with more rows than this are average-pooled to this many before the Summarizer."""


@dataclass(frozen=True, order=True)
class Magnification:
    """One step of a ladder.

    Attributes:
        index: place in the ladder, 0 is the finest; what the Summarizer embeds.
        name: as users write it, for example ``"20x"``.
        mpp: microns per pixel; NaN in a ladder whose physical size the image itself decides.
    """

    index: int
    name: str
    mpp: float

    @property
    def grid(self) -> int:
        """Rows (and columns) of finest-magnification patches under one patch, before pooling."""
        return 2**self.index

    @property
    def pooled_grid(self) -> int:
        """Rows (and columns) of the embedding grid that the Summarizer reads."""
        return min(self.grid, MAX_GRID)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Ladder:
    """The magnifications that a model was trained on, finest first, each twice as coarse as the one before.

    Attributes:
        name: the data set the ladder belongs to.
        steps: the magnifications, finest first.
    """

    name: str
    steps: tuple[Magnification, ...]

    def __getitem__(self, wanted: str | int | float | Magnification) -> Magnification:
        """The step of that name.

        Names are read leniently, since files of the release spell them in several ways: ``"20x"``, ``"20"``,
        ``20``, ``"0.3125x"``, ``"0_3125x"`` and ``"0_3125"`` all work.

        Raises:
            MagnificationError: no step has that name.
        """
        if isinstance(wanted, Magnification):
            wanted = wanted.name
        text = str(wanted).strip().lower().removesuffix("x").replace("_", ".")
        for step in self.steps:
            try:
                if float(text) == float(step.name.removesuffix("x")):
                    return step
            except ValueError:
                break
        known = ", ".join(step.name for step in self.steps)
        raise MagnificationError(f"no magnification {wanted!r} in the {self.name} ladder", cure=f"Use one of {known}")


BRCA = Ladder(
    "brca",
    tuple(Magnification(index, f"{20 / 2**index:g}x", 0.5 * 2**index) for index in range(8)),
)
"""Histology: 20x (0.5 um/px) to 0.15625x (64 um/px)."""


NAIP = Ladder("naip", tuple(Magnification(index, f"{index + 1}x", math.nan) for index in range(4)))
"""Aerial imagery: 1x is the finest; its ground resolution is that of the image."""


def parse(wanted: list[str] | tuple[str, ...], ladder: Ladder = BRCA) -> tuple[Magnification, ...]:
    """Several names as distinct steps of a ladder, finest first.

    Raises:
        MagnificationError: an unknown name, a repeated one, or none at all.
    """
    steps = [ladder[name] for name in wanted]
    if not steps:
        raise MagnificationError(
            "no magnification asked for", cure="Give at least one, for example magnifications=[20x,5x]"
        )
    if len(set(steps)) < len(steps):
        raise MagnificationError(f"a magnification is asked for twice in {list(wanted)}", cure="Name each once")
    return tuple(sorted(steps))

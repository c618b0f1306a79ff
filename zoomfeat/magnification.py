"""The ladder of magnifications: a magnification is a physical size, and each step doubles it.

20x means 0.5 um/px. A patch is always 256 x 256 px; a patch one step coarser covers twice the length.
Indices, names and embedding grids are those of ZoomLDM (CVPR 2025, section 3 and the public release). The ladders
themselves are data: each domain's YAML in ``zoomfeat/domains`` holds its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

import yaml

from zoomfeat.errors import ConfigurationError, MagnificationError

PATCH_SIZE = 256
"""Width and height of a patch in pixels, at every magnification."""

MAX_GRID = 8
"""Embedding grids with more rows than this are average-pooled to this many before the Summarizer."""

_UNITS = {"um": 1.0, "m": 1e6}


@dataclass(frozen=True, order=True)
class Magnification:
    """One step of a ladder.

    Attributes:
        index: place in the ladder, 0 is the finest; what the Summarizer embeds.
        name: as users write it, for example ``"20x"``.
        mpp: microns per pixel; of aerial images millions.
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
        name: the domain that the ladder belongs to.
        steps: the magnifications, finest first.
    """

    name: str
    steps: tuple[Magnification, ...]

    @classmethod
    def of(cls, name: str, names: Sequence[str], finest: str) -> Ladder:
        """A ladder from what a domain says of it.

        Args:
            name: of the domain.
            names: of the steps, finest first, for example ``["20x", "10x"]``.
            finest: size of a pixel of the first step with its unit, ``"0.5 um"`` or ``"1 m"``.

        Raises:
            ConfigurationError: a name that bags cannot hold, a repeated one, or a size that is none.
        """
        size = re.fullmatch(r"(\d+(?:\.\d+)?) *(um|m)", str(finest).strip())
        if size is None or not float(size[1]) > 0:
            raise ConfigurationError(f"finest is {finest!r}", cure="Write the size of a pixel like 0.5 um or 1 m")
        mpp = float(size[1]) * _UNITS[size[2]]
        for step in names:
            if not re.fullmatch(r"\d+(\.\d+)?x", str(step)):
                raise ConfigurationError(f"a magnification called {step!r}", cure="Name it like 20x or 0.3125x")
        if not names or len({float(step.removesuffix("x")) for step in names}) < len(names):
            raise ConfigurationError(f"magnifications {list(names)}", cure="Give distinct ones, finest first")
        return cls(name, tuple(Magnification(i, step, mpp * 2**i) for i, step in enumerate(names)))

    @property
    def finest(self) -> Magnification:
        """The first step, whose patches are embedded."""
        return self.steps[0]

    def __getitem__(self, wanted: str | int | float | Magnification) -> Magnification:
        """The step of that name.

        Names are read leniently, since files of the release spell them in several ways: ``"20x"``, ``"20"``,
        ``20``, ``"0.3125x"``, ``"0_3125x"`` and ``"0_3125"`` all work.

        Raises:
            MagnificationError: no step has that name, or a step of another ladder is of another size.
        """
        text = str(wanted).strip().lower().removesuffix("x").replace("_", ".")
        for step in self.steps:
            try:
                found = float(text) == float(step.name.removesuffix("x"))
            except ValueError:
                break
            if found and (wanted == step or not isinstance(wanted, Magnification)):
                return step
        known = ", ".join(step.name for step in self.steps)
        if isinstance(wanted, Magnification):
            raise MagnificationError(
                f"no {wanted} of {resolution(wanted.mpp)} in the {self.name} ladder, which has {known} from "
                f"{resolution(self.finest.mpp)} on",
                cure=f"Use an encoder or a model of the images' own domain, or domain={self.name}",
            )
        raise MagnificationError(f"no magnification {wanted!r} in the {self.name} ladder", cure=f"Use one of {known}")


def resolution(mpp: float) -> str:
    """The size of a pixel with a unit that suits it: ``"0.5 um"``, ``"1 m"``.

    Args:
        mpp: microns per pixel.
    """
    return f"{mpp:.4g} um" if mpp < 1e4 else f"{mpp / 1e6:.4g} m"


def _packaged(name: str) -> Ladder:
    """The ladder in a domain entry that ships."""
    text = files("zoomfeat").joinpath("domains", f"{name}.yaml").read_text(encoding="utf-8")
    return Ladder.of(name, **yaml.safe_load(text)["ladder"])


BRCA = _packaged("brca")
"""Histology: 20x (0.5 um/px) to 0.15625x (64 um/px)."""


NAIP = _packaged("naip")
"""Aerial imagery: 1x (1 m/px) to 4x (8 m/px)."""


def parse(wanted: list[str] | tuple[str, ...], ladder: Ladder = BRCA) -> tuple[Magnification, ...]:
    """Several names as distinct steps of a ladder, finest first.

    Raises:
        MagnificationError: an unknown name, a repeated one, or none at all.
    """
    steps = [ladder[name] for name in wanted]
    if not steps:
        raise MagnificationError(
            "no magnification asked for", cure=f"Give at least one of {', '.join(map(str, ladder.steps))}"
        )
    if len(set(steps)) < len(steps):
        raise MagnificationError(f"a magnification is asked for twice in {list(wanted)}", cure="Name each once")
    return tuple(sorted(steps))

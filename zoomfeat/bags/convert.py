"""Bags into the layouts of other tools, and back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from zoomfeat.bags.bag import Bag
from zoomfeat.bags.layouts import LAYOUTS, Hints, Layout
from zoomfeat.bags.layouts.base import apply_mpp
from zoomfeat.domains import DEFAULT, load_domain
from zoomfeat.errors import ConfigurationError, ZoomfeatError
from zoomfeat.files import make_folder


@dataclass(frozen=True)
class Conversion:
    """What became of one slide.

    Attributes:
        slide: its name.
        source: the files it was read from.
        written: the files it was written to; empty after an error.
        error: why it could not be converted; None where it was.
    """

    slide: str
    source: tuple[Path, ...]
    written: tuple[Path, ...] = ()
    error: ZoomfeatError | None = None


@dataclass(frozen=True)
class StoredBag:
    """A bag on disk in any layout that is read, not yet opened.

    Attributes:
        slide: its name.
        files: what holds it, a file a magnification.
        layout: of the files.
        hints: what the user knows beyond them.
    """

    slide: str
    files: tuple[Path, ...]
    layout: Layout
    hints: Hints

    def open(self) -> Bag:
        """The bag; features of a zoomfeat bag stay on disk, those of other layouts are in memory.

        Raises:
            ZoomfeatError: the files are damaged, or do not say all that a bag needs.
        """
        assert self.layout.read is not None  # only such layouts are found
        return apply_mpp(self.layout.read(self.slide, list(self.files), self.hints), self.hints)


def convert(
    source: str | Path,
    out: str | Path,
    to: str = "zoomfeat",
    layout: str | None = None,
    *,
    features: str = "all",
    mpp: float | tuple[float, float] | None = None,
    magnification: str | None = None,
    encoder_name: str | None = None,
    domain: str = DEFAULT,
) -> list[Conversion]:
    """Convert one bag, or a folder of them, from one layout to another.

    A slide of a folder that cannot be converted becomes a row with its error, and the others go on.

    Args:
        source: a file, the folder of one magnification, or the folder above several.
        out: the folder to write to; made where missing.
        to: ``"zoomfeat"``, ``"fused"`` (a bag that also stores ``features_fused``), ``"trident"``, ``"clam"``,
            ``"stamp"``, ``"torchmil"`` or ``"anndata"``.
        layout: ``"zoomfeat"``, ``"trident"``, ``"clam"``, ``"stamp"`` or ``"torchmil"``; None recognises it.
        features: what is written where a file holds one matrix: ``"all"`` for a folder a magnification,
            ``"finest"``, a magnification, or ``"fused"``.
        mpp: um/px of level 0, or its x and y, where the source does not state it.
        magnification: of the patches, where neither the files nor their folder state it.
        encoder_name: of the features, where the source does not state it or holds several.
        domain: whose magnifications the files of other tools mean.

    Returns:
        One row a slide, in the order of their names.

    Raises:
        ConfigurationError: an unknown layout, no bag at the source, or hints that contradict it.
        ZoomfeatError: the source is a single file and cannot be converted.
    """
    source, out = Path(source), Path(out)
    target = _layout(to, tuple(LAYOUTS))
    found = stored_bags(source, layout, mpp=mpp, magnification=magnification, encoder_name=encoder_name, domain=domain)
    make_folder(out)
    rows = [_convert_slide(stored, target, out, features) for stored in found]
    if source.is_file() and rows[0].error is not None:
        raise rows[0].error
    return rows


def stored_bags(
    source: str | Path,
    layout: str | None = None,
    *,
    mpp: float | tuple[float, float] | None = None,
    magnification: str | None = None,
    encoder_name: str | None = None,
    domain: str = DEFAULT,
) -> list[StoredBag]:
    """The bags that a file or a folder holds, in any layout that is read; none is opened yet.

    Args:
        source: see `convert`, as for all others.
        layout: of the source.
        mpp: um/px of level 0.
        magnification: of the patches.
        encoder_name: of the features.
        domain: whose magnifications they are.

    Returns:
        One a slide, in the order of their names.

    Raises:
        ConfigurationError: an unknown layout, or no bag at the source.
    """
    both = (mpp, mpp) if isinstance(mpp, float | int) else mpp
    hints = Hints(both, magnification, encoder_name, load_domain(domain).ladder)
    origin, slides = _find(Path(source), layout, hints)
    return [StoredBag(slide, tuple(files), origin, hints) for slide, files in slides.items()]


def _convert_slide(stored: StoredBag, target: Layout, out: Path, features: str) -> Conversion:
    try:
        return Conversion(stored.slide, stored.files, written=tuple(target.write(stored.open(), out, features)))
    except ZoomfeatError as error:
        return Conversion(stored.slide, stored.files, error=error)


def _find(source: Path, layout: str | None, hints: Hints) -> tuple[Layout, dict[str, list[Path]]]:
    """The layout of a source and the files of each slide in it."""
    if not source.exists():
        raise ConfigurationError("no such file or folder", cure="Check the path", path=source)
    readable = tuple(name for name, known in LAYOUTS.items() if known.read is not None)
    for name in readable if layout is None else (layout,):
        candidate = _layout(name, readable)
        found = candidate.files(source, hints) if candidate.files is not None else []
        if found:
            slides: dict[str, list[Path]] = {}
            for slide, path in sorted(found):
                slides.setdefault(slide, []).append(path)
            return candidate, slides
    raise ConfigurationError(
        f"no bag of the layouts {', '.join(readable)}" if layout is None else f"no bag of the {layout} layout",
        cure="Point at a bag, at a folder of bags, or name the layout with layout=",
        path=source,
    )


def _layout(name: str, known: tuple[str, ...]) -> Layout:
    if name not in known:
        raise ConfigurationError(f"no layout {name!r}", cure=f"Use one of {', '.join(known)}")
    return LAYOUTS[name]

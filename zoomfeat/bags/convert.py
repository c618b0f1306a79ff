"""Bags into the layouts of other tools, and back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from zoomfeat.bags.layouts import LAYOUTS, Hints, Layout
from zoomfeat.bags.layouts.base import apply_mpp
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

    Returns:
        One row a slide, in the order of their names.

    Raises:
        ConfigurationError: an unknown layout, no bag at the source, or hints that contradict it.
        ZoomfeatError: the source is a single file and cannot be converted.
    """
    source, out = Path(source), Path(out)
    hints = Hints((mpp, mpp) if isinstance(mpp, float | int) else mpp, magnification, encoder_name)
    target = _layout(to, tuple(LAYOUTS))
    origin, slides = _find(source, layout, hints)
    make_folder(out)
    rows = [_convert_slide(slide, files, origin, target, out, features, hints) for slide, files in slides.items()]
    if source.is_file() and rows[0].error is not None:
        raise rows[0].error
    return rows


def _convert_slide(
    slide: str, files: list[Path], origin: Layout, target: Layout, out: Path, features: str, hints: Hints
) -> Conversion:
    assert origin.read is not None  # _find returns layouts that can be read
    try:
        bag = apply_mpp(origin.read(slide, files, hints), hints)
        return Conversion(slide, tuple(files), written=tuple(target.write(bag, out, features)))
    except ZoomfeatError as error:
        return Conversion(slide, tuple(files), error=error)


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

"""Zoomfeat bags themselves, plain or with the fused features stored."""

from __future__ import annotations

from pathlib import Path

from zoomfeat.bags.bag import Bag
from zoomfeat.bags.layouts.base import Hints, Layout


def _write(bag: Bag, root: Path, features: str) -> list[Path]:
    """``{slide}.h5``; a bag holds every magnification, whatever ``features`` asks for."""
    path = root / f"{bag.metadata.slide_id}.h5"
    bag.save(path)
    return [path]


def _write_fused(bag: Bag, root: Path, features: str) -> list[Path]:
    """``{slide}.h5`` with one more data set, ``features_fused``."""
    path = root / f"{bag.metadata.slide_id}.h5"
    bag.save(path, fused=True)
    return [path]


def _files(source: Path, hints: Hints) -> list[tuple[str, Path]]:
    paths = [source] if source.suffix == ".h5" else sorted(source.glob("*.h5"))
    return [(path.stem, path) for path in paths]


def _read(slide: str, files: list[Path], hints: Hints) -> Bag:
    return Bag.open(files[0])


BAG = Layout("zoomfeat", _write, _files, _read)
FUSED = Layout("fused", _write_fused)

"""torchmil: ``features/{slide}.npy`` and ``coords/{slide}.npy``, one folder a magnification.

torchmil links instances whose coordinates differ by one, so ``coords`` are columns and rows of the patch
grid. ``level0_boxes/{slide}.npy``, which torchmil does not read, keeps x, y, width and height of each patch
in level-0 px beside them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zoomfeat.bags.bag import Bag
from zoomfeat.bags.layouts.base import (
    Foreign,
    Hints,
    Layout,
    as_float32,
    below,
    folder_magnification,
    magnification_mpp,
    reads_scales,
    select,
)
from zoomfeat.bags.scales import ScaleFeatures
from zoomfeat.errors import BagInvalidError, ConfigurationError
from zoomfeat.files import make_folder, replacing
from zoomfeat.magnification import PATCH_SIZE


def _write(bag: Bag, root: Path, features: str) -> list[Path]:
    written = []
    for matrix in select(bag, features):
        coords, size = matrix.scale.coords, np.array(matrix.scale.patch_size_level0)
        arrays: dict[str, NDArray] = {
            "features": matrix.scale.features,
            "coords": coords // size,
            "level0_boxes": np.hstack([coords, np.broadcast_to(size, coords.shape)]),
        }
        for folder, array in arrays.items():
            path = make_folder(root / matrix.label / folder) / f"{bag.metadata.slide_id}.npy"
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.save(file, array, allow_pickle=False)
            written.append(path)
    return written


def _files(source: Path, hints: Hints) -> list[tuple[str, Path]]:
    if source.is_file():
        return [(source.stem, source)] if source.suffix == ".npy" and source.parent.name == "features" else []
    return [(path.stem, path) for path in below(source, "features/*.npy")]


def _read_scale(path: Path, hints: Hints) -> Foreign:
    folder = path.parent.parent
    magnification = folder_magnification(folder, hints)
    boxes = _level0_boxes(folder, path.name, magnification, hints)
    return Foreign(
        ScaleFeatures(
            magnification=magnification,
            features=as_float32(_load(path)),
            coords=np.ascontiguousarray(boxes[:, :2]),
            patch_size_level0=(int(boxes[0, 2]), int(boxes[0, 3])),
            mpp=magnification_mpp(magnification, hints.ladder),
        )
    )


def _level0_boxes(folder: Path, name: str, magnification: str, hints: Hints) -> NDArray[np.int64]:
    """x, y, width and height of each patch in level-0 px, (N, 4): as stored, else from the grid and um/px."""
    stored = folder / "level0_boxes" / name
    if stored.is_file():
        return _load(stored, columns=4).astype(np.int64)
    if hints.mpp is None:
        raise ConfigurationError(
            "torchmil's coordinates are columns and rows, and the slide's um/px is not stated",
            cure="Give the um/px of level 0 with mpp=",
            path=folder / "coords" / name,
        )
    grid = _load(folder / "coords" / name, columns=2).astype(np.int64)
    size = np.rint(PATCH_SIZE * magnification_mpp(magnification, hints.ladder) / np.array(hints.mpp)).astype(np.int64)
    return np.hstack([grid * size, np.broadcast_to(size, grid.shape)])


def _load(path: Path, columns: int | None = None) -> NDArray[np.number]:
    """A matrix of numbers from a .npy file, with at least one row and that many columns; None for any."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BagInvalidError(
            "missing or not a NumPy array of numbers",
            cure="A torchmil folder holds features/ and coords/ with the same names",
            path=path,
        ) from error
    if array.dtype.kind not in "iuf" or array.ndim != 2 or not array.size or columns not in (None, array.shape[1]):
        raise BagInvalidError(
            f"an array of type {array.dtype} and shape {array.shape}, expected numbers (N, {columns or 'D'})",
            cure="Write it again with `zoomfeat convert to=torchmil`, or as torchmil's documentation says",
            path=path,
        )
    return array


LAYOUT = Layout("torchmil", _write, _files, reads_scales(_read_scale))

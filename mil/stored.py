"""Bags on disk: single matrices of other tools, and the features of zoomfeat bags straight from the file."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray

from zoomfeat.bags import hdf5
from zoomfeat.bags.files import DAMAGE, INCOMPLETE_CURE, reading, require_dataset
from zoomfeat.bags.scales import FEATURE_TYPES
from zoomfeat.errors import BagInvalidError

_FOREIGN_CURE = "Expected an HDF5 file with `features` (N, D) (TRIDENT, CLAM), or `feats` (STAMP)"


def is_bag(path: Path) -> bool:
    """Whether a file is a zoomfeat bag and not a single matrix.

    Raises:
        BagInvalidError: an HDF5 file that is missing or damaged.
    """
    if path.suffix in (".pt", ".npy"):
        return False
    with reading(path) as file:
        return "schema" in file.attrs


def matrix_shape(path: Path) -> tuple[int, ...]:
    """Shape of the matrix in a file of another tool, without reading it.

    Raises:
        BagInvalidError: the file is missing, damaged, or holds no matrix.
    """
    if path.suffix in (".pt", ".npy"):
        return _open_matrix(path).shape
    with reading(path) as file:
        return _foreign_dataset(file, path).shape


def read_matrix(path: Path) -> NDArray[np.float32]:
    """The matrix in a file of another tool.

    Raises:
        BagInvalidError: the file is missing, damaged, or holds no matrix.
    """
    if path.suffix in (".pt", ".npy"):
        return np.array(_open_matrix(path), dtype=np.float32)
    with reading(path) as file:
        return _read_features(_foreign_dataset(file, path), path)


def read_bag(
    path: Path, scales: Sequence[str]
) -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.int32]]] | None:
    """Features of a zoomfeat bag at one magnification, or from its finest on with parents, and nothing else of it.

    Much less than ``Bag.open`` reads and checks, for bags whose header has been checked before.

    Args:
        path: the bag.
        scales: the magnifications, finest first.

    Returns:
        Features and parents by magnification; None where ``scales`` are several and do not begin with the bag's finest.

    Raises:
        BagInvalidError: the file is damaged, or has changed since its header was checked.
    """
    with reading(path) as file:
        held = json.loads(file.attrs.get("magnifications", "[]"))
        if file.attrs.get("schema") != hdf5.SCHEMA or not held or not set(scales) <= set(held):
            return None
        if len(scales) > 1 and scales[0] != held[0]:
            return None  # the bag states the parents of its finest patches only
        features, parents = {}, {}
        for name in scales:
            suffix = "" if name == held[0] else f"_{name}"
            stored = require_dataset(
                file, f"features{suffix}", path, shape=(None, None), dtypes=FEATURE_TYPES, cure=INCOMPLETE_CURE
            )
            features[name] = _read_features(stored, path)
            if len(features) > 1:
                shape = (len(features[held[0]]),)
                rows = require_dataset(
                    file, f"parent{suffix}", path, shape=shape, dtypes=("int32",), cure=INCOMPLETE_CURE
                )
                parents[name] = rows[...]
    return features, parents


def _read_features(dataset: h5py.Dataset, path: Path) -> NDArray[np.float32]:
    """(N, D) float32; where they lie in one piece, as bags are written, without HDF5's lock and its copy."""
    offset = dataset.id.get_offset()
    if offset is None or dataset.dtype != np.dtype("<f4") or dataset.file.userblock_size:
        return dataset.astype(np.float32)[...]
    features = np.empty(dataset.shape, dtype=np.float32)
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        place = memoryview(features.view(np.uint8).reshape(-1).data)
        while len(place):  # one call reads 2 GiB at most
            count = file.readinto(place)
            if not count:
                raise BagInvalidError("the file ends within its features", cure=INCOMPLETE_CURE, path=path)
            place = place[count:]
    return features


def _foreign_dataset(file: h5py.File, path: Path) -> h5py.Dataset:
    name = "feats" if "feats" in file and "features" not in file else "features"
    return require_dataset(file, name, path, shape=(None, None), cure=_FOREIGN_CURE)


def _open_matrix(path: Path) -> NDArray:
    """A matrix in a ``.pt`` or ``.npy`` file, mapped and not yet read."""
    import torch

    try:
        if path.suffix == ".npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            array = torch.load(path, map_location="cpu", weights_only=True, mmap=True).detach().numpy()
    except FileNotFoundError:
        raise BagInvalidError("no such file", cure="Check the path", path=path) from None
    except (pickle.UnpicklingError, struct.error, EOFError, *DAMAGE) as error:
        raise BagInvalidError(
            "holds no matrix that loads safely", cure="Expected one tensor or array (N, D)", path=path
        ) from error
    if array.dtype.kind not in "fiu":
        raise BagInvalidError(
            f"an array of type {array.dtype}, expected numbers (N, D)", cure="Save features as float32", path=path
        )
    return array

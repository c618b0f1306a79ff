"""Schema ``zoomfeat-bag/1``: how the parts of a bag lie in an HDF5 file.

The finest scale is ``features`` and ``coords``, the names that TRIDENT, CLAM and torchmil read; each
further scale adds ``features_5x``, ``coords_5x`` and ``parent_5x``. docs/bag-format.md is the specification.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from zoomfeat.bags.files import INCOMPLETE_CURE, NOT_A_BAG_CURE, reading, require_dataset
from zoomfeat.bags.metadata import (
    UNKNOWN,
    BagMetadata,
    decode_georeference,
    decode_json,
    encode_georeference,
    encode_mpp,
)
from zoomfeat.bags.scales import FEATURE_TYPES, AnyScale, Scale, StoredScale, plain_number
from zoomfeat.errors import BagInvalidError, ConfigurationError
from zoomfeat.files import replacing

SCHEMA = "zoomfeat-bag/1"


def write(
    path: Path,
    scales: Sequence[AnyScale],
    parents: Mapping[str, NDArray[np.int32]],
    metadata: BagMetadata,
    *,
    dtype: str = "float32",
    fused: NDArray[np.float32] | None = None,
) -> None:
    """Write a bag, whole or not at all.

    Args:
        path: the file to write or replace.
        scales: finest first.
        parents: coarser magnification name to (N,) rows of that scale.
        metadata: the root attributes.
        dtype: ``"float32"`` or ``"float16"``, the type that features are stored in.
        fused: (N, sum of D) to be stored as ``features_fused``; None stores none.

    Raises:
        ConfigurationError: another dtype, or features too large for float16.
        ZoomfeatError: the file cannot be written.
    """
    if dtype not in FEATURE_TYPES:
        raise ConfigurationError(f"dtype {dtype!r}", cure=f"Use one of {', '.join(FEATURE_TYPES)}")
    # Made in memory and written by Python: where the disk is full while HDF5 writes, closing the file ends the process
    # (a segmentation fault, seen with HDF5 2.0; tests/zoomfeat/test_faults.py).
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        file.attrs["schema"] = SCHEMA
        file.attrs["magnifications"] = json.dumps([scale.magnification for scale in scales])
        file.attrs["kept"] = json.dumps({scale.magnification: len(scale) for scale in scales})
        file.attrs.update(metadata.to_attributes())
        for scale, suffix in zip(scales, _suffixes(scales), strict=True):
            features = file.create_dataset(f"features{suffix}", data=stored_as(scale.features, dtype))
            features.attrs.update({"name": metadata.slide_id, "savetodir": "."})
            coords = file.create_dataset(f"coords{suffix}", data=scale.coords)
            coords.attrs.update(coords_attributes(scale, metadata) | encode_georeference(metadata.georeference))
            if scale.magnification in parents:
                file.create_dataset(f"parent{suffix}", data=parents[scale.magnification])
        if fused is not None:
            file.create_dataset("features_fused", data=stored_as(fused, dtype))
        file.attrs["complete"] = True
    with replacing(path) as temporary:
        temporary.write_bytes(image.getbuffer())


def read(path: Path) -> tuple[tuple[StoredScale, ...], dict[str, NDArray[np.int32]], BagMetadata]:
    """The parts of a bag, its features left on disk.

    Raises:
        BagInvalidError: the file is not a complete bag of this schema; what the parts say to each other
            is checked by ``Bag``.
    """
    with reading(path) as file:
        _check_root(file, path)
        try:
            metadata = BagMetadata.from_attributes(file.attrs)
            names = decode_json("magnifications", file.attrs.get("magnifications"), list)
            scales = tuple(
                _read_scale(file, name, f"_{name}" if place else "", path) for place, name in enumerate(names)
            )
            metadata = replace(metadata, georeference=decode_georeference(file["coords"].attrs))
        except BagInvalidError as error:
            if error.path is not None:
                raise
            raise BagInvalidError(error.problem, cure=error.cure or INCOMPLETE_CURE, path=path) from error
        parents = {
            name: require_dataset(
                file, f"parent_{name}", path, shape=(len(scales[0]),), dtypes=("int32",), cure=INCOMPLETE_CURE
            )[...]
            for name in names[1:]
        }
    return scales, parents, metadata


def coords_attributes(scale: Scale, metadata: BagMetadata) -> dict[str, Any]:
    """The attributes of a ``coords`` data set, under the names that TRIDENT and CLAM read."""
    size = metadata.level0_size or (UNKNOWN, UNKNOWN)
    return {
        "patch_size": scale.patch_size,
        "patch_size_level0": scale.patch_size_level0[0],
        "patch_size_level0_xy": np.array(scale.patch_size_level0, dtype=np.int64),
        "level0_magnification": _level0_magnification(scale, metadata.mpp_level0),
        "target_magnification": scale.number,
        "overlap": 0,
        "name": metadata.slide_id,
        # TRIDENT stores an absolute folder here; a bag must not carry the paths of the machine it was made on.
        "savetodir": ".",
        "level0_width": size[0],
        "level0_height": size[1],
        "patch_level": 0,
        "custom_downsample": 1,
        "mpp": scale.mpp,
        "mpp_level0": encode_mpp(metadata.mpp_level0),
    }


def stored_as(features: NDArray[np.float32], dtype: str) -> NDArray[np.floating]:
    """The features in the type they are stored in.

    Raises:
        ConfigurationError: a finite value becomes infinite in float16.
    """
    with np.errstate(over="ignore"):
        stored = features.astype(dtype, copy=False)
    if dtype == "float16" and not np.isfinite(stored).all():
        raise ConfigurationError(
            f"features up to {np.abs(features).max():g} do not fit float16, whose largest value is 65504",
            cure="Store them as float32",
        )
    return stored


def _suffixes(scales: Sequence[AnyScale]) -> list[str]:
    """Of the data sets of each scale: none for the finest, ``_5x`` for 5x."""
    return [f"_{scale.magnification}" if place else "" for place, scale in enumerate(scales)]


def _level0_magnification(scale: Scale, mpp_level0: tuple[float, float] | None) -> int | float:
    """Level 0 as a magnification of two digits, which is how slides are named: 0.2528 um/px is 40 beside 0.5 at 20x."""
    mpp = scale.patch_size * scale.mpp / scale.patch_size_level0[0] if mpp_level0 is None else mpp_level0[0]
    return plain_number(float(f"{scale.number * scale.mpp / mpp:.2g}"))


def _check_root(file: h5py.File, path: Path) -> None:
    schema = file.attrs.get("schema")
    if schema is None:
        raise BagInvalidError("not a zoomfeat bag, no attribute 'schema'", cure=NOT_A_BAG_CURE, path=path)
    if schema != SCHEMA:
        raise BagInvalidError(
            f"schema {schema!r}, expected {SCHEMA!r}", cure="Use the zoomfeat version that wrote it", path=path
        )
    if not file.attrs.get("complete", False):
        raise BagInvalidError("not marked complete", cure=INCOMPLETE_CURE, path=path)
    for name in file:
        if not isinstance(file.get(name, getlink=True), h5py.HardLink):
            raise BagInvalidError(
                f"{name!r} is a link, expected every data set in the file itself", cure=INCOMPLETE_CURE, path=path
            )


def _read_scale(file: h5py.File, name: str, suffix: str, path: Path) -> StoredScale:
    coords = require_dataset(file, f"coords{suffix}", path, shape=(None, 2), dtypes=("int64",), cure=INCOMPLETE_CURE)
    features = require_dataset(
        file, f"features{suffix}", path, shape=(len(coords), None), dtypes=FEATURE_TYPES, cure=INCOMPLETE_CURE
    )
    width, height = _numbers(coords, "patch_size_level0_xy", 2)
    return StoredScale(
        magnification=str(name),
        coords=coords[...],
        patch_size_level0=(int(width), int(height)),
        mpp=_numbers(coords, "mpp", 1)[0],
        patch_size=int(_numbers(coords, "patch_size", 1)[0]),
        path=path,
        dataset=f"features{suffix}",
        dim=features.shape[1],
    )


def _numbers(dataset: h5py.Dataset, name: str, count: int) -> list[float]:
    """The numbers that an attribute of a data set holds."""
    value = np.atleast_1d(dataset.attrs.get(name, ()))
    if value.shape != (count,) or not np.issubdtype(value.dtype, np.number):
        raise BagInvalidError(
            f"attribute {name!r} of {dataset.name.removeprefix('/')!r} is missing or not {count} number(s)"
        )
    return value.tolist()

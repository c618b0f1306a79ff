"""CLAM: ``h5_files/{slide}.h5`` with features and level-0 coordinates, ``pt_files/{slide}.pt`` with features alone.

CLAM reads a region of ``patch_size`` px at level ``patch_level`` for each coordinate, so that level 0 and
``patch_size`` in level-0 px say the same as a um/px that no level of the slide has. One root a magnification.
"""

from __future__ import annotations

import struct
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from zoomfeat.bags.bag import Bag
from zoomfeat.bags.files import DAMAGE, reading, require_dataset
from zoomfeat.bags.layouts.base import (
    Foreign,
    Hints,
    Layout,
    as_float32,
    below,
    folder_magnification,
    magnification_mpp,
    need_attributes,
    reads_scales,
    select,
)
from zoomfeat.bags.metadata import UNKNOWN, BagMetadata, decode_mpp, encode_mpp
from zoomfeat.bags.scales import Scale, ScaleFeatures
from zoomfeat.errors import BagInvalidError
from zoomfeat.files import make_folder, replacing

_CURE = "Point at CLAM's feature folder, the one that holds h5_files and pt_files"


def _write(bag: Bag, root: Path, features: str) -> list[Path]:
    import torch  # here, since it takes seconds to import and no other layout needs it

    written = []
    slide = bag.metadata.slide_id
    for matrix in select(bag, features):
        values = matrix.scale.features
        path = make_folder(root / matrix.label / "h5_files") / f"{slide}.h5"
        with replacing(path) as temporary, h5py.File(temporary, "w", locking=False) as file:
            file.create_dataset("features", data=values)
            coords = file.create_dataset("coords", data=matrix.scale.coords)
            coords.attrs.update(_attributes(matrix.scale, bag.metadata))

        tensor = make_folder(root / matrix.label / "pt_files") / f"{slide}.pt"
        with replacing(tensor) as temporary:
            torch.save(torch.from_numpy(values), temporary)
        written += [path, tensor]
    return written


def _attributes(scale: Scale, metadata: BagMetadata) -> dict[str, Any]:
    size = metadata.level0_size
    return {
        "patch_size": scale.patch_size_level0[0],
        "patch_level": 0,
        "downsample": np.ones(2),
        "downsampled_level_dim": UNKNOWN if size is None else np.array(size),
        "level_dim": UNKNOWN if size is None else np.array(size),
        "name": metadata.slide_id,
        "save_path": ".",
        # Beyond CLAM, which ignores them: what brings the bag back as it was.
        "patch_size_level0_xy": np.array(scale.patch_size_level0),
        "requested_patch_size": scale.patch_size,
        "mpp_level0": encode_mpp(metadata.mpp_level0),
    }


def _files(source: Path, hints: Hints) -> list[tuple[str, Path]]:
    if source.is_file():
        is_clam = source.suffix == ".pt" or source.parent.name == "h5_files"
        return [(source.stem, source)] if is_clam else []
    # Without h5_files the .pt files are all there is; reading one says what is missing.
    paths = below(source, "h5_files/*.h5") or below(source, "pt_files/*.pt")
    return [(path.stem, path) for path in paths]


def _read_scale(path: Path, hints: Hints) -> Foreign:
    with_coords = path
    if path.suffix == ".pt":
        with_coords = path.parent.parent / "h5_files" / f"{path.stem}.h5"
        if not with_coords.is_file():
            raise BagInvalidError(
                "a CLAM .pt file holds no coordinates, expected h5_files/ with the same name beside pt_files/",
                cure="Convert from CLAM's h5_files",
                path=path,
            )
    with reading(with_coords) as file:
        coords = require_dataset(file, "coords", with_coords, shape=(None, 2), cure=_CURE)
        stored = require_dataset(file, "features", with_coords, shape=(len(coords), None), cure=_CURE)
        features = _load_tensor(path, stored.shape) if path.suffix == ".pt" else as_float32(stored[...])
        attributes = dict(coords.attrs)
        patch_size, downsample = need_attributes(attributes, ("patch_size", "downsample"), with_coords, "CLAM")
        width, height = (float(patch_size) * np.broadcast_to(downsample, 2)).round()
        width, height = attributes.get("patch_size_level0_xy", (width, height))
        magnification = folder_magnification(with_coords.parent.parent, hints)
        return Foreign(
            ScaleFeatures(
                magnification=magnification,
                features=features,
                coords=coords[...].astype(np.int64),
                patch_size_level0=(int(width), int(height)),
                mpp=magnification_mpp(magnification, hints.ladder),
                patch_size=int(attributes.get("requested_patch_size", patch_size)),
            ),
            level0_size=_level0_size(attributes),
            mpp_level0=decode_mpp(attributes.get("mpp_level0", UNKNOWN)),
        )


def _level0_size(attributes: dict[str, Any]) -> tuple[int, int] | None:
    """Width and height of level 0; CLAM stores the size of the level that the patches were cut from."""
    size = attributes.get("level_dim", UNKNOWN)
    if isinstance(size, str) or attributes.get("patch_level") != 0:
        return None
    return int(size[0]), int(size[1])


def _load_tensor(path: Path, shape: tuple[int, int]) -> NDArray[np.float32]:
    import torch

    try:
        tensor = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, struct.error, EOFError, *DAMAGE) as error:
        raise BagInvalidError("not a tensor that loads safely", cure=_CURE, path=path) from error
    if not isinstance(tensor, torch.Tensor) or tuple(tensor.shape) != shape:
        found = tuple(tensor.shape) if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        raise BagInvalidError(f"holds {found}, expected a tensor {shape} as in h5_files", cure=_CURE, path=path)
    return as_float32(tensor.numpy())


LAYOUT = Layout("clam", _write, _files, reads_scales(_read_scale))

"""STAMP 2: ``{slide}.h5`` with ``feats`` in float16 and ``coords`` in um, one folder a magnification.

The root attributes state the tile in um and in px, hence the um/px asked for; neither the slide's own
um/px nor its size is there, so that level-0 pixels come back only with the user's ``mpp``.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from zoomfeat.bags.bag import Bag
from zoomfeat.bags.files import reading, require_dataset
from zoomfeat.bags.hdf5 import stored_as
from zoomfeat.bags.layouts.base import (
    Foreign,
    Hints,
    Layout,
    as_float32,
    below,
    magnification_mpp,
    nearest_magnification,
    need_attributes,
    need_mpp,
    reads_scales,
    select,
)
from zoomfeat.bags.scales import ScaleFeatures
from zoomfeat.errors import BagInvalidError, ConfigurationError
from zoomfeat.files import make_folder, replacing

STAMP_VERSION = "2.1.0"
"""The STAMP version whose layout is written."""

_NEEDED = ("unit", "tile_size_um", "tile_size_px")
_CURE = "Name the layout with layout="


def _write(bag: Bag, root: Path, features: str) -> list[Path]:
    metadata = bag.metadata
    mpp = np.array(need_mpp(metadata, "STAMP"))
    written = []
    for matrix in select(bag, features):
        scale = matrix.scale
        path = make_folder(root / matrix.label) / f"{metadata.slide_id}.h5"
        with replacing(path) as temporary, h5py.File(temporary, "w", locking=False) as file:
            file.create_dataset("feats", data=stored_as(scale.features, "float16"))
            file.create_dataset("coords", data=(scale.coords * mpp).astype(np.float32))
            file.attrs.update(
                {
                    "extractor": metadata.encoder,
                    "unit": "um",
                    # The true size, off the requested one by the rounding to whole level-0 pixels: STAMP
                    # divides coordinates by it, and over a wide slide the difference adds up to a tile.
                    "tile_size_um": scale.patch_size_level0[0] * mpp[0],
                    "tile_size_px": scale.patch_size,
                    "feat_type": "tile",
                    "stamp_version": STAMP_VERSION,
                    "code_hash": metadata.config_hash,
                    "patch_size_level0_xy": np.array(scale.patch_size_level0),  # ours, for the way back
                }
            )
        written.append(path)
    return written


def _files(source: Path, hints: Hints) -> list[tuple[str, Path]]:
    paths = [source] if source.suffix == ".h5" else below(source, "*.h5")
    return [(path.stem, path) for path in paths] if _hold_feats(paths) else []


def _hold_feats(paths: list[Path]) -> bool:
    """Whether the first of the files that can be read at all has STAMP's data set."""
    for path in paths:
        try:
            with reading(path) as file:
                return "feats" in file
        except BagInvalidError:
            continue  # one damaged file does not decide the layout of a folder
    return False


def _read_scale(path: Path, hints: Hints) -> Foreign:
    with reading(path) as file:
        coords = require_dataset(file, "coords", path, shape=(None, 2), cure=_CURE)
        features = require_dataset(file, "feats", path, shape=(len(coords), None), cure=_CURE)
        unit, tile_um, tile_px = need_attributes(file.attrs, _NEEDED, path, "STAMP")
        if unit != "um":
            raise BagInvalidError(
                f"coordinates in {unit!r}, expected 'um'", cure="Extract again with STAMP 2", path=path
            )
        if hints.mpp is None:
            raise ConfigurationError(
                "STAMP coordinates are um and the file does not state the slide's um/px",
                cure="Give the um/px of level 0 with mpp=",
                path=path,
            )
        mpp = np.array(hints.mpp)
        name = hints.magnification or nearest_magnification(float(tile_um) / int(tile_px), hints.ladder)
        width, height = file.attrs.get("patch_size_level0_xy", np.rint(float(tile_um) / mpp))
        return Foreign(
            ScaleFeatures(
                magnification=name,
                features=as_float32(features[...]),
                coords=np.rint(coords[...].astype(np.float64) / mpp).astype(np.int64),
                patch_size_level0=(int(width), int(height)),
                mpp=magnification_mpp(name, hints.ladder),
                patch_size=int(tile_px),
            ),
            encoder=str(file.attrs.get("extractor", "unknown")),
        )


LAYOUT = Layout("stamp", _write, _files, reads_scales(_read_scale))

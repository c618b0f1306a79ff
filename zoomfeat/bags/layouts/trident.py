"""TRIDENT: ``{20}x_{256}px_0px_overlap/`` with ``features_{encoder}/{slide}.h5`` and ``patches/{slide}_patches.h5``.

The coordinates carry the attributes ``patch_size``, ``patch_size_level0``, ``level0_magnification``,
``target_magnification``, ``overlap``, ``name``, ``savetodir``, ``level0_width`` and ``level0_height``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from zoomfeat.bags.bag import Bag
from zoomfeat.bags.files import reading, require_dataset
from zoomfeat.bags.hdf5 import coords_attributes
from zoomfeat.bags.layouts.base import (
    Foreign,
    Hints,
    Layout,
    as_float32,
    below,
    magnification_mpp,
    need_attributes,
    reads_scales,
    select,
)
from zoomfeat.bags.metadata import UNKNOWN, decode_mpp
from zoomfeat.bags.scales import ScaleFeatures
from zoomfeat.errors import BagInvalidError, ConfigurationError
from zoomfeat.files import make_folder, replacing

_NEEDED = ("patch_size", "patch_size_level0", "target_magnification")
_CURE = "Point at TRIDENT's {mag}x_{size}px_{overlap}px_overlap folder or at the folder above it"


def _write(bag: Bag, root: Path, features: str) -> list[Path]:
    written = []
    slide = bag.metadata.slide_id
    for matrix in select(bag, features):
        scale = matrix.scale
        encoder = re.sub(r"[^\w.+-]+", "-", bag.metadata.encoder)  # hub names hold slashes and colons
        if "+" in matrix.label:
            encoder = f"{encoder}-{matrix.label}"
        folder = root / f"{scale.number}x_{scale.patch_size}px_0px_overlap"
        attributes = coords_attributes(scale, bag.metadata)

        patches = make_folder(folder / "patches") / f"{slide}_patches.h5"
        with replacing(patches) as temporary, h5py.File(temporary, "w", locking=False) as file:
            file.create_dataset("coords", data=scale.coords).attrs.update(attributes)

        path = make_folder(folder / f"features_{encoder}") / f"{slide}.h5"
        with replacing(path) as temporary, h5py.File(temporary, "w", locking=False) as file:
            stored = file.create_dataset("features", data=scale.features)
            stored.attrs.update({"name": slide, "savetodir": "."})
            file.create_dataset("coords", data=scale.coords).attrs.update(attributes)
        written += [path, patches]
    return written


def _files(source: Path, hints: Hints) -> list[tuple[str, Path]]:
    if source.is_file():
        return [(source.stem, source)] if source.parent.name.startswith("features_") else []
    if source.name.startswith("features_"):
        return [(path.stem, path) for path in sorted(source.glob("*.h5"))]
    paths = below(source, f"features_{hints.encoder or '*'}/*.h5")
    paths = [path for path in paths if "+" not in path.parent.name or hints.encoder]
    encoders = {path.parent.name.removeprefix("features_") for path in paths}
    if len(encoders) > 1:
        raise ConfigurationError(
            f"features of several encoders: {', '.join(sorted(encoders))}",
            cure="Choose one with encoder_name=",
            path=source,
        )
    return [(path.stem, path) for path in paths]


def _read_scale(path: Path, hints: Hints) -> Foreign:
    with reading(path) as file:
        coords = require_dataset(file, "coords", path, shape=(None, 2), cure=_CURE)
        features = require_dataset(file, "features", path, shape=(len(coords), None), cure=_CURE)
        attributes = dict(coords.attrs)
        patch_size, level0, magnification = need_attributes(attributes, _NEEDED, path, "TRIDENT")
        if attributes.get("overlap", 0):
            raise BagInvalidError(
                f"patches overlap by {attributes['overlap']} px, expected none",
                cure="Extract patches without overlap",
                path=path,
            )
        # Square in TRIDENT; zoomfeat adds both sides, for scanners whose um/px differ in x and y.
        width, height = attributes.get("patch_size_level0_xy", (level0, level0))
        name = f"{float(magnification):g}x"
        return Foreign(
            ScaleFeatures(
                magnification=name,
                features=as_float32(features[...]),
                coords=coords[...].astype(np.int64),
                patch_size_level0=(int(width), int(height)),
                mpp=float(attributes["mpp"]) if "mpp" in attributes else magnification_mpp(name, hints.ladder),
                patch_size=int(patch_size),
            ),
            encoder=path.parent.name.removeprefix("features_"),
            level0_size=_level0_size(attributes),
            mpp_level0=decode_mpp(attributes.get("mpp_level0", UNKNOWN)),
        )


def _level0_size(attributes: Mapping[str, Any]) -> tuple[int, int] | None:
    """Width and height of level 0; None where the file leaves them out or says unknown."""
    width, height = attributes.get("level0_width", UNKNOWN), attributes.get("level0_height", UNKNOWN)
    return None if UNKNOWN in (width, height) else (int(width), int(height))


LAYOUT = Layout("trident", _write, _files, reads_scales(_read_scale))

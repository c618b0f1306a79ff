"""Every kind of file that is not a complete bag is refused with one line that names it and a cure."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from zoomfeat.bags import Bag, validate
from zoomfeat.errors import BagInvalidError


def _replace(file: h5py.File, name: str, data: np.ndarray) -> None:
    attributes = dict(file[name].attrs)
    del file[name]
    file.create_dataset(name, data=data).attrs.update(attributes)


def _relink(file: h5py.File, name: str, link: object) -> None:
    del file[name]
    file[name] = link


def _external(file: h5py.File) -> None:
    shape = file["features"].shape
    del file["features"]
    file.create_dataset("features", shape, "f4", external=[("elsewhere.bin", 0, h5py.h5f.UNLIMITED)])


def _virtual(file: h5py.File) -> None:
    shape = file["features"].shape
    del file["features"]
    layout = h5py.VirtualLayout(shape=shape, dtype="f4")
    layout[:] = h5py.VirtualSource("elsewhere.h5", "features", shape=shape)
    file.create_virtual_dataset("features", layout)


def _unwritten(file: h5py.File) -> None:
    shape = file["features"].shape
    del file["features"]
    file.create_dataset("features", shape, "f4")


def _group(file: h5py.File) -> None:
    del file["features"]
    file.create_group("features").create_dataset("20x", data=np.zeros((3, 3), np.float32))


def _drop_attribute(name: str):
    return lambda file: file.attrs.__delitem__(name)


def _set(name: str, value: object):
    return lambda file: file.attrs.__setitem__(name, value)


CASES = {
    "schema missing": (_drop_attribute("schema"), "not a zoomfeat bag, .*`zoomfeat convert` reads"),
    "schema newer": (_set("schema", "zoomfeat-bag/2"), "schema 'zoomfeat-bag/2', expected 'zoomfeat-bag/1'"),
    "complete missing": (_drop_attribute("complete"), "not marked complete"),
    "complete false": (_set("complete", False), "not marked complete"),
    "metadata missing": (_drop_attribute("weights_hash"), "no root attribute 'weights_hash'"),
    "metadata not text": (_set("encoder", 3), "root attribute 'encoder' is .*3.*, expected text"),
    "metadata not JSON": (_set("configuration", "{"), "root attribute 'configuration' is not JSON"),
    "metadata other JSON": (_set("versions", "[]"), "holds a JSON list, expected dict"),
    "mpp broken": (_set("mpp_level0", 0.25), "expected two numbers or 'unknown'"),
    "mpp negative": (_set("mpp_level0", [-1.0, 1.0]), "expected two positive um/px"),
    "slide id a path": (_set("slide_id", "../../a"), "expected a plain file name"),
    "magnifications missing": (_drop_attribute("magnifications"), "'magnifications' is not JSON"),
    "magnifications empty": (_set("magnifications", "[]"), "without any magnification"),
    "magnification unstored": (_set("magnifications", '["20x", "10x"]'), "no data set 'coords_10x'"),
    "features missing": (lambda f: f.__delitem__("features"), "no data set 'features'"),
    "coords missing": (lambda f: f.__delitem__("coords_5x"), "no data set 'coords_5x'"),
    "parent missing": (lambda f: f.__delitem__("parent_5x"), "no data set 'parent_5x'"),
    "features a group": (_group, "'features' is a group"),
    "features a soft link": (
        lambda f: _relink(f, "features", h5py.SoftLink("/features_5x")),
        "'features' is a link",
    ),
    "features an external link": (
        lambda f: _relink(f, "features", h5py.ExternalLink("other.h5", "/features")),
        "'features' is a link",
    ),
    "a further link": (lambda f: f.__setitem__("more", h5py.SoftLink("/coords")), "'more' is a link"),
    "external storage": (_external, "stored outside the file"),
    "virtual": (_virtual, "stored outside the file"),
    "unwritten": (_unwritten, "never written to the end"),
    "features float64": (
        lambda f: _replace(f, "features", f["features"][:].astype("f8")),
        "type float64, expected float32 or float16",
    ),
    "features text": (
        lambda f: _replace(f, "features", np.full(f["features"].shape, b"a")),
        "expected float32",
    ),
    "features flat": (lambda f: _replace(f, "features", f["features"][:, 0]), r"expected \(64, any\)"),
    "features too few": (lambda f: _replace(f, "features", f["features"][:-1]), r"shape \(63, 32\), expected \(64"),
    "coords int32": (lambda f: _replace(f, "coords", f["coords"][:].astype("i4")), "type int32, expected int64"),
    "coords outside": (lambda f: _replace(f, "coords_5x", f["coords_5x"][:] + 9000), "start outside the slide"),
    "coords negative": (lambda f: _replace(f, "coords", f["coords"][:] - 9000), "start outside the slide"),
    "coords shifted": (lambda f: _replace(f, "coords", f["coords"][:] + 100), "do not lie in their 5x parent"),
    "parents too few": (lambda f: _replace(f, "parent_5x", f["parent_5x"][:-1]), r"expected \(64\)"),
    "parents out of range": (lambda f: _replace(f, "parent_5x", f["parent_5x"][:] + 99), "holds rows 99 to"),
    "parents negative": (lambda f: _replace(f, "parent_5x", f["parent_5x"][:] - 1), "holds rows -1 to"),
    "parents wrong": (lambda f: _replace(f, "parent_5x", f["parent_5x"][:][::-1]), "do not lie in their 5x parent"),
    "no patch": (
        lambda f: [_replace(f, name, f[name][:0]) for name in ("features", "coords", "parent_5x")],
        "no patch at 20x",
    ),
    "patch size missing": (
        lambda f: f["coords"].attrs.__delitem__("patch_size_level0_xy"),
        "attribute 'patch_size_level0_xy' of 'coords' is missing",
    ),
    "um/px text": (lambda f: f["coords_5x"].attrs.__setitem__("mpp", "two"), "'mpp' of 'coords_5x' is missing or"),
}


@pytest.mark.parametrize("name", CASES)
def test_damaged_bags_are_refused(saved, name):
    damage, message = CASES[name]
    path = saved()
    with h5py.File(path, "r+") as file:
        damage(file)
    with pytest.raises(BagInvalidError, match=message) as caught:
        Bag.open(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    with pytest.raises(BagInvalidError, match=message):
        validate(path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_open_but_do_not_validate(saved, value):
    path = saved()
    with h5py.File(path, "r+") as file:
        file["features_5x"][2, 1] = value
    Bag.open(path)
    with pytest.raises(BagInvalidError, match=r"1 of \d+ 5x feature rows are not finite, the first is row 2"):
        validate(path)


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.9, 0.999])
def test_truncated_files_are_refused(saved, share):
    path = saved()
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(BagInvalidError, match=r"truncated or damaged|not an HDF5 file"):
        Bag.open(path)


def test_lost_blocks_are_refused_or_harmless(saved):
    """Whichever part of a file reads as zeros, opening gives a bag or a BagInvalidError and nothing else."""
    path = saved()
    whole = path.read_bytes()
    errors = []
    for start in range(0, len(whole), 512):
        # libhdf5 itself never returns from a zeroed heap of attribute texts, 4096 bytes behind this mark.
        if b"GCOL" in whole[max(0, start - 4096) : start + 512]:
            continue
        path.write_bytes(whole[:start] + bytes(512) + whole[start + 512 :])
        try:
            validate(path)
        except BagInvalidError as error:
            errors.append(str(error))
    assert len(errors) > 5
    assert all(error.startswith(f"{path}: ") and "\n" not in error for error in errors)


def test_other_files_are_refused(tmp_path):
    text = tmp_path / "notes.h5"
    text.write_text("not HDF5")
    with pytest.raises(BagInvalidError, match="not an HDF5 file, expected a zoomfeat bag"):
        Bag.open(text)
    with pytest.raises(BagInvalidError, match="no such file"):
        Bag.open(tmp_path / "missing.h5")
    with pytest.raises(BagInvalidError, match="no such file"):
        Bag.open(tmp_path)
    foreign = tmp_path / "foreign.h5"
    with h5py.File(foreign, "w") as file:
        file["features"] = np.zeros((2, 3), np.float32)
    with pytest.raises(BagInvalidError, match="not a zoomfeat bag"):
        Bag.open(Path(foreign))

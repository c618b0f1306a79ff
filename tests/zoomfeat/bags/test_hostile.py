"""Bags made to do harm: to take memory without end, to recurse, to lead elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from zoomfeat.bags import Bag, convert, validate
from zoomfeat.errors import BagInvalidError


def _expanding(file: h5py.File) -> None:
    """64 rows of 2**20 features each, all of them the fill value but one chunk: 256 MB of a few kilobytes."""
    del file["features"]
    stored = file.create_dataset("features", (64, 2**20), "f4", chunks=(1, 2**16), compression="gzip")
    stored[0, 0] = 1


def _boundless(file: h5py.File) -> None:
    del file["features"]
    file.create_dataset("features", (64, 2**40), "f4", chunks=(1, 1024))


HARMFUL = {
    "expanding": (_expanding, r"'features' would expand from \d+ bytes to 268435456"),
    "boundless": (_boundless, "'features' would expand from 0 bytes to"),
    "deep JSON": (lambda f: f.attrs.__setitem__("configuration", '{"a":' * 50_000 + "1" + "}" * 50_000), "recursion"),
    "a long number": (lambda f: f.attrs.__setitem__("versions", f'{{"a": {"9" * 50_000}}}'), "versions|digits"),
    "um/px no number": (lambda f: f.attrs.__setitem__("mpp_level0", [0.5, np.nan]), "two positive um/px"),
    "um/px infinite": (lambda f: f.attrs.__setitem__("mpp_level0", [np.inf, 0.5]), "two positive um/px"),
    "patches without end": (
        lambda f: f["coords"].attrs.__setitem__("patch_size_level0_xy", [1e300, 1e300]),
        "expected positive sizes below",
    ),
    "patches of no size": (lambda f: f["coords"].attrs.__setitem__("mpp", np.nan), "expected positive sizes below"),
    "a long magnification": (
        lambda f: f.attrs.__setitem__("magnifications", json.dumps(["9" * 400 + "x", "5x"])),
        "expected a name such as",
    ),
    "a schema that is many": (lambda f: f.attrs.__setitem__("schema", np.array([b"a", b"b"])), "truncated or damaged"),
    "an empty attribute": (lambda f: f.attrs.__setitem__("encoder", h5py.Empty("f")), "expected text"),
    "references": (
        lambda f: f.attrs.__setitem__("encoder", f["coords"].ref),
        "expected text",
    ),
    "a slide id with a NUL's kin": (lambda f: f.attrs.__setitem__("slide_id", "a\nb"), "expected a plain file name"),
    "a slide id of Windows": (lambda f: f.attrs.__setitem__("slide_id", "..\\..\\a"), "expected a plain file name"),
}


@pytest.mark.parametrize("name", HARMFUL)
def test_harmful_bags_are_refused(saved: Callable[..., Path], name: str) -> None:
    harm, message = HARMFUL[name]
    path = saved()
    with h5py.File(path, "r+", track_order=True) as file:
        harm(file)
    with pytest.raises(BagInvalidError, match=message) as caught:
        validate(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_large_attributes_are_texts(saved: Callable[..., Path]) -> None:
    path = saved()
    with h5py.File(path, "r+", libver="latest") as file:
        file.attrs["note"] = "x" * 5_000_000
    assert len(Bag.open(path).metadata.note) == 5_000_000


@pytest.mark.parametrize("encoder", ["../../outside", "/outside", "a/../../../outside", "..", "a\\b"])
def test_an_encoder_that_is_a_path_leads_nowhere(saved: Callable[..., Path], tmp_path: Path, encoder: str) -> None:
    path = saved()
    with h5py.File(path, "r+") as file:
        file.attrs["encoder"] = encoder
    out = tmp_path / "below" / "out"
    for layout in ("trident", "clam", "stamp", "torchmil", "zoomfeat"):
        for row in convert(path, out / layout, layout):
            assert all(out in file.resolve().parents for file in row.written)
    assert {entry.name for entry in tmp_path.iterdir()} == {"bags", "below"}
    assert [entry.name for entry in (tmp_path / "below").iterdir()] == ["out"]

"""The bag as a table for people."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from rich.console import Console

from zoomfeat.bags import inspect_table
from zoomfeat.errors import BagInvalidError


def _printed(path) -> str:
    console = Console(width=140, force_terminal=False)
    with console.capture() as capture:
        console.print(inspect_table(path))
    return capture.get()


def test_magnifications_and_provenance_are_shown(saved, make_bag):
    text = _printed(saved(make_bag(encoder="hf-hub:[bold]/uni")))
    assert "506 x 506" in text
    assert "2024 x 2024" in text
    for fact in (
        "TCGA-A2-A0CM-01Z-00-DX1",
        "hf-hub:[bold]/uni",
        "sha256:0123abcd",
        '["mid", "up_blocks.0"]',
        "0.2528 x 0.2528 um/px (source: openslide)",
        "too little tissue 33",
        "torch 2.6.0",
        "kB",
    ):
        assert fact in text
    assert "Note" not in text


def test_the_note_comes_first(saved, make_bag):
    text = _printed(saved(make_bag(note="random weights, for demonstration only")))
    assert text.startswith("Note: random weights, for demonstration only")


def test_statistics_leave_out_nan_rows_and_count_them(saved, make_bag):
    bag = make_bag(("20x",))
    bag.features[:] = 3
    path = saved(bag)
    with h5py.File(path, "r+") as file:
        file["features"][:2, 0] = np.nan
    row = next(line for line in _printed(path).splitlines() if "512" in line or "506" in line)
    cells = [cell.strip() for cell in row.strip("│┃|").split("│")]
    assert cells == ["20x", str(len(bag)), "32", "0.5", "506 x 506", "3", "0", "2"]


def test_unknown_facts_read_as_unknown(saved, make_bag):
    text = _printed(saved(make_bag(mpp_level0=None, level0_width=None, level0_height=None, versions={})))
    assert "unknown (source: unknown)" in text


def test_other_files_are_refused(tmp_path):
    with pytest.raises(BagInvalidError):
        inspect_table(tmp_path / "missing.h5")

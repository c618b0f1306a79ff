"""What the tests of the leaderboard share: results of two submitters, their site, and the browser of mil's tests."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.leaderboard import Board
from benchmarks.site import Site, make_site
from tests.benchmarks.records import HOSTILE, SMALL, make_record, restored, save, superres_task
from tests.mil.conftest import browser, open_page

__all__ = ["browser", "open_page"]


@pytest.fixture(scope="session")
def results(tmp_path_factory) -> Path:
    """Records of two submitters: nine that differ, one of them twice, one tampered with, one cut off; other JSON."""
    root = tmp_path_factory.mktemp("results")
    here, there = root / "here", root / "there" / "deep"
    for magnification, signal in (("20x", 3.0), ("5x", 0.5), ("20x+5x", 4.0)):
        for head in ("mean", "abmil"):
            save(make_record(magnification, head, signal=signal, encoder="first-encoder"), here)
    shared = make_record("20x+5x", "mean", signal=2.0, encoder="second-encoder", licence="CC BY-NC-ND 4.0")
    save(shared, here)
    save(shared, there)
    save(
        make_record("20x", "mean", signal=0.0, encoder=HOSTILE, licence=None, submitter="@lab", configuration={}), there
    )
    save(make_record("20x", "mean", signal=2.0, encoder="first-encoder", submitter="another lab"), there)
    tampered = save(make_record("20x", "mean", encoder="liar"), there)
    content = json.loads(tampered.read_text())
    content["predictions"][0]["probabilities"] = [0.5, 0.5]
    (there / "tampered.json").write_text(json.dumps(content))
    tampered.unlink()
    (there / "cut-off.json").write_text(json.dumps(content)[:5000])
    (here / "metrics.json").write_text('{"patients": 12}')
    return root


@pytest.fixture(scope="session")
def restoring(tmp_path_factory) -> Path:
    return superres_task(tmp_path_factory.mktemp("tasks") / "restoring.yaml")


@pytest.fixture(scope="session")
def site(results, restoring, tmp_path_factory) -> Site:
    """Both tasks."""
    both = tmp_path_factory.mktemp("both")
    shutil.copytree(results, both, dirs_exist_ok=True)
    for window in (1, 2, 3):
        save(restored(restoring, window), both / "restored")
    save(restored(restoring, 2, "5x"), both / "restored")
    return make_site(
        both, tmp_path_factory.mktemp("site"), Console(quiet=True), [SMALL, str(restoring)], with_records=True
    )


@pytest.fixture(scope="session")
def board(site) -> Board:
    return next(board for board in site.boards if board.task.name == "bags")

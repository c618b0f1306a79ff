"""What docs/metrics.md shows runs, and so does the command line."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.metrics import __main__ as command
from benchmarks.metrics import pair_metric_names, registry, set_metric_names
from tests.benchmarks.metrics.images import drawn, write

PAGE = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def folders(tmp_path, monkeypatch) -> Path:
    images = drawn(9, 0)
    write(tmp_path / "patches", drawn(9, 1))
    write(tmp_path / "samples", images)
    write(tmp_path / "truth", images)
    write(tmp_path / "restored", images // 2 + 60)
    write(tmp_path / "large", drawn(1, 2).repeat(2, axis=1))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("ignore::benchmarks.metrics.frechet.FewImagesWarning")
def test_what_the_guide_shows_runs(folders, capsys, monkeypatch) -> None:
    for name in ("_SETS", "_PAIRS"):  # so that what it adds is gone after the test
        registry.set_metric_names()
        monkeypatch.setattr(registry, name, dict(getattr(registry, name)))
    shown: dict[str, object] = {}
    for block in BLOCKS:
        exec(block, shown)
    assert len(BLOCKS) == 4
    assert len(shown["real"]) == 9
    assert len(shown["features"]) == 4
    assert shown["kid"].name == "kernel distance (efficientnet-lite0)"
    out = capsys.readouterr().out
    assert "mean distance (color-stats)" in out
    assert "mean error" in out


def test_adding_a_metric_takes_fewer_than_thirty_lines() -> None:
    assert len(BLOCKS[-1].splitlines()) < 30


def test_the_guide_names_every_metric() -> None:
    rows = [line.split("|")[1] for line in PAGE.splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`([\w-]+)`", " ".join(rows))) == {*set_metric_names(), *pair_metric_names()}


def run(monkeypatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["benchmarks.metrics", *words])
    monkeypatch.setenv("COLUMNS", "250")
    return command.main()


def test_command_line(folders, capsys, monkeypatch) -> None:
    words = ["--metrics", "fid", "density-coverage", "ssim", "embedding-similarity", "--extractor", "color-stats"]
    assert run(monkeypatch, "restored", "truth", *words, "--encoder", "color-stats") == 0
    out = capsys.readouterr().out
    for name in ("Frechet distance (color-stats)", "density (color-stats)", "coverage (color-stats)", "SSIM"):
        assert name in out
    assert "of 9 images only: biased upwards" in out
    assert "cosine similarity (color-stats)" in out


def test_command_line_on_crops(folders, capsys, monkeypatch) -> None:
    words = ["--metrics", "kid", "--extractor", "color-stats", "--crops", "3"]
    assert run(monkeypatch, "large", "large", *words) == 0
    assert "crop kernel distance (color-stats)" in capsys.readouterr().out


def test_command_line_says_what_is_wrong(folders, capsys, monkeypatch) -> None:
    assert run(monkeypatch, "samples", "gone") == 1
    assert "gone: no such folder" in capsys.readouterr().err.replace("\n", "")
    assert run(monkeypatch, "samples", "patches", "--metrics", "fidd") == 1
    assert "Did you mean 'fid'" in capsys.readouterr().err.replace("\n", " ")


def test_registry_refuses_a_second_of_a_name() -> None:
    set_metric_names()

    def fid() -> None: ...

    with pytest.raises(ValueError, match="two metrics are called fid"):
        registry.set_metric(fid)
    assert np.isin(["fid", "kid"], set_metric_names()).all()

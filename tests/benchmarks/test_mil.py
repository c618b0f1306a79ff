"""The MIL benchmarks run, on bags that the test makes and on the real regions, and count what they should."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks.mil import classic, regions, table
from benchmarks.speed import mil as speed
from tests.mil.bags import flat_bags
from zoomfeat.errors import ConfigurationError


@pytest.fixture
def sets(tmp_path):
    bags, labels = flat_bags(20, dim=4, sizes=(2, 6))
    numbers = np.repeat(np.arange(20), [len(bag) for bag in bags])
    np.savez(tmp_path / "made.npz", X=np.concatenate(bags), bag=numbers, y=labels)
    return tmp_path


def test_classic_sets_are_read_trained_and_kept(sets, monkeypatch, capsys):
    monkeypatch.setattr(classic, "RESULTS", sets / "results")
    monkeypatch.setattr("sys.argv", ["classic", str(sets), "--sets", "made", "--heads", "mean", "--quick"])
    classic.main()
    assert "made" in capsys.readouterr().out
    record = json.loads((sets / "results" / "classic-quick.json").read_text())
    assert record["protocol"] == {"folds": 2, "runs": 1, "parameters": {"epochs": 2}}
    (cell,) = record["cells"]
    assert sorted(cell["folds"]) == [0] * 10 + [1] * 10
    monkeypatch.setattr(table, "_run_cell", lambda *args: pytest.fail("a cell that is done was run again"))
    classic.main()


def test_bags_come_back_as_they_were_stored(sets):
    bags, labels = flat_bags(20, dim=4, sizes=(2, 6))
    found = classic.read_set(sets / "made.npz")
    assert all(np.array_equal(mine, stored) for mine, stored in zip(bags, found.bags, strict=True))
    assert found.labels.tolist() == labels.tolist()
    np.savez(sets / "half.npz", X=np.ones((2, 2)))
    for name, match in (("half", "no array bag, y"), ("absent", "no such file")):
        with pytest.raises(ConfigurationError, match=match):
            classic.read_set(sets / f"{name}.npz")


def test_accuracy_and_its_standard_error():
    right = table.Cell("s", "h", 0, [0, 0, 1, 1], [0, 1, 0, 1], [0.1, 0.9, 0.2, 0.8])
    half = table.Cell("s", "h", 1, [0, 0, 1, 1], [0, 1, 0, 1], [0.1, 0.2, 0.9, 0.8])
    accuracy, error = table.fold_accuracy([right, half])
    assert accuracy == 0.75
    assert error == pytest.approx(np.std([1, 1, 0.5, 0.5], ddof=1) / 2)
    assert table.mean_auroc([right, half]).value == pytest.approx((1 + 0.5) / 2)


@pytest.mark.shared_data
def test_real_sets(shared):
    sizes = {"musk1": (92, 476, 166), "fox": (200, 1320, 230), "elephant": (200, 1391, 230)}
    for name, (count, rows, dim) in sizes.items():
        found = classic.read_set(shared / "mil" / f"{name}.npz")
        assert (len(found.bags), sum(map(len, found.bags)), found.bags[0].shape[1]) == (count, rows, dim)


@pytest.mark.shared_data
@pytest.mark.slow
def test_regions_become_bags(shared, monkeypatch, tmp_path):
    monkeypatch.setattr(regions, "RESULTS", tmp_path)
    archive = shared / "histology_patches" / "tcga_luad_lusc_190.zip"
    monkeypatch.setattr("sys.argv", ["regions", str(archive), "--heads", "mean", "--quick"])
    regions.main()
    folds, split = json.loads((tmp_path / "regions-quick.json").read_text())["cells"]
    assert sorted(folds["labels"]) == [0] * 10 + [1] * 9
    assert sorted(split["folds"]) == [0] * 6 + [1] * 13, "the set's own split, either way"


def test_speed_runs(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(speed, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["mil", "--tiny"])
    speed.main()
    assert "bags/s" in capsys.readouterr().out
    record = json.loads((tmp_path / "mil.json").read_text())
    assert record["size"] == "tiny"
    assert {run["way"] for run in record["runs"]} == set(speed.WAYS)
    assert all(run["bags_per_second"] > 0 for run in record["runs"])
    assert record["ratios"]["mil_vs_torchmil"] > 0

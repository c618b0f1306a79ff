"""``zoomfeat demo``."""

from __future__ import annotations

from benchmarks.phantom import Truth, lesion_mask
from zoomfeat.bags import Bag
from zoomfeat.cli import main


def test_the_demo_runs_the_main_job(tmp_path, capsys):
    out = tmp_path / "demo"
    assert main(["demo", f"out={out}", "encoder=color-stats"]) == 0
    text = capsys.readouterr().out
    assert "SYNTHETIC" in text
    assert "fused: " in text
    assert len(list((out / "color-stats" / "previews").glob("*.png"))) == 3
    for slide in ("phantom-20x", "phantom-40x", "phantom-0.4601"):
        bag = Bag.open(out / "color-stats" / f"{slide}.h5")
        assert bag.metadata.encoder == "color-stats"
        assert 30 < len(bag.features) < 60
        truth = Truth.load(out / "truth" / f"{slide}.json")
        shares = lesion_mask(truth, bag.coords, round(128 / truth.mpp))
        assert (shares > 0.5).sum() == 0 if truth.label == 0 else (shares > 0.5).sum() > 8

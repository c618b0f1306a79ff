"""The benchmark runs, and what it counts at full size is what the publication's architecture costs."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.speed import network
from zoomfeat.encoders.zoomldm import untrained_tiny
from zoomfeat.models import onednn
from zoomfeat.models.architecture import build_first_stage, build_unet
from zoomfeat.models.summarizer import Summarizer


def test_quick_run_leaves_a_record(monkeypatch, tmp_path):
    monkeypatch.setattr(network, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["network", "--tiny", "--repeats", "1"])
    network.main()
    record = json.loads((tmp_path / "network.json").read_text())
    assert record["size"] == "tiny"
    assert all(cost["gflop"] > 0 and cost["seconds"] > 0 for cost in record["costs"])
    assert record["ratios"].keys() >= {"denoiser_default_tap_vs_whole", "patch_share_of_convolution_peak"}
    assert "share of the convolution peak" in (tmp_path / "network.md").read_text()


def test_stopping_early_costs_fewer_operations():
    costs = {cost.part: cost.gflop for cost in network.measure(untrained_tiny(), repeats=1)}
    _, whole, default, lean, mid, *_ = costs.values()
    assert mid < lean < default < whole
    if onednn.available():
        assert costs[network.FAST_LEAN] == pytest.approx(lean), "operations are counted alike"
        assert costs[network.FAST_FIRST_STAGE] == pytest.approx(costs[network.FIRST_STAGE])
        assert network.convolutions(untrained_tiny(), repeats=1).gflop < costs[network.FIRST_STAGE] + lean
    assert costs[network.DISTILLED] < costs[network.FIRST_STAGE] / 9


@pytest.mark.parametrize(
    ("build", "millions"),
    [(build_unet, 401), (build_first_stage, 55), (Summarizer, 39)],
    ids=["unet", "vae", "summarizer"],
)
def test_full_size_parameter_counts(build, millions):
    with torch.device("meta"):
        module = build()
    assert round(sum(p.numel() for p in module.parameters()) / 1e6) == millions

"""The comparison of distilled networks with their teacher: its numbers, its table, and whom it refuses to compare."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.speed.distillation import Fidelity, Probe, Way, compare, load_ways, markdown, operations
from generation.distill import teacher_record
from generation.initial_distilled import initial_network
from zoomfeat.conf.schema import DistillConfig
from zoomfeat.encoders import load_encoder
from zoomfeat.errors import CheckpointMismatchError


def test_fidelity_of_equals_of_shifted_and_of_opposite_features():
    expected = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32) + 3
    same = compare(expected, expected, "20x")
    assert (same.patches, same.cosine, same.lowest) == (6, pytest.approx(1), pytest.approx(1))
    assert same.centred == pytest.approx(1)
    units = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    assert same.between == pytest.approx((units @ units.T)[~np.eye(6, dtype=bool)].mean(), abs=1e-5)
    mirrored = compare(2 * expected.mean(0) - expected, expected, "20x")
    assert mirrored.cosine > 0.5  # the mean alone
    assert mirrored.centred == pytest.approx(-1)
    one_off = expected.copy()
    one_off[2] *= -1
    assert compare(one_off, expected, "20x").lowest == pytest.approx(-1)


def test_the_table_gives_ratios_to_the_teacher():
    probe = Probe("lung", 0.8, 0.7, 0.9)
    teacher = Way("teacher", 4.0, 6.0, 0.09, [], [probe])
    small = Way("distilled encoder", 0.4, 2.4, 0.03, [Fidelity("20x", 8, 0.99, 0.98, 0.9, 0.85)], [probe])
    student = Way("student", 0.0, 0.2, 0.01, [], [probe])
    text = markdown([teacher, small, student])
    assert "| teacher | 4.000 | 6.00 | 0.090 s | 0.800 (0.700 to 0.900) |" in text
    assert "| distilled encoder | 0.400 (1/10.0) | 2.40 (1/2.5) | 0.030 s (1/3.0) | 0.800 (0.700 to 0.900) |" in text
    assert "| student | - | 0.20 (1/30.0) | 0.010 s (1/9.0) |" in text
    assert "| distilled encoder | 20x | 8 | 0.9900 | 0.9800 | 0.9000 | 0.8500 |" in text
    assert probe.standard_error == pytest.approx(0.2 / 3.92)


def test_networks_of_the_teacher_are_compared_and_those_of_others_refused(tmp_path):
    shipped = load_encoder("zoomldm-tiny", device="cpu")
    record = teacher_record(shipped, ["20x"])
    for mode in ("encoder", "student"):
        config = DistillConfig(data="", out="", encoder="zoomldm-tiny", mode=mode, size="tiny")
        network = initial_network(config, shipped)
        network.write_record(record)
        network.save_pretrained(tmp_path / mode)
    ways = load_ways("zoomldm-tiny", None, str(tmp_path / "encoder"), str(tmp_path / "student"))
    (first, whole), (small, less), (none, least) = (operations(way) for way in ways.values())
    assert first / small > 10  # what size=tiny is made for
    assert whole - first == pytest.approx(less - small)
    assert none == 0
    assert whole / least > 30
    network.write_record(replace(record, weights_hash="f" * 64))
    network.save_pretrained(tmp_path / "other")
    with pytest.raises(CheckpointMismatchError, match="taught by zoomldm-tiny ffffffffffff"):
        load_ways("zoomldm-tiny", None, None, str(tmp_path / "other"))

"""Which tests a task plans, and what each is corrected for."""

from __future__ import annotations

import dataclasses
from collections import defaultdict

from benchmarks.results import markdown, planned_tests
from benchmarks.tasks import load_task
from mil.compare import holm
from tests.benchmarks.records import SMALL, make_record


def test_primary_comparisons_are_a_family_of_their_own():
    task = load_task(SMALL)
    records = [
        make_record(magnification, "mean", signal=signal, encoder=encoder)
        for encoder, signals in (("good", (2.0, 3.0, 4.0)), ("useless", (0.0, 0.0, 0.0)))
        for magnification, signal in zip(("20x", "5x", "20x+5x"), signals, strict=True)
    ]
    named = dataclasses.replace(task, primary=(("20x+5x", "20x"), ("5x", "20x+5x")))
    families = defaultdict(list)
    for each in planned_tests(named, records):
        families[each.family].append(each)
    primary, others, encoders = families.values()
    assert [(t.first.magnification, t.second.magnification) for t in primary] == 2 * [
        ("20x", "20x+5x"),
        ("5x", "20x+5x"),
    ]
    assert [(t.first.label, t.second.label) for t in others] == [
        ("good 20x mean", "good 5x mean"), ("useless 20x mean", "useless 5x mean"),
    ]  # fmt: skip
    assert {t.first.magnification == t.second.magnification for t in encoders} == {True}
    for family in families.values():
        assert [t.p_holm for t in family] == holm([t.tested.difference.p for t in family])
    assert primary[0].p_holm < 0.05 < primary[2].p_holm

    without = planned_tests(task, records)
    assert len({each.family for each in without}) == 2
    assert len(without) == sum(map(len, families.values()))
    text = markdown(named, records, planned_tests(named, records), "zoomfeat benchmark")
    assert "Primary comparisons, which the task names beforehand." in text
    assert "Primary comparisons" not in markdown(task, records, without, "zoomfeat benchmark")

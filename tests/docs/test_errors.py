"""Every class of error is met by what a user does, says what was found, and what helps."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

import zoomfeat.errors
from benchmarks.record import RecordInvalidError
from tests.docs.errors import PROVOCATIONS, ROOT, page, provoke
from zoomfeat.errors import ZoomfeatError

PAGE = ROOT / "docs" / "errors.md"
ALL = [provocation for group in PROVOCATIONS.values() for provocation in group]
KINDS = {RecordInvalidError, *(kind for kind in vars(zoomfeat.errors).values() if isinstance(kind, type))} - {Path}

# Who calls these completes their errors, which know neither the file nor what helps: `zoomfeat.bags.hdf5.read` those of
# a bag's parts, extraction and verification those of a process that took too long.
_COMPLETED = ("zoomfeat/bags/metadata.py", "zoomfeat/bags/hdf5.py", "zoomfeat/apart.py")

met = functools.cache(provoke)


@pytest.mark.parametrize("number", range(len(ALL)), ids=[f"{number}-{each.error}" for number, each in enumerate(ALL)])
def test_errors_name_what_was_found_and_what_helps(number):
    provocation = ALL[number]
    found = met(provocation)
    assert found.error == provocation.error
    assert len(found.problem) > 5
    assert len(found.cure) > 5
    assert not found.problem.endswith(".")
    assert not found.cure.endswith(".")


def test_every_class_is_met():
    assert {kind.__name__ for kind in KINDS} == {provocation.error for provocation in ALL}


def test_the_page_shows_them_as_they_are(tmp_path):
    written = tmp_path / "errors.md"
    written.write_text(page(met), encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == written.read_text(encoding="utf-8"), f"copy {written} to docs/errors.md"


def test_every_error_in_the_sources_has_a_cure():
    names = {kind.__name__ for kind in KINDS}
    without = []
    for package in ("zoomfeat", "mil", "generation", "benchmarks"):
        for path in sorted((ROOT / package).rglob("*.py")):
            place = path.relative_to(ROOT).as_posix()
            if place in _COMPLETED:
                continue
            without += [f"{place}:{line}" for line in _without_cure(path, names)]
    assert not without, "raised without cure=: " + ", ".join(without)


def _without_cure(path: Path, names: set[str]) -> list[int]:
    calls = (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call))
    raised = (call for call in calls if isinstance(call.func, ast.Name) and call.func.id in names)
    return [call.lineno for call in raised if not any(word.arg in ("cure", None) for word in call.keywords)]


def test_the_tree_is_small():
    assert all(issubclass(kind, ZoomfeatError) for kind in KINDS)
    assert len(KINDS) < 10

"""Counts and lists of names in messages."""

from __future__ import annotations

import numpy as np
import pytest

from zoomfeat.words import counted, shown


@pytest.mark.parametrize(("number", "words"), [(0, "0 slides"), (1, "1 slide"), (2, "2 slides")])
def test_counts_agree_with_their_noun(number, words):
    assert counted(number, "slide") == words


def test_the_first_names_are_shown_and_how_many_more_there_are():
    assert shown(["a", "b"]) == "a, b"
    assert shown(np.array(["a", "b", "c"]), 2) == "a, b and 1 more"

"""Which of several results on the same patients or images differ: every pair tested, p corrected for their number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mil.compare import Difference, delong, holm, paired_bootstrap
from mil.held_out import HeldOutPredictions
from mil.metrics import Metric

Contestant = TypeVar("Contestant")

ALPHA = 0.05
"""A pair differs where its corrected p is below this."""

_FEWEST = 10
"""DeLong's test is asymptotic: with fewer patients of a class the bootstrap takes its place."""


@dataclass(frozen=True)
class Tested:
    """What a paired test found.

    Attributes:
        test: ``DeLong`` or ``paired bootstrap``; what is in the way where there is no test.
        count: patients, or images, that both have.
        difference: second less first; None where there is no test.
    """

    test: str
    count: int
    difference: Difference | None


@dataclass(frozen=True)
class Pair:
    """Two of several.

    Attributes:
        first: place of the first in the sequence that was compared.
        second: place of the second.
        tested: what the test found.
        p_holm: p corrected for the number of pairs (Holm); NaN where there is no test or it gives no p.
    """

    first: int
    second: int
    tested: Tested
    p_holm: float

    @property
    def differs(self) -> bool:
        """Whether the corrected p is below `ALPHA`."""
        return bool(self.p_holm < ALPHA)


def all_pairs(
    contestants: Sequence[Contestant],
    test: Callable[[Contestant, Contestant], Tested],
    on_tested: Callable[[], None] = lambda: None,
) -> list[Pair]:
    """Tests every pair, and corrects p for the number of pairs that have one (Holm 1979).

    Args:
        contestants: what is compared.
        test: of two of them, for example `prediction_test` or `image_test`.
        on_tested: called after each test, for a progress bar.

    Returns:
        The pairs in the order of `itertools.combinations`.
    """
    places = list(combinations(range(len(contestants)), 2))
    tested = []
    for first, second in places:
        tested.append(test(contestants[first], contestants[second]))
        on_tested()
    corrected = holm([np.nan if each.difference is None else each.difference.p for each in tested])
    return [Pair(first, second, each, p) for (first, second), each, p in zip(places, tested, corrected, strict=True)]


def prediction_test(metric: str) -> Callable[[HeldOutPredictions, HeldOutPredictions], Tested]:
    """The test of two predictions of patients, a row a patient each (`HeldOutPredictions.by_patient`).

    The AUROC of two classes is tested as DeLong et al. (1988) do, where the smaller class has ten patients or more and
    no area is 1; anything else by a paired bootstrap over patients.
    """

    def test(first: HeldOutPredictions, second: HeldOutPredictions) -> Tested:
        if first.task != second.task or first.classes != second.classes:
            return Tested("other classes", 0, None)
        a, b = first.table.set_index("patient_id"), second.table.set_index("patient_id")
        common = a.index.intersection(b.index).sort_values()
        if len(common) < 2:
            return Tested("no common patients", len(common), None)
        a, b = a.loc[common], b.loc[common]
        if (a.y_true.to_numpy() != b.y_true.to_numpy()).any():
            return Tested("other labels of the same patients", len(common), None)
        one, other = HeldOutPredictions(a.reset_index()), HeldOutPredictions(b.reset_index())
        if metric == "auroc" and len(one.classes) == 2 and (one.smallest_class() or 0) >= _FEWEST:
            found = delong(one.class_indices(), *(each.table[each.scores[1]].to_numpy() for each in (one, other)))
            if max(found.first, found.second) < 1:
                return Tested("DeLong", len(common), found)
        found = paired_bootstrap(one.metrics()[metric], other.metrics()[metric], len(common))
        return Tested("paired bootstrap", len(common), found)

    return test


def image_test(first: pd.Series, second: pd.Series) -> Tested:
    """A paired bootstrap of the mean over the images that both have measured; the index of a series names them."""
    common = first.index.intersection(second.index).sort_values()
    if len(common) < 2:
        return Tested("no common images", len(common), None)
    one, other = (_mean(each.loc[common].to_numpy(dtype=np.float64)) for each in (first, second))
    return Tested("paired bootstrap", len(common), paired_bootstrap(one, other, len(common)))


def groups(count: int, pairs: Sequence[Pair]) -> list[list[int]]:
    """The largest sets of which no pair differs, as the bars of a critical-difference diagram join them.

    Members must be joined by a test: a pair without one belongs together in no set.

    Args:
        count: of what was compared.
        pairs: from `all_pairs`.

    Returns:
        Sets of two or more places, each in order; every two that do not differ are in one of them.
    """
    alike: list[set[int]] = [set() for _ in range(count)]
    for pair in pairs:
        if pair.tested.difference is not None and not pair.differs:
            alike[pair.first].add(pair.second)
            alike[pair.second].add(pair.first)
    found: list[list[int]] = []

    def extend(members: list[int], candidates: set[int], excluded: set[int]) -> None:
        """Bron and Kerbosch (1973): the maximal cliques of a graph, each once, with Tomita's choice of a pivot."""
        if not candidates and not excluded:
            if len(members) > 1:
                found.append(sorted(members))
            return
        pivot = max(candidates | excluded, key=lambda each: len(candidates & alike[each]))
        for each in sorted(candidates - alike[pivot]):
            extend([*members, each], candidates & alike[each], excluded & alike[each])
            candidates = candidates - {each}
            excluded = excluded | {each}

    extend([], set(range(count)), set())
    return sorted(found)


def _mean(values: NDArray[np.float64]) -> Metric:
    return lambda weights: (weights @ values) / weights.sum(axis=1)

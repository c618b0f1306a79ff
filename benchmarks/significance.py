"""Which of several predictions of the same patients differ: every pair tested, p corrected for the number of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from mil.compare import Difference, delong, holm, paired_bootstrap
from mil.held_out import HeldOutPredictions

ALPHA = 0.05
"""A pair differs where its corrected p is below this."""

_FEWEST = 10
"""DeLong's test is asymptotic: with fewer patients of a class the bootstrap takes its place."""


@dataclass(frozen=True)
class Pair:
    """One metric of two sets of predictions on the patients that both have predicted.

    Attributes:
        first: place of the first in the sequence that was compared.
        second: place of the second.
        test: ``DeLong`` or ``paired bootstrap``; what is wrong where there is no test.
        patients: how many both have predicted.
        difference: second less first; None where there is no test.
        p_holm: p corrected for the number of pairs (Holm); NaN where there is no test or it gives no p.
    """

    first: int
    second: int
    test: str
    patients: int
    difference: Difference | None
    p_holm: float = np.nan

    @property
    def differs(self) -> bool:
        """Whether the corrected p is below `ALPHA`."""
        return bool(self.p_holm < ALPHA)


def all_pairs(predictions: Sequence[HeldOutPredictions], metric: str) -> list[Pair]:
    """Tests every pair.

    The AUROC of two classes is tested as DeLong et al. (1988) do, where the smaller class has ten patients or more and
    no area is 1; anything else by a paired bootstrap over patients.

    Args:
        predictions: a row a patient each (`HeldOutPredictions.by_patient`).
        metric: name of the metric to compare.

    Returns:
        The pairs in the order of `itertools.combinations`.
    """
    pairs = [
        _pair(first, second, predictions[first], predictions[second], metric)
        for first, second in combinations(range(len(predictions)), 2)
    ]
    corrected = holm([np.nan if pair.difference is None else pair.difference.p for pair in pairs])
    return [replace(pair, p_holm=p) for pair, p in zip(pairs, corrected, strict=True)]


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
        if pair.difference is not None and not pair.differs:
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


def _pair(first: int, second: int, one: HeldOutPredictions, other: HeldOutPredictions, metric: str) -> Pair:
    if one.task != other.task or one.classes != other.classes:
        return Pair(first, second, "other classes", 0, None)
    a, b = one.table.set_index("patient_id"), other.table.set_index("patient_id")
    common = a.index.intersection(b.index).sort_values()
    if len(common) < 2:
        return Pair(first, second, "no common patients", len(common), None)
    a, b = a.loc[common], b.loc[common]
    truth = [name for name in ("y_true", "event") if name in a]
    if (a[truth].to_numpy() != b[truth].to_numpy()).any():
        return Pair(first, second, "other labels of the same patients", len(common), None)
    one, other = HeldOutPredictions(a.reset_index()), HeldOutPredictions(b.reset_index())
    if metric == "auroc" and len(one.classes) == 2 and (one.smallest_class() or 0) >= _FEWEST:
        y, score = one.class_indices(), one.scores[1]
        found = delong(y, one.table[score].to_numpy(), other.table[score].to_numpy())
        if max(found.first, found.second) < 1:
            return Pair(first, second, "DeLong", len(common), found)
    found = paired_bootstrap(one.metrics()[metric], other.metrics()[metric], len(common))
    return Pair(first, second, "paired bootstrap", len(common), found)

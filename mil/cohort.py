"""Labels joined to bags, with a report of what did not match."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from mil.labels import BAG_SUFFIXES, Labels, check_classes, slide_name
from zoomfeat.errors import ConfigurationError
from zoomfeat.words import counted, shown


@dataclass(frozen=True, eq=False, kw_only=True)
class Cohort(Labels):
    """Labels whose slides have bags.

    Attributes:
        paths: (n,) the bags.
    """

    paths: tuple[Path, ...]

    def take(self, rows: NDArray[np.intp]) -> Self:
        """The cohort of some slides."""
        return replace(super().take(rows), paths=tuple(self.paths[row] for row in rows))


@dataclass(frozen=True)
class JoinReport:
    """What did not match between a table and a folder of bags.

    Attributes:
        matched: slides with both.
        by_short_name: how many of them because one side has only the name up to its first dot.
        without_bag: labelled slides without a bag.
        without_label: bags without a label.
        unlabelled: rows of the table whose label is empty or of a class that was not asked for.
    """

    matched: int
    by_short_name: int
    without_bag: tuple[str, ...]
    without_label: tuple[str, ...]
    unlabelled: int

    def lines(self) -> list[str]:
        """The report as lines of text."""
        text = [f"{counted(self.matched, 'slide')} with a label and a bag"]
        if self.by_short_name:
            text[0] += f" ({self.by_short_name} matched by the name before the first dot)"
        if self.without_bag:
            text.append(f"{counted(len(self.without_bag), 'labelled slide')} without a bag: {shown(self.without_bag)}")
        if self.without_label:
            text.append(f"{counted(len(self.without_label), 'bag')} without a label: {shown(self.without_label)}")
        if self.unlabelled:
            text.append(f"{counted(self.unlabelled, 'row')} of the table without a label, or of other classes")
        return text


def find_bags(folder: str | Path) -> dict[str, Path]:
    """The bags of a folder by slide name: zoomfeat's and TRIDENT's or CLAM's (``.h5``, ``.pt``).

    Raises:
        ConfigurationError: no such folder, or no bag in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ConfigurationError("no such folder", cure="Give the folder that holds the bags", path=folder)
    found: dict[str, Path] = {}
    for suffix in BAG_SUFFIXES:
        for path in sorted(folder.glob(f"*{suffix}")):
            if not path.name.startswith("."):
                found.setdefault(slide_name(path.name[: -len(suffix)]), path)
    if not found:
        below = sorted({path.parent.name for path in folder.glob("*/*") if path.suffix in BAG_SUFFIXES})
        hint = f"There are some in {', '.join(below)} below it" if below else "Make them with `zoomfeat extract`"
        raise ConfigurationError(f"no bags ({' '.join(BAG_SUFFIXES)}) in this folder", cure=hint, path=folder)
    return dict(sorted(found.items()))


def join(labels: Labels, bags: str | Path) -> tuple[Cohort, JoinReport]:
    """Joins labels to the bags of a folder.

    A slide and a bag match by name without suffix. Where either side has only the name up to the first dot
    (``TCGA-A7-A6VV-01Z-00-DX1`` for ``TCGA-A7-A6VV-01Z-00-DX1.07AE0E16-...``), that is enough if it is unambiguous.

    Args:
        labels: the table.
        bags: the folder.

    Returns:
        The slides that have both, in the order of the table, and what did not match.

    Raises:
        ConfigurationError: nothing matches, or what matches is of one class only.
    """
    found = find_bags(bags)
    bag_of = {name: name for name in labels.slide_ids.tolist() if name in found}
    short = _short_matches([n for n in labels.slide_ids.tolist() if n not in bag_of], found.keys() - bag_of.values())
    bag_of |= short
    rows = np.array([row for row, name in enumerate(labels.slide_ids.tolist()) if name in bag_of], dtype=np.intp)
    if not len(rows):
        raise ConfigurationError(
            f"none of its {len(labels)} slides has a bag in {bags}: the table has {shown(labels.slide_ids, 2)}, "
            f"the folder {shown(list(found), 2)}",
            cure="Check slide_column= and that both come from the same cohort",
            path=labels.path,
        )
    kept = labels.take(rows)
    paths = tuple(found[bag_of[name]] for name in kept.slide_ids.tolist())
    cohort = Cohort(**{entry.name: getattr(kept, entry.name) for entry in fields(Labels)}, paths=paths)
    check_classes(cohort, " among the slides that have bags")
    report = JoinReport(
        matched=len(rows),
        by_short_name=len(short),
        without_bag=tuple(name for name in labels.slide_ids.tolist() if name not in bag_of),
        without_label=tuple(sorted(found.keys() - bag_of.values())),
        unlabelled=labels.unlabelled,
    )
    return cohort, report


def _short_matches(slides: list[str], bags: set[str]) -> dict[str, str]:
    """Slides to bags where one of the two names is the other's up to the first dot, and nothing else claims either."""
    by_short: dict[str, tuple[list[str], list[str]]] = {}
    for side, names in enumerate((slides, sorted(bags))):
        for name in names:
            by_short.setdefault(name.split(".")[0], ([], []))[side].append(name)
    return {
        left[0]: right[0]
        for short, (left, right) in by_short.items()
        if len(left) == len(right) == 1 and short in (left[0], right[0])
    }

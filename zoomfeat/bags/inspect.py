"""A bag as tables that people read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from zoomfeat.bags.bag import Bag
from zoomfeat.bags.metadata import UNKNOWN
from zoomfeat.bags.scales import AnyScale


def inspect_table(path: str | Path) -> Group:
    """A bag as two tables: its magnifications with statistics of the features, and its provenance.

    Args:
        path: a bag.

    Returns:
        What ``rich`` prints. A note such as "random weights" stands above the tables.

    Raises:
        BagInvalidError: not a complete zoomfeat bag.
    """
    bag = Bag.open(path)
    note = [Text(f"Note: {bag.metadata.note}", style="bold yellow")] if bag.metadata.note else []
    return Group(*note, _magnifications(bag), _provenance(bag, Path(path)))


def _magnifications(bag: Bag) -> Table:
    table = Table(title=f"{bag.metadata.slide_id}: magnifications", title_justify="left")
    for heading in ("scale", "patches", "dim", "um/px", "level-0 px", "mean", "std", "NaN rows"):
        table.add_column(heading, justify="left" if heading == "scale" else "right")
    for scale in bag.scales:
        table.add_row(*_row(scale))
    return table


def _row(scale: AnyScale) -> tuple[str, ...]:
    features = scale.features
    broken = np.isnan(features).any(axis=1)
    valid = features[~broken] if broken.any() else features
    mean, std = (f"{valid.mean():.4g}", f"{valid.std():.4g}") if len(valid) else ("-", "-")
    width, height = scale.patch_size_level0
    return (
        scale.magnification,
        str(len(scale)),
        str(scale.dim),
        f"{scale.mpp:g}",
        f"{width} x {height}",
        mean,
        std,
        str(int(broken.sum())),
    )


def _provenance(bag: Bag, path: Path) -> Table:
    table = Table(title="provenance", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in _facts(bag, path):
        table.add_row(name, Text(value))  # as Text, since brackets in names are markup to rich
    return table


def _facts(bag: Bag, path: Path) -> Iterator[tuple[str, str]]:
    metadata = bag.metadata
    size, mpp = metadata.level0_size, metadata.mpp_level0
    yield "slide", metadata.slide_id
    yield "level 0", UNKNOWN if size is None else f"{size[0]} x {size[1]} px"
    um = UNKNOWN if mpp is None else f"{mpp[0]:g} x {mpp[1]:g} um/px"
    yield "um/px of level 0", f"{um} (source: {metadata.mpp_source})"
    yield "reader", metadata.reader
    yield "encoder", metadata.encoder
    yield "weights hash", metadata.weights_hash
    for name, value in metadata.encoder_settings.items():
        yield f"encoder {name}", value if isinstance(value, str) else json.dumps(value)
    yield "tissue", metadata.tissue_method
    yield "dropped", _listed(metadata.dropped) or "none"
    yield "configuration hash", metadata.config_hash
    yield "versions", _listed(metadata.versions) or UNKNOWN
    yield "file size", decimal(path.stat().st_size)


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())

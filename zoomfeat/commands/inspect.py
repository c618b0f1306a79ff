"""``zoomfeat inspect``: bags as tables."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from zoomfeat.bags import inspect_table
from zoomfeat.bags.files import trying_first
from zoomfeat.conf.schema import InspectConfig
from zoomfeat.errors import ConfigurationError


@trying_first()
def run(config: InspectConfig) -> int:
    """Prints one bag, or every bag of a folder."""
    path = Path(config.bag)
    bags = sorted(path.glob("*.h5")) if path.is_dir() else [path]
    if not bags:
        raise ConfigurationError("holds no .h5 file", path=path, cure="Give a bag, or the out= folder of an extraction")
    console = Console()
    for bag in bags:
        console.print(inspect_table(bag))
    return 0

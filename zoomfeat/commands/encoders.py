"""``zoomfeat encoders``: what the registry holds."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from zoomfeat.conf.schema import EncodersConfig
from zoomfeat.encoders import encoder_names, encoder_summary


def run(config: EncodersConfig) -> int:
    """Prints every encoder with what it says of itself."""
    table = Table(title="patch encoders", title_justify="left")
    table.add_column("encoder=", style="bold", no_wrap=True)
    table.add_column("what it is")
    for name in encoder_names():
        table.add_row(name, encoder_summary(name))
    Console().print(table)
    return 0

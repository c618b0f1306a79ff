"""``zoomfeat encoders``: what the registry holds."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from zoomfeat.conf.schema import EncodersConfig
from zoomfeat.encoders import EncoderInfo, encoder_info, encoder_names


def run(config: EncodersConfig) -> int:
    """Prints the facts of every encoder, then what each says of itself."""
    infos = [encoder_info(name) for name in encoder_names()]
    console = Console()
    console.print(facts_table(infos))
    table = Table(title="what they are", title_justify="left")
    table.add_column("encoder=", style="bold", no_wrap=True)
    table.add_column("")
    for info in infos:
        table.add_row(info.name, info.summary)
    console.print(table)
    return 0


def facts_table(infos: list[EncoderInfo]) -> Table:
    """A row an encoder; a dash where a fact does not apply or is not stated."""
    table = Table(title="patch encoders", title_justify="left")
    table.add_column("encoder=", style="bold", no_wrap=True)
    for heading in ("dim", "input", "feature", "parameters", "licence", "gated", "where from"):
        numeric = heading in ("dim", "input", "parameters")
        table.add_column(heading, justify="right" if numeric else "left", overflow="fold")
    for info in infos:
        table.add_row(
            info.name,
            str(info.dim),
            "-" if info.input_size is None else f"{info.input_size} px",
            info.feature,
            "-" if info.parameters is None else f"{info.parameters / 1e6:.1f} M",
            info.licence or "-",
            "yes" if info.gated else "no",
            info.hub or "zoomfeat",
        )
    return table

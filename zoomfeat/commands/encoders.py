"""``zoomfeat encoders``: what the registry holds."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from zoomfeat.conf.schema import EncodersConfig, explanations
from zoomfeat.encoders import EncoderInfo, encoder_info, encoder_names
from zoomfeat.encoders.registry import encoder_options

SHIPPED = Path(__file__).parents[1] / "weights"
"""A folder for each model that ships, by its encoder's name."""


def run(config: EncodersConfig) -> int:
    """Prints the facts of every encoder, then what each is and where its weights are from."""
    infos = [encoder_info(name) for name in encoder_names()]
    console = Console()
    console.print(facts_table(infos))
    console.print(sources_table(infos))
    return 0


def facts_table(infos: list[EncoderInfo]) -> Table:
    """A row an encoder; a dash where a fact does not apply or is not stated."""
    table = Table(
        title="patch encoders", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    table.add_column("encoder=", style="bold", no_wrap=True)
    for heading in ("dim", "input", "feature", "params", "licence", "gated"):
        numbers = heading in ("dim", "input", "params")
        table.add_column(heading, justify="right" if numbers else "left", no_wrap=heading != "licence")
    for info in infos:
        table.add_row(
            info.name,
            str(info.dim),
            "-" if info.input_size is None else str(info.input_size),
            info.feature or "-",
            f"{info.parameters / 1e6:.0f} M" if info.parameters else "-",
            info.licence or "-",
            "yes" if info.gated else "no",
        )
    return table


def sources_table(infos: list[EncoderInfo]) -> Table:
    """What each encoder is, and where its weights are from."""
    table = Table(title="what they are, and where from", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("encoder=", style="bold", no_wrap=True)
    table.add_column("")
    for info in infos:
        table.add_row(info.name, f"{info.summary}\n[dim]{source_of(info)}[/]")
    return table


def source_of(info: EncoderInfo) -> str:
    """Where an encoder's weights are from: the hub, zoomfeat itself, or nowhere until somebody trains them."""
    if info.hub:
        return f"{info.hub} on the Hugging Face hub"
    if "weights" in explanations(type(encoder_options(info.name))) and not (SHIPPED / info.name).is_dir():
        return "no weights ship: train them, and give them as encoder.weights"
    return "comes with zoomfeat"

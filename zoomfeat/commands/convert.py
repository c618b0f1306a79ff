"""``zoomfeat convert``: bags to and from the layouts of other tools."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from zoomfeat.bags import convert
from zoomfeat.bags.files import trying_first
from zoomfeat.conf.schema import ConvertConfig
from zoomfeat.words import counted


@trying_first()
def run(config: ConvertConfig) -> int:
    """Converts one bag or a folder of them; 1 when any failed."""
    rows = convert(
        config.source,
        config.out,
        to=config.to,
        layout=config.layout,
        features=config.features,
        mpp=config.mpp,
        magnification=config.magnification,
        encoder_name=config.encoder_name,
        domain=config.domain,
    )
    console = Console()
    table = Table(title=f"{config.to} in {escape(config.out)}", title_justify="left")
    for heading in ("slide", "files", "error"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(escape(row.slide), str(len(row.written)), escape(str(row.error or "")))
    console.print(table)
    failed = sum(row.error is not None for row in rows)
    console.print(
        f"{counted(len(rows), 'slide')}: {len(rows) - failed} converted, {failed} failed.",
        highlight=False,
    )
    return 1 if failed else 0

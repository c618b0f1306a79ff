"""``zoomfeat status``: how far a run is, from what it leaves in its folder; works while it runs, from any machine."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from zoomfeat.claims import Claims, Holder
from zoomfeat.conf.schema import StatusConfig
from zoomfeat.extraction import CLAIMS
from zoomfeat.run_folder import read_run
from zoomfeat.words import counted, shown


def run(config: StatusConfig) -> int:
    """Prints the progress of the last run of a folder; 1 where slides failed."""
    out = Path(config.out)
    record = read_run(out)
    at_work = Claims(out / CLAIMS).held()
    counts = record["counts"]
    known = {name: counts.get(name, 0) for name in ("done", "exists", "kept", "failed")}
    left = record["bags"] - sum(known.values())
    table = Table(title=escape(f"{out}: {_state(record, at_work)}"), title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    rows: list[tuple[str, object]] = [("slides", record["slides"]), ("bags", record["bags"]), *known.items()]
    rows += [("slides at work", len(at_work)), ("bags left", left)]
    made = known["done"] + known["failed"]
    if made and record["seconds"]:
        rows.append(("bags an hour", f"{3600 * made / record['seconds']:.1f}"))
        if left:
            rows.append(("time left", timedelta(seconds=round(left * record["seconds"] / made))))
    for name, value in rows:
        table.add_row(name, str(value))
    console = Console()
    console.print(table)
    if at_work:
        console.print(escape(f"at work: {shown(at_work, 10)}"), highlight=False)
    console.print(
        f"{sum(known.values())} of {counted(record['bags'], 'bag')}, {known['failed']} failed.", highlight=False
    )
    return 1 if known["failed"] else 0


def _state(record: dict[str, Any], at_work: list[str]) -> str:
    if record["ended"]:
        return f"ended {record['ended']}"
    holder = Holder(**record["process"])
    if at_work or not holder.is_gone:
        return f"running since {record['started']}, {holder}"
    return f"stopped; the same command goes on from there (was {holder})"

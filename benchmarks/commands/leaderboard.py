"""``zoomfeat leaderboard``: result records as a static site."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from benchmarks.site import make_site
from benchmarks.submission import printable
from zoomfeat.conf.schema import LeaderboardConfig
from zoomfeat.words import counted


def run(config: LeaderboardConfig) -> int:
    """Writes the site and says what was left out; 1 where no record at all passed the check."""
    console = Console()
    site = make_site(Path(config.results), Path(config.out), console, config.tasks, with_records=config.records)
    collection = site.collection
    for each in collection.refused:
        for problem in each.problems:
            console.print(
                f"REFUSED {escape(printable(each.file))}: {escape(problem)}",
                style="bold yellow",
                highlight=False,
                soft_wrap=True,
            )
    for file, other in collection.duplicates:
        console.print(
            f"{escape(printable(file))}: the same record as {escape(printable(other))}", highlight=False, soft_wrap=True
        )
    if collection.others:
        console.print(f"Passed over: {counted(len(collection.others), 'JSON file')} without the keys of a record")
    results = counted(len(collection.entries), "result")
    console.print(
        f"{results} of {counted(len(site.boards), 'task')}: {escape(str(site.page))}, {escape(str(site.table))}",
        highlight=False,
        soft_wrap=True,
    )
    return 0 if collection.entries else 1

"""``zoomfeat compare``: cross-validated runs against a baseline, paired by patient."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mil.commands.crossval import SHORT_NAMES
from mil.compare import shown_p
from mil.comparison import Comparison, compare_runs
from zoomfeat.conf.schema import CompareConfig
from zoomfeat.files import replacing


def run(config: CompareConfig) -> int:
    """Prints the differences, and writes them where ``out`` says so."""
    console = Console()
    with console.status("paired bootstrap"):
        comparison = compare_runs(config.runs)
    for table in difference_tables(comparison):
        console.print(table)
    for note in comparison.notes:
        console.print(f"NOTE {escape(note)}", style="bold yellow", highlight=False, soft_wrap=True)
    if config.out is not None:
        with replacing(Path(config.out)) as path:
            comparison.table().to_csv(path, index=False)
        console.print(f"Written: {escape(config.out)}", soft_wrap=True, highlight=False)
    return 0


def difference_tables(comparison: Comparison) -> list[Table]:
    """A table a run, a row a metric and test."""
    runs = list(dict.fromkeys(row.run for row in comparison.rows))
    corrected = len(runs) > 1
    tables = []
    for run in runs:
        title = f"{run} less {comparison.baseline}: {comparison.patients} patients, seed-averaged, paired"
        table = Table(
            title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True
        )
        for heading in ("", "test", "base", "run", "difference [95 %]", "p", *(["Holm"] if corrected else [])):
            table.add_column(heading, justify="left" if heading in ("", "test") else "right", no_wrap=True)
        for row in comparison.rows:
            if row.run != run:
                continue
            found = row.difference
            cells = [f"{found.first:.3f}", f"{found.second:.3f}"]
            cells.append(f"{found.difference:+.3f} [{found.low:+.3f}, {found.high:+.3f}]")
            cells += [shown_p(value) for value in (found.p, *([row.p_holm] if corrected else []))]
            table.add_row(SHORT_NAMES[row.metric], row.test, *cells)
        tables.append(table)
    return tables

"""``zoomfeat submit-check``: may a result record enter a leaderboard."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape

from benchmarks.submission import check_file, known_tasks, printable
from zoomfeat.conf.schema import SubmitCheckConfig
from zoomfeat.errors import ConfigurationError


def run(config: SubmitCheckConfig) -> int:
    """Prints what is wrong, a line each, or what the record says; 1 where a record is refused."""
    if not config.files:
        raise ConfigurationError("no file", cure="Name the records: zoomfeat submit-check record.json")
    console = Console(highlight=False, soft_wrap=True)
    tasks = known_tasks(config.tasks)
    refused = False
    for file in config.files:
        checked = check_file(Path(file), tasks)
        for problem in checked.problems:
            console.print(f"{escape(file)}: {escape(problem)}", style="bold red")
        if checked.record is None or checked.problems:
            refused = True
            continue
        task = checked.record.task
        result = f"{printable(checked.record.label)}, {task.metric} {checked.metrics[task.metric]}"
        console.print(f"{escape(file)}: in order: {task.name}: {escape(result)}")
    return 1 if refused else 0

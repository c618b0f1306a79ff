"""``zoomfeat benchmark``: a task from its data to a table, a record a result; goes on where it was stopped."""

from __future__ import annotations

import dataclasses
import runpy
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from benchmarks.generative import ranked_by, run_generation
from benchmarks.results import markdown, planned_tests, print_results, tests_table
from benchmarks.runner import Outcome, run_classification
from benchmarks.site import make_site
from benchmarks.tasks import Task, load_task
from zoomfeat.bags.files import trying_first
from zoomfeat.conf.schema import BenchmarkConfig, defaults
from zoomfeat.errors import ConfigurationError
from zoomfeat.files import make_folder, replacing
from zoomfeat.words import counted


@trying_first()
def run(config: BenchmarkConfig) -> int:
    """Runs a task; 1 where a part of it failed."""
    console = Console()
    for path in config.code:
        _run_code(Path(path))
    task = ranked_by(changed(load_task(config.task), config), config.extractor)
    command = command_of(config)
    config = dataclasses.replace(
        config,
        encoders=[config.model] if config.model else config.encoders or list(task.encoders),
        heads=config.heads or list(task.heads),
        magnifications=config.magnifications or list(task.magnifications),
    )
    folder = make_folder(Path(config.out) / task.name)
    if task.kind != "classification" and config.engine.name != "local":
        raise ConfigurationError(
            f"engine={config.engine.name}, but {task.name} draws images in this process", cure="Leave engine= out"
        )
    run_task = run_classification if task.kind == "classification" else run_generation
    outcome = run_task(task, config, folder, console)
    if outcome.records:
        _conclude(task, outcome, config, folder, command, console)
    for failure in outcome.failures:
        console.print(f"FAILED {escape(failure)}", style="bold red", highlight=False, soft_wrap=True)
    return 1 if outcome.failures or not outcome.records else 0


def changed(task: Task, config: BenchmarkConfig) -> Task:
    """The task with what the command line changes of it, which makes it another version.

    Raises:
        ConfigurationError: a key that this task does not have.
    """
    protocol = task.protocol
    if config.folds is not None and protocol.split != "stratified":
        raise ConfigurationError(f"folds={config.folds}, but {task.name} has folds of its own", cure="Leave folds= out")
    if config.size is not None and task.cohort != "phantom":
        raise ConfigurationError(f"size={config.size}, but {task.name} is not synthetic", cure="Leave size= out")
    if config.folds is not None:
        protocol = dataclasses.replace(protocol, folds=config.folds)
    if config.seeds:
        protocol = dataclasses.replace(protocol, seeds=tuple(config.seeds))
    if config.epochs is not None:
        protocol = dataclasses.replace(protocol, training=protocol.training | {"epochs": config.epochs})
    size = config.size or task.size
    patients = task.patients_sha256 if size == task.size else None  # a cohort of another size has others
    return dataclasses.replace(task, protocol=protocol, size=size, patients_sha256=patients)


def command_of(config: BenchmarkConfig) -> str:
    """The command line that a configuration stands for, without where results go and how fast."""
    words = ["zoomfeat benchmark"]
    for name, default in defaults(BenchmarkConfig).items():
        value = getattr(config, name)
        if value != default and name not in ("out", "site", "device", "batch_size", "workers", "submitter", "engine"):
            text = "[" + ",".join(map(str, value)) + "]" if isinstance(value, list) else str(value)
            words.append(f"{name}={text}")
    return " ".join(words)


def _conclude(
    task: Task, outcome: Outcome, config: BenchmarkConfig, folder: Path, command: str, console: Console
) -> None:
    tests = planned_tests(task, outcome.records) if task.kind == "classification" else []
    print_results(task, outcome.records, tests, console)
    with replacing(folder / "results.md") as path:
        path.write_text(markdown(task, outcome.records, tests, command), encoding="utf-8")
    if tests:
        with replacing(folder / "tests.csv") as path:
            tests_table(tests).to_csv(path, index=False)
    records = folder / "records"
    console.print(
        f"{counted(len(outcome.records), 'record')}: {escape(str(records))}; tables: {escape(str(folder))}/results.md",
        highlight=False,
        soft_wrap=True,
    )
    if config.site:
        site = make_site(records, folder / "site", console, [task])
        for refused in site.collection.refused:
            why = "; ".join(refused.problems)
            console.print(
                f"Not on the leaderboard: {escape(refused.file)}: {escape(why)}", highlight=False, soft_wrap=True
            )
        console.print(f"Leaderboard: {escape(str(site.page))}", highlight=False, soft_wrap=True)


def _run_code(path: Path) -> None:
    """Runs a Python file of the user's, whose decorators enter heads into their registry."""
    if not path.is_file():
        raise ConfigurationError("no such file", cure="Give a Python file as code=", path=path)
    runpy.run_path(str(path))

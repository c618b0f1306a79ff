"""Where work is done: in this process, or by workers of Dask here and on clusters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

from zoomfeat.conf.schema import DaskConfig, EngineConfig, JobsConfig
from zoomfeat.errors import ConfigurationError

Item = TypeVar("Item")
Result = TypeVar("Result")


class Engine(Protocol):
    """Does one task for many items."""

    def map(self, task: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result | Exception]]:
        """Items with their results as they come, in any order; with an exception where a task has none.

        Args:
            task: what is to be done; picklable, for all engines but ``local``.
            items: what it is to be done for; picklable likewise.
        """
        ...


class LocalEngine:
    """One item after the other, in this process."""

    def map(self, task: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[tuple[Item, Result | Exception]]:
        """See :meth:`Engine.map`; items keep their order, and exceptions end the run."""
        for item in items:
            yield item, task(item)


@contextmanager
def open_engine(config: EngineConfig, out: Path) -> Iterator[Engine]:
    """The engine that a configuration names, ended with the block.

    Args:
        config: its options.
        out: folder of the run, for the output of jobs.

    Raises:
        ConfigurationError: its packages are not installed, or it cannot be started.
    """
    if not isinstance(config, DaskConfig | JobsConfig):
        yield LocalEngine()
        return
    try:
        from zoomfeat.engines.cluster import open_cluster
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"engine={config.name} needs the package {error.name}", cure="Install it with: pip install 'zoomfeat[dask]'"
        ) from error
    with open_cluster(config, out) as engine:
        yield engine

"""Calls in a process of their own: one that hangs, or that a native library crashes, is an error and no more."""

from __future__ import annotations

import atexit
import multiprocessing
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from pebble import ProcessExpired, ProcessPool

from zoomfeat.errors import ZoomfeatError

Item = TypeVar("Item")
Result = TypeVar("Result")


class OvertimeError(ZoomfeatError):
    """A call that did not return in time."""


class ProcessEndedError(ZoomfeatError):
    """A call that ended its process."""


class Apart:
    """A process that takes one call after the other; it starts with the first, and anew whenever a call ended it.

    Args:
        prepare: called in it before the first call.
        arguments: of ``prepare``.
    """

    def __init__(self, prepare: Callable[..., Any] | None = None, *arguments: Any) -> None:
        self._prepare = prepare
        self._arguments = arguments
        self._pool: ProcessPool | None = None

    def call(self, task: Callable[[Item], Result], item: Item, seconds: float) -> Result:
        """What ``task`` makes of an item there; what it raises is raised here.

        Args:
            task: what to call; picklable, as its item and its result.
            item: its argument.
            seconds: after which the process is ended.

        Raises:
            OvertimeError: it did not return in time.
            ProcessEndedError: its process ended.
        """
        try:
            return self._started().schedule(task, args=[item], timeout=seconds).result()
        except TimeoutError as error:
            raise OvertimeError(f"not finished after {seconds:g} s") from error
        except (ProcessExpired, BrokenProcessPool) as error:
            if isinstance(error, BrokenProcessPool):  # it ended before it took the item
                self.stop()
            raise ProcessEndedError(
                f"its process ended (exit code {getattr(error, 'exitcode', 'unknown')})",
                cure="Often too little memory, or a damaged file",
            ) from error

    def stop(self) -> None:
        """Ends the process."""
        if self._pool is not None:
            atexit.unregister(self.stop)
            self._pool.stop()
            self._pool.join()
            self._pool = None

    def _started(self) -> ProcessPool:
        if self._pool is None:
            atexit.register(self.stop)
            context = multiprocessing.get_context("spawn")  # PyTorch does not survive a fork once it has run
            self._pool = ProcessPool(1, initializer=self._prepare, initargs=list(self._arguments), context=context)
        return self._pool

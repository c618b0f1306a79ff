"""The task of a worker: one slide, with encoders that stay loaded from slide to slide."""

from __future__ import annotations

import atexit
import multiprocessing
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError as Overtime
from dataclasses import asdict, replace
from typing import Any

from pebble import ProcessExpired, ProcessPool

from zoomfeat.conf.schema import EncoderConfig, ExtractConfig
from zoomfeat.configuration import chosen_encoders
from zoomfeat.domains import load_domain
from zoomfeat.encoders import PatchEncoder, load_encoder
from zoomfeat.encoding import Advance
from zoomfeat.errors import ZoomfeatError
from zoomfeat.extraction import extract_bags
from zoomfeat.report import SlideReport, failure
from zoomfeat.slides import SlideEntry

Watch = Callable[[SlideEntry], Advance]
"""Told which slide begins; what it gives is told of that slide's progress."""

_ONE_AT_A_TIME = threading.Lock()  # also where somebody gave a worker several threads


class ExtractSlide:
    """A callable, slide in and reports out, that goes to other processes without its encoders.

    Args:
        config: checked by :func:`zoomfeat.configuration.check_config`.
        encoders: of this process; None: loaded as ``config`` says, once a process.
        watch: of this process.
    """

    def __init__(
        self, config: ExtractConfig, encoders: Sequence[PatchEncoder] | None = None, watch: Watch | None = None
    ) -> None:
        self.config = config
        self.encoders = encoders
        self.watch = watch

    def __reduce__(self) -> tuple[type[ExtractSlide], tuple[ExtractConfig]]:
        return ExtractSlide, (self.config,)

    def __call__(self, entry: SlideEntry) -> list[SlideReport]:
        """Extracts a slide; see :func:`zoomfeat.extraction.extract_bags`."""
        with _ONE_AT_A_TIME:
            if self.config.slide_timeout is not None:
                return self._apart(entry, self.config.slide_timeout)
            advance = self.watch(entry) if self.watch else lambda done, total: None
            return extract_bags(entry, self.config, self.encoders or _kept_encoders(self.config), advance)

    def _apart(self, entry: SlideEntry, timeout: float) -> list[SlideReport]:
        """The same in a process of its own, which ends when its time is up; it takes the next slide too, if not."""
        task = type(self)(replace(self.config, slide_timeout=None))
        if self.watch:
            self.watch(entry)
        try:
            return _kept_pool(task.config).schedule(task, args=[entry], timeout=timeout).result()
        except Overtime:
            error = ZoomfeatError(
                f"{entry.path}: not finished after {timeout:g} s", cure="Give slide_timeout= more seconds, or none"
            )
        except ProcessExpired as ended:
            error = ZoomfeatError(
                f"{entry.path}: its process ended (exit code {ended.exitcode})",
                cure="Often too little memory, or a damaged file: see the last lines of its log in logs/",
            )
        return [failure(entry, error, "slide", encoder=choice.name) for choice in chosen_encoders(self.config)]


def load_encoders(config: ExtractConfig, started: Callable[[str], Any] = lambda name: None) -> list[PatchEncoder]:
    """The encoders of a run.

    Args:
        config: of the run.
        started: told the name of each before it is loaded.

    Raises:
        ConfigurationError: an unknown encoder or option.
        CheckpointMismatchError: weights that do not fit.
    """
    return [_load(choice, config, started) for choice in chosen_encoders(config)]


def _load(choice: EncoderConfig, config: ExtractConfig, started: Callable[[str], Any]) -> PatchEncoder:
    started(choice.name)
    options = {key: value for key, value in asdict(choice).items() if key != "name"}
    finest = load_domain(config.domain).steps(config.magnifications)[0]
    return load_encoder(choice.name, finest, config.device, **options)


# What a process keeps from slide to slide, of one run: memory is for one model.
_encoders: list[tuple[ExtractConfig, list[PatchEncoder]]] = []
_pool: list[tuple[ExtractConfig, ProcessPool]] = []


def _kept_encoders(config: ExtractConfig) -> list[PatchEncoder]:
    """The encoders of a run, loaded when its first slide comes."""
    if not _encoders or _encoders[0][0] != config:
        _encoders.clear()
        _encoders.append((config, load_encoders(config)))
    return _encoders[0][1]


def _kept_pool(config: ExtractConfig) -> ProcessPool:
    """A process that loads them, and is made anew whenever a slide ended it."""
    if not _pool or _pool[0][0] != config:
        _stop_pool()
        context = multiprocessing.get_context("spawn")  # PyTorch does not survive a fork once it has run
        _pool.append((config, ProcessPool(1, initializer=_kept_encoders, initargs=[config], context=context)))
    return _pool[0][1]


@atexit.register
def _stop_pool() -> None:
    for _, pool in _pool:
        pool.stop()
        pool.join()
    _pool.clear()

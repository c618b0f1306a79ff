"""The task of a worker: one slide, with encoders that stay loaded from slide to slide."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from zoomfeat.apart import Apart, OvertimeError, ProcessEndedError
from zoomfeat.conf.schema import EncoderConfig, EngineConfig, ExtractConfig
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
        return ExtractSlide, (for_worker(self.config, self.config.slide_timeout),)

    def __call__(self, entry: SlideEntry) -> list[SlideReport]:
        """Extracts a slide; see :func:`zoomfeat.extraction.extract_bags`."""
        with _ONE_AT_A_TIME:
            if self.config.slide_timeout is not None:
                return self._apart(entry, self.config.slide_timeout)
            advance = self.watch(entry) if self.watch else lambda done, total: None
            return extract_bags(entry, self.config, self.encoders or _kept_encoders(self.config), advance)

    def _apart(self, entry: SlideEntry, timeout: float) -> list[SlideReport]:
        """The same in a process of its own, which ends when its time is up; it takes the next slide too, if not."""
        task = ExtractSlide(for_worker(self.config))
        if self.watch:
            self.watch(entry)
        try:
            return _kept_process(task.config).call(task, entry, timeout)
        except OvertimeError as overtime:
            error = ZoomfeatError(overtime.problem, cure="Give slide_timeout= more seconds, or none", path=entry.path)
        except ProcessEndedError as ended:
            cure = f"{ended.cure}: see the last lines of its log in logs/"
            error = ZoomfeatError(ended.problem, cure=cure, path=entry.path)
        return [failure(entry, error, "slide", encoder=choice.name) for choice in chosen_encoders(self.config)]


def load_encoders(config: ExtractConfig, started: Callable[[str], Any] = lambda name: None) -> list[PatchEncoder]:
    """The encoders of a run.

    Where other processes do the work, those of this one only say what they are: they need no GPU.

    Args:
        config: of the run.
        started: told the name of each before it is loaded.

    Raises:
        ConfigurationError: an unknown encoder or option.
        CheckpointMismatchError: weights that do not fit.
    """
    here = config.engine.name == "local" and config.slide_timeout is None
    return [_load(choice, config, config.device if here else "cpu", started) for choice in chosen_encoders(config)]


def for_worker(config: ExtractConfig, slide_timeout: float | None = None) -> ExtractConfig:
    """The configuration of a process that does the work itself."""
    return replace(from_anywhere(config), engine=EngineConfig("local"), slide_timeout=slide_timeout)


def from_anywhere(config: ExtractConfig) -> ExtractConfig:
    """The same with paths that hold in any working folder: that of a worker is another one."""
    encoder, domain = config.encoder, config.domain
    weights = getattr(encoder, "weights", None)
    if encoder is not None and weights and Path(weights).exists():
        encoder = replace(encoder, **{"weights": str(Path(weights).absolute())})
    if Path(domain).is_file():
        domain = str(Path(domain).absolute())
    options = {
        name: keys | {key: str(Path(value).absolute()) for key, value in keys.items() if _is_file(key, value)}
        for name, keys in config.encoder_options.items()
    }
    return replace(
        config, out=str(Path(config.out).absolute()), encoder=encoder, domain=domain, encoder_options=options
    )


def _is_file(key: str, value: object) -> bool:
    return key == "weights" and isinstance(value, str) and Path(value).exists()


def _load(choice: EncoderConfig, config: ExtractConfig, device: str, started: Callable[[str], Any]) -> PatchEncoder:
    started(choice.name)
    options = {key: value for key, value in asdict(choice).items() if key != "name"}
    finest = load_domain(config.domain).steps(config.magnifications)[0]
    return load_encoder(choice.name, finest, device, **options)


# What a process keeps from slide to slide, of one run: memory is for one model.
_encoders: list[tuple[ExtractConfig, list[PatchEncoder]]] = []
_process: list[tuple[ExtractConfig, Apart]] = []


def _kept_encoders(config: ExtractConfig) -> list[PatchEncoder]:
    """The encoders of a run, loaded when its first slide comes."""
    if not _encoders or _encoders[0][0] != config:
        _encoders.clear()
        _encoders.append((config, load_encoders(config)))
    return _encoders[0][1]


def _kept_process(config: ExtractConfig) -> Apart:
    """A process that loads them."""
    if not _process or _process[0][0] != config:
        for _, other in _process:
            other.stop()
        _process[:] = [(config, Apart(_kept_encoders, config))]
    return _process[0][1]

"""The registry of patch encoders: a decorator and a dictionary.

A builder is a function ``(options, magnification, device) -> PatchEncoder``; its name, with hyphens, is the
encoder's name, the first line of its docstring the summary, and the fields of its options class (see
:mod:`zoomfeat.conf.schema`) are what users may set. The facts of an encoder stand in the decorator.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

from zoomfeat.conf.schema import EncoderConfig, explanations
from zoomfeat.encoders.base import PatchEncoder
from zoomfeat.encoders.info import EncoderInfo
from zoomfeat.errors import ConfigurationError
from zoomfeat.magnification import Magnification

Builder = Callable[..., PatchEncoder]

_BUILDERS: dict[str, Builder] = {}
_INFOS: dict[str, EncoderInfo] = {}

# Modules that register encoders; imported on first use, since they import torch and more.
_FAMILIES = ("color", "foundation", "pretrained", "student", "zoomldm")


def register(**facts: Any) -> Callable[[Builder], Builder]:
    """Enters a builder under its own name, underscores as hyphens.

    Args:
        facts: the fields of :class:`EncoderInfo` besides name and summary, which the builder itself brings.
    """

    def enter(builder: Builder) -> Builder:
        name = registered_name(builder)
        if name in _BUILDERS:
            raise ValueError(f"two encoders are called {name}")
        _INFOS[name] = EncoderInfo(name, first_line(builder), **facts)
        _BUILDERS[name] = builder
        return builder

    return enter


def registered_name(function: Callable[..., Any]) -> str:
    """What the registry calls a function: its own name with hyphens."""
    return function.__name__.replace("_", "-")


def first_line(function: Callable[..., Any]) -> str:
    """The first line of a function's docstring."""
    return (inspect.getdoc(function) or "").splitlines()[0]


def _builders() -> dict[str, Builder]:
    for family in _FAMILIES:
        importlib.import_module(f"zoomfeat.encoders.{family}")
    return _BUILDERS


def encoder_names() -> list[str]:
    """Names of all registered encoders, sorted."""
    return sorted(_builders())


def encoder_info(name: str) -> EncoderInfo:
    """What is known of an encoder without building it.

    Raises:
        ConfigurationError: an unknown encoder (the nearest known one is named).
    """
    _builder(name)
    return _INFOS[name]


def _builder(name: str) -> Builder:
    builders = _builders()
    if name not in builders:
        near = difflib.get_close_matches(str(name), builders, n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise ConfigurationError(f"no encoder {name!r}", cure=f"{hint}Known are {', '.join(sorted(builders))}")
    return builders[name]


def load_encoder(
    name: str, magnification: str | Magnification | None = None, device: str = "auto", **options: Any
) -> PatchEncoder:
    """Builds an encoder by name.

    Args:
        name: see :func:`encoder_names`.
        magnification: what its patches are seen at, for example ``"5x"``; None: the finest that it knows.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` and so on.
        options: the encoder's own, for example ``taps=["mid"]`` or ``weights="folder"``.

    Raises:
        ConfigurationError: an unknown encoder or option (the nearest known one is named).
        CheckpointMismatchError: weights that do not fit.
    """
    return _builder(name)(encoder_options(name, **options), magnification, device)


def encoder_options(name: str, **options: Any) -> EncoderConfig:
    """What an encoder would be built with, checked by name.

    Raises:
        ConfigurationError: an unknown encoder or option (the nearest known one is named).
    """
    kind = get_type_hints(_builder(name))["options"]
    known = explanations(kind).keys() - {"name"}
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise ConfigurationError(
                f"encoder {name} has no option {option!r}", cure=f"{hint}It has {', '.join(sorted(known)) or 'none'}"
            )
    return kind(name=name, **options)

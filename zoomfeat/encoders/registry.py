"""The registry of patch encoders: a decorator and a dictionary.

A builder is a function ``(options, magnification, device) -> PatchEncoder``; its name, with hyphens, is the
encoder's name, and the fields of its options class (see :mod:`zoomfeat.conf.schema`) are what users may set.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

from zoomfeat.conf.schema import explanations
from zoomfeat.encoders.base import PatchEncoder
from zoomfeat.errors import ConfigurationError
from zoomfeat.magnification import Magnification

Builder = Callable[..., PatchEncoder]

_BUILDERS: dict[str, Builder] = {}

# Modules that register encoders; imported on first use, since they import torch and more.
_FAMILIES = ("color", "pretrained", "zoomldm")


def register(builder: Builder) -> Builder:
    """Enters a builder under its own name, underscores as hyphens."""
    name = builder.__name__.replace("_", "-")
    if name in _BUILDERS:
        raise ValueError(f"two encoders are called {name}")
    _BUILDERS[name] = builder
    return builder


def _builders() -> dict[str, Builder]:
    for family in _FAMILIES:
        importlib.import_module(f"zoomfeat.encoders.{family}")
    return _BUILDERS


def encoder_names() -> list[str]:
    """Names of all registered encoders, sorted."""
    return sorted(_builders())


def encoder_summary(name: str) -> str:
    """The first line of what an encoder says of itself."""
    return (inspect.getdoc(_builders()[name]) or "").splitlines()[0]


def load_encoder(
    name: str, magnification: str | Magnification = "20x", device: str = "auto", **options: Any
) -> PatchEncoder:
    """Builds an encoder by name.

    Args:
        name: see :func:`encoder_names`.
        magnification: what its patches are seen at, for example ``"5x"``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` and so on.
        options: the encoder's own, for example ``taps=["mid"]`` or ``weights="folder"``.

    Raises:
        ConfigurationError: an unknown encoder or option (the nearest known one is named).
        CheckpointMismatchError: weights that do not fit.
    """
    builders = _builders()
    if name not in builders:
        near = difflib.get_close_matches(str(name), builders, n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise ConfigurationError(f"no encoder {name!r}", cure=f"{hint}Known are {', '.join(sorted(builders))}")
    options_type = get_type_hints(builders[name])["options"]
    known = explanations(options_type).keys() - {"name"}
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise ConfigurationError(
                f"encoder {name} has no option {option!r}", cure=f"{hint}It has {', '.join(sorted(known)) or 'none'}"
            )
    return builders[name](options_type(name=name, **options), magnification, device)

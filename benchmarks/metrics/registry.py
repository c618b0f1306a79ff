"""The registry of metrics: two decorators and two dictionaries.

A *set metric* is a function ``(made, real, **options) -> list[Measurement]`` of two feature sets. A *pair metric* is a
builder ``(**options) -> PairMetric``, which scores each image against the one it should be. A function's name, with
hyphens, is the metric's name.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from zoomfeat.errors import ConfigurationError

SetMetric = Callable[..., "list[Measurement]"]
PairBuilder = Callable[..., "PairMetric"]

_SETS: dict[str, SetMetric] = {}
_PAIRS: dict[str, PairBuilder] = {}

# Modules that register metrics; imported on first use.
_MODULES = ("frechet", "kernel", "manifold", "structure", "perceptual", "similarity")


@dataclass(frozen=True)
class Measurement:
    """A metric's value with its interval.

    Attributes:
        name: as it is reported. A distance between features names the network, unless it has the network and the
            weights that the short name stands for.
        value: NaN where it is undefined.
        low: lower end of the 95 % interval; NaN where there is none.
        high: upper end.
        resampled: what the interval was resampled over, or what else it rests on.
        higher_is_better: which way is better.
        made: how many images were judged.
        real: how many they were held against.
        note: what a reader has to know beside the numbers.
        values: of each pair of images, for pair metrics.
    """

    name: str
    value: float
    low: float
    high: float
    resampled: str
    higher_is_better: bool
    made: int
    real: int
    note: str = ""
    values: NDArray[np.float64] | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        interval = "" if np.isnan(self.low) else f" [{self.low:.4g}, {self.high:.4g}]"
        return f"{self.name} {self.value:.4g}{interval}"


@dataclass(frozen=True)
class PairMetric:
    """How one image is scored against the one it should be.

    Attributes:
        name: as it is reported.
        higher_is_better: which way is better.
        score: ``(made, real) -> (B,)``, both ``(B, 3, H, W)`` float32 in [0, 1] with 256 levels.
    """

    name: str
    higher_is_better: bool
    score: Callable[[Tensor, Tensor], Tensor]


def set_metric(function: SetMetric) -> SetMetric:
    """Enters a metric of two feature sets under its own name, underscores as hyphens."""
    return _enter(_SETS, function)


def pair_metric(builder: PairBuilder) -> PairBuilder:
    """Enters a builder of a metric of image pairs under its own name, underscores as hyphens."""
    return _enter(_PAIRS, builder)


def set_metric_names() -> list[str]:
    """Names of all metrics of two sets, sorted."""
    return sorted(_filled(_SETS))


def pair_metric_names() -> list[str]:
    """Names of all metrics of image pairs, sorted."""
    return sorted(_filled(_PAIRS))


def find_set_metric(name: str) -> SetMetric:
    """A metric of two sets by name.

    Raises:
        ConfigurationError: there is none of this name; the nearest is named.
    """
    return _find(_filled(_SETS), name, "of two sets")


def find_pair_metric(name: str) -> PairBuilder:
    """The builder of a metric of image pairs by name.

    Raises:
        ConfigurationError: there is none of this name; the nearest is named.
    """
    return _find(_filled(_PAIRS), name, "of image pairs")


def _enter(registry: dict[str, Any], function: Any) -> Any:
    name = function.__name__.replace("_", "-")
    if name in registry:
        raise ValueError(f"two metrics are called {name}")
    registry[name] = function
    return function


def _filled(registry: Mapping[str, Any]) -> Mapping[str, Any]:
    for module in _MODULES:
        importlib.import_module(f"benchmarks.metrics.{module}")
    return registry


def _find(registry: Mapping[str, Any], name: str, kind: str) -> Any:
    if name not in registry:
        near = difflib.get_close_matches(name, registry, n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise ConfigurationError(f"no metric {kind} {name!r}", cure=f"{hint}Known are {', '.join(sorted(registry))}")
    return registry[name]

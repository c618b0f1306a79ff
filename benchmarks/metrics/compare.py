"""Images in, measurements out: two sets, or pairs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from benchmarks.metrics.extractors import Extractor, load_extractor
from benchmarks.metrics.features import SAMPLE, FeatureSet
from benchmarks.metrics.images import Images, as_source, batches
from benchmarks.metrics.intervals import of_mean
from benchmarks.metrics.registry import Measurement, PairMetric, find_pair_metric, find_set_metric
from zoomfeat.errors import ConfigurationError
from zoomfeat.progress import progress_bar

_BATCH = 32
_CHUNK = 512  # features added to the moments at once: a matrix product, and not many small ones


def features_of(
    images: Images, extractor: str | Extractor, *, keep: int = SAMPLE, console: Console | None = None, **options: Any
) -> FeatureSet:
    """One pass over images.

    Args:
        images: a folder, a source or an array.
        extractor: a name, with its ``options`` (see :func:`load_extractor`), or a loaded one.
        keep: features in the sample, at most.
        console: for the progress bar; default: standard error.
        options: of a named extractor.
    """
    source = as_source(images)
    network = load_extractor(extractor, **options) if isinstance(extractor, str) else extractor
    found = FeatureSet.empty(network.network, keep, source.view)
    keys: list[str] = []
    features: list[NDArray[np.float32]] = []
    with progress_bar(console or Console(stderr=True)) as progress:
        task = progress.add_task(f"features ({network.network.name})", total=len(source), unit="images")
        for names, pixels in batches(source, _BATCH):
            keys += names
            features.append(network(pixels))
            progress.advance(task, len(names))
            if len(keys) >= _CHUNK:
                found = found.add(keys, np.concatenate(features))
                keys, features = [], []
    return found.add(keys, np.concatenate(features)) if keys else found


def compare_sets(
    made: Images | FeatureSet,
    real: Images | FeatureSet,
    metrics: Sequence[str],
    extractor: str | Extractor | None = None,
    *,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    console: Console | None = None,
    **options: Any,
) -> list[Measurement]:
    """Metrics of two sets of images from one pass over each.

    Args:
        made: generated: a folder, a source, an array, or features computed before.
        real: what they should be like.
        metrics: names, see :func:`set_metric_names`.
        extractor: as for :func:`features_of`; not needed where both are features.
        settings: options of metrics, by name.
        console: for progress bars.
        options: of a named extractor.

    Raises:
        ConfigurationError: unknown names, or sets that cannot be compared.
    """
    chosen = _chosen({name: find_set_metric(name) for name in metrics}, settings)
    if not (isinstance(made, FeatureSet) and isinstance(real, FeatureSet)):
        if extractor is None:
            raise ConfigurationError("images, and no extractor", cure="Name one: extractor='efficientnet-lite0'")
        network = load_extractor(extractor, **options) if isinstance(extractor, str) else extractor
        made, real = (
            side if isinstance(side, FeatureSet) else features_of(side, network, console=console)
            for side in (made, real)
        )
    return [found for metric, facts in chosen for found in metric(made, real, **facts)]


def compare_pairs(
    made: Images,
    real: Images,
    metrics: Sequence[str | PairMetric],
    *,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
    console: Console | None = None,
) -> list[Measurement]:
    """Means over pairs of images, with intervals from a bootstrap over pairs.

    Args:
        made: restored or generated; the first belongs to the first of ``real``, and so on.
        real: what they should be.
        metrics: names, see :func:`pair_metric_names`, or built ones.
        settings: options of named metrics, by name.
        seed: of the resampling.
        console: for the progress bar.

    Raises:
        ConfigurationError: unknown names, other numbers of images, or pairs of different sizes.
    """
    sides = as_source(made), as_source(real)
    if len(sides[0]) != len(sides[1]):
        raise ConfigurationError(
            f"{len(sides[0])} images made and {len(sides[1])} real ones", cure="Pairs are those of equal rank by name"
        )
    named = {metric: find_pair_metric(metric) for metric in metrics if isinstance(metric, str)}
    built = {id(m): m for m in metrics if isinstance(m, PairMetric)}
    chosen = [builder(**facts) for builder, facts in _chosen(named, settings)] + list(built.values())
    scores: list[list[NDArray[np.float64]]] = [[] for _ in chosen]
    with progress_bar(console or Console(stderr=True)) as progress:
        task = progress.add_task("pairs", total=len(sides[0]), unit="images")
        for (key, ours), (other, theirs) in zip(*sides, strict=True):
            if ours.shape != theirs.shape:
                raise ConfigurationError(
                    f"{key} is {ours.shape[1]} x {ours.shape[0]} px and {other} {theirs.shape[1]} x {theirs.shape[0]}",
                    cure="Give pairs of equal size",
                )
            for metric, found in zip(chosen, scores, strict=True):
                found.append(metric.score(as_pixels(ours), as_pixels(theirs)).double().numpy())
            progress.advance(task)
    return [summary(metric, np.concatenate(found), seed) for metric, found in zip(chosen, scores, strict=True)]


def summary(metric: PairMetric, values: NDArray[np.floating], seed: int = 0) -> Measurement:
    """The mean of what a metric gave for each pair, with its interval."""
    scores: NDArray[np.float64] = np.asarray(values, dtype=np.float64)
    low, high = of_mean(scores, seed)
    pairs = len(scores)
    return Measurement(
        metric.name,
        float(scores.mean()),
        low,
        high,
        "pairs of images",
        metric.higher_is_better,
        pairs,
        pairs,
        values=scores,
    )


def as_pixels(image: NDArray[np.uint8]) -> Tensor:
    """``(H, W, 3)`` uint8 to ``(1, 3, H, W)`` in [0, 1]."""
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255


def _chosen(found: Mapping[str, Any], settings: Mapping[str, Mapping[str, Any]] | None) -> Iterable[tuple[Any, Any]]:
    settings = settings or {}
    if unused := settings.keys() - found.keys():
        raise ConfigurationError(
            f"settings of {', '.join(sorted(unused))}, which is not measured", cure="Name it among the metrics"
        )
    return [(entry, settings.get(name, {})) for name, entry in found.items()]

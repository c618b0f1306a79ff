"""Metrics of generated images: distances of sets, and of pairs; see ``docs/metrics.md``.

One module a metric, a registry in front::

    compare_sets("samples/", "patches/", ["fid", "kid"], extractor="efficientnet-lite0")
    compare_pairs("restored/", "truth/", ["ssim", "psnr"])
"""

from benchmarks.metrics.compare import compare_pairs, compare_sets, features_of
from benchmarks.metrics.crops import RandomCrops
from benchmarks.metrics.extractors import Extractor, load_extractor
from benchmarks.metrics.features import FeatureSet, Network
from benchmarks.metrics.images import ImageArray, ImageFiles
from benchmarks.metrics.registry import (
    Measurement,
    PairMetric,
    pair_metric,
    pair_metric_names,
    set_metric,
    set_metric_names,
)

__all__ = [
    "Extractor",
    "FeatureSet",
    "ImageArray",
    "ImageFiles",
    "Measurement",
    "Network",
    "PairMetric",
    "RandomCrops",
    "compare_pairs",
    "compare_sets",
    "features_of",
    "load_extractor",
    "pair_metric",
    "pair_metric_names",
    "set_metric",
    "set_metric_names",
]

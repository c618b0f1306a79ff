"""The Frechet distance of two sets of features: FID, over the Inception that this name stands for.

Heusel et al., "GANs trained by a two time-scale update rule converge to a local Nash equilibrium", 2017, section 3.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from benchmarks.metrics.features import FeatureSet, Moments, Network
from benchmarks.metrics.intervals import around, jackknife_error
from benchmarks.metrics.registry import Measurement, set_metric
from zoomfeat.errors import ConfigurationError

ENOUGH = 2_048
"""Images; with fewer, or fewer than dimensions, the distance says more of the number than of the images."""

PARTS = 10


class FewImagesWarning(UserWarning):
    """A Frechet distance of so few images is mostly bias."""


@set_metric
def fid(made: FeatureSet, real: FeatureSet, *, parts: int = PARTS) -> list[Measurement]:
    """The Frechet distance. Less is better; it is at least 0, and biased upwards the more, the fewer images there are.

    Its interval is that of the distance at *this number* of images, from a jackknife that leaves out one of ``parts``
    equal parts of either set; of sets larger than their samples, from the samples, scaled to the sets' size.

    Args:
        made: generated.
        real: what they should be like.
        parts: of the jackknife; 0: no interval. Each costs two eigenvalue problems of the features' dimension.

    Raises:
        ConfigurationError: fewer than two images in a set, or sets of different networks.
    """
    made.check_comparable(real)
    if min(len(made), len(real)) < 2:
        raise ConfigurationError(f"{len(made)} and {len(real)} images", cure="Give at least two of each")
    name, fewest = frechet_name(made.network, made.view), min(len(made), len(real))
    note = ""
    if fewest < max(ENOUGH, made.network.dim):
        note = f"of {fewest} images only: biased upwards; the kernel distance (kid) is not"
        warnings.warn(
            f"{name} of {fewest} images with {made.network.dim} features is mostly bias: "
            f"use kid, which has none, or at least {max(ENOUGH, made.network.dim)} images",
            FewImagesWarning,
            stacklevel=2,
        )
    value = frechet_distance(made.moments, real.moments)
    low, high, resampled = np.nan, np.nan, ""
    if parts and min(len(made.sample), len(real.sample)) >= 2 * parts:
        low, high = around(value, _standard_error(made, real, parts), parts - 1)
        low, resampled = max(0.0, low), f"images, by a jackknife over {parts} parts of each set"
    return [Measurement(name, value, low, high, resampled, False, len(made), len(real), note)]


def frechet_name(network: Network, view: str = "") -> str:
    """What the distance is called: FID over the FID Inception, CLIP FID over OpenAI's, else by the network's name."""
    what = "crop " if view else ""
    return f"{what}Frechet distance ({network.name})" if network.short is None else f"{what}{network.short}FID"


def frechet_distance(a: Moments, b: Moments) -> float:
    """``|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))``."""
    return _distance(a, b, _root(b.covariance))


def _distance(a: Moments, b: Moments, root: NDArray[np.float64]) -> float:
    """With the root of b's covariance: C_a C_b has the eigenvalues of the symmetric root C_a root.

    Two symmetric eigenvalue problems stand for the one of the product, which is not symmetric.
    """
    eigenvalues = linalg.eigvalsh(root @ a.covariance @ root)
    cross = np.sqrt(eigenvalues.clip(min=0)).sum()
    apart = a.mean - b.mean
    return float(apart @ apart + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross)


def _root(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    values, vectors = linalg.eigh(covariance)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T


def _standard_error(made: FeatureSet, real: FeatureSet, parts: int) -> float:
    """Of the distance, as the sets are independent: the root of the sum of what each contributes, squared."""
    # A sample's order is that of a hash: its stretches are random parts.
    ours, theirs = Moments.of(made.sample), Moments.of(real.sample)
    error = 0.0
    for features, whole, other, count in (
        (made.sample, ours, theirs, len(made)),
        (real.sample, theirs, ours, len(real)),
    ):
        root = _root(other.covariance)
        left_out = [_distance(whole - Moments.of(part), other, root) for part in np.array_split(features, parts)]
        error += jackknife_error(np.array(left_out)) ** 2 * len(features) / count
    return float(np.sqrt(error))

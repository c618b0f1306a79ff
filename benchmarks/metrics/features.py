"""What is kept of the features of many images: moments, and a bounded sample; both merge.

A million images fit: the state is the size of a covariance and a few thousand features, whatever their number. Sets
of one folder made in shards, on as many machines, merge to what one pass over it gives.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zoomfeat.errors import ConfigurationError, ZoomfeatError
from zoomfeat.files import replacing

SAMPLE = 10_000
"""Features kept of a set, at most: what the manifold metrics are customarily computed on, and ample for KID."""

_FORMAT = "zoomfeat-features/1"


@dataclass(frozen=True)
class Network:
    """Which network made features, so that only like is compared with like.

    Attributes:
        name: as reports name it.
        dim: of its features.
        weights_hash: SHA-256 of its weights.
        settings: everything else that decides its features.
        short: what goes before ``FID`` where this network, with these weights, is the one that the name stands for
            ("" for the FID Inception, "CLIP " for a CLIP tower); None for all other networks.
    """

    name: str
    dim: int
    weights_hash: str
    settings: str = ""
    short: str | None = None


@dataclass(frozen=True)
class Moments:
    """Count, mean (D,) and scatter (D, D), the sum of outer products of deviations from the mean; float64."""

    count: int
    mean: NDArray[np.float64]
    scatter: NDArray[np.float64]

    @classmethod
    def of(cls, features: NDArray[np.floating]) -> Moments:
        """Those of features (N, D)."""
        features = np.asarray(features, dtype=np.float64)
        mean = features.mean(0) if len(features) else np.zeros(features.shape[1])
        deviations = features - mean
        return cls(len(features), mean, deviations.T @ deviations)

    def __add__(self, other: Moments) -> Moments:
        """Those of both (Chan, Golub, LeVeque 1979, equations 2.1)."""
        count = self.count + other.count
        if not count:
            return self
        apart = other.mean - self.mean
        scatter = self.scatter + other.scatter + np.outer(apart, apart) * (self.count * other.count / count)
        return Moments(count, self.mean + apart * (other.count / count), scatter)

    def __sub__(self, part: Moments) -> Moments:
        """Those of what is left when a part is taken out: the above, solved for one of the two."""
        count = self.count - part.count
        mean = (self.count * self.mean - part.count * part.mean) / count
        apart = part.mean - mean
        return Moments(
            count, mean, self.scatter - part.scatter - np.outer(apart, apart) * (count * part.count / self.count)
        )

    @property
    def covariance(self) -> NDArray[np.float64]:
        """Unbiased, (D, D)."""
        return self.scatter / (self.count - 1)


@dataclass(frozen=True)
class FeatureSet:
    """Features of a set of images.

    Attributes:
        network: that made them.
        moments: of all images.
        sample: features (K, D) float32 of K images drawn without replacement: of all, where there are at most ``keep``.
            Each image's rank in the draw is a hash of its key, so that neither order nor sharding matters.
        ranks: (K,) uint64, ascending.
        keep: K at most.
        view: what the images are, where they are not whole files: "256 px crops".
    """

    network: Network
    moments: Moments
    sample: NDArray[np.float32]
    ranks: NDArray[np.uint64]
    keep: int = SAMPLE
    view: str = ""

    @classmethod
    def empty(cls, network: Network, keep: int = SAMPLE, view: str = "") -> FeatureSet:
        """Of no image yet."""
        nothing = np.empty((0, network.dim), np.float32)
        return cls(network, Moments.of(nothing), nothing, np.empty(0, np.uint64), keep, view)

    def __len__(self) -> int:
        """How many images."""
        return self.moments.count

    def add(self, keys: Sequence[str], features: NDArray[np.float32]) -> FeatureSet:
        """With further images.

        Args:
            keys: one an image; the same in every run, different for different images.
            features: (N, D).

        Raises:
            ConfigurationError: features of another width, or not finite.
        """
        if features.shape != (len(keys), self.network.dim) or not np.isfinite(features).all():
            raise ConfigurationError(
                f"features {features.shape} of {self.network.name}; expected finite ({len(keys)}, {self.network.dim})",
                cure="Give one row of features for each key",
            )
        ranks = np.array([_rank(key) for key in keys], dtype=np.uint64)
        if len(self.ranks) == self.keep:  # most of a large set ends here, without a copy of the sample
            low = ranks < self.ranks[-1]
            return self._with(self.moments + Moments.of(features), features[low], ranks[low])
        return self._with(self.moments + Moments.of(features), features, ranks)

    def merge(self, other: FeatureSet) -> FeatureSet:
        """Of the images of both.

        Raises:
            ConfigurationError: another network, other settings, or an image that is in both.
        """
        self.check_comparable(other)
        if self.keep != other.keep:
            raise ConfigurationError(f"samples of {self.keep} and {other.keep}", cure="Make all shards with one keep=")
        _, mine, theirs = np.intersect1d(self.ranks, other.ranks, assume_unique=False, return_indices=True)
        if (same := (self.sample[mine] == other.sample[theirs]).all(axis=1)).any():
            raise ConfigurationError(
                f"both sets hold the same {int(same.sum())} images (of those in their samples)",
                cure="Give each image to one shard only",
            )
        return self._with(self.moments + other.moments, other.sample, other.ranks)

    def check_comparable(self, other: FeatureSet) -> None:
        """Whether features mean the same.

        Raises:
            ConfigurationError: they do not.
        """
        if self.network != other.network:
            facts = asdict(self.network), asdict(other.network)
            named = ", ".join(
                f"{key}: {facts[0][key]} and {facts[1][key]}" for key in facts[0] if facts[0][key] != facts[1][key]
            )
            raise ConfigurationError(
                f"features of different networks ({named})",
                cure="Compute both sets with one extractor and its settings",
            )
        if self.view != other.view:
            raise ConfigurationError(
                f"features of {self.view or 'whole images'} and of {other.view or 'whole images'}",
                cure="Compare crops with crops of the same size and um/px",
            )

    def save(self, path: str | Path) -> None:
        """Writes one ``.npz``."""
        with replacing(Path(path)) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                format=_FORMAT,
                count=self.moments.count,
                mean=self.moments.mean,
                scatter=self.moments.scatter,
                sample=self.sample,
                ranks=self.ranks,
                keep=self.keep,
                view=self.view,
                short=[] if self.network.short is None else [self.network.short],
                network=[self.network.name, self.network.weights_hash, self.network.settings],
            )

    @classmethod
    def load(cls, path: str | Path) -> FeatureSet:
        """Reads what :meth:`save` wrote.

        Raises:
            ZoomfeatError: no such file, or another.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                if str(file["format"]) != _FORMAT:
                    raise ValueError(f"its format is {file['format']}")
                name, weights_hash, settings = map(str, file["network"])
                short = str(file["short"][0]) if len(file["short"]) else None
                moments = Moments(int(file["count"]), file["mean"], file["scatter"])
                network = Network(name, len(moments.mean), weights_hash, settings, short)
                return cls(network, moments, file["sample"], file["ranks"], int(file["keep"]), str(file["view"]))
        except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ZoomfeatError(
                f"holds no features of images ({' '.join(str(error).split())})",
                cure="Give a file that FeatureSet.save wrote",
                path=path,
            ) from error

    def _with(self, moments: Moments, features: NDArray[np.float32], ranks: NDArray[np.uint64]) -> FeatureSet:
        """These moments, and the lowest ranks of both samples."""
        sample, all_ranks = self.sample, self.ranks
        if len(ranks):
            all_ranks = np.concatenate([self.ranks, ranks])
            lowest = np.argsort(all_ranks, kind="stable")[: self.keep]
            sample, all_ranks = np.concatenate([self.sample, features])[lowest], all_ranks[lowest]
        return FeatureSet(self.network, moments, sample, all_ranks, self.keep, self.view)


def _rank(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")

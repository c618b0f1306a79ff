"""Bags as training reads them: feature matrices by magnification, from files, arrays or ``Bag`` objects.

Only headers are read ahead (``probe``); features are read bag by bag, so that memory does not grow with the cohort.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mil.stored import is_bag, matrix_shape, read_bag, read_matrix
from zoomfeat.bags import UNKNOWN, Bag, BagMetadata, find_parents, hdf5
from zoomfeat.bags.scales import AnyScale
from zoomfeat.errors import BagInvalidError, ConfigurationError, MagnificationError

PLAIN = ""
"""Name of the only scale of a bag that does not state its magnification: arrays, TRIDENT, CLAM, STAMP files."""


@dataclass(frozen=True, eq=False)
class Instances:
    """The instances of one bag in memory.

    Attributes:
        features: magnification name to (N_m, D_m) float32, finest first; the name is ``""`` where the source
            does not state one.
        parents: coarser magnification name to (N,) rows of that scale, one for each of the N finest instances.
    """

    features: dict[str, NDArray[np.float32]]
    parents: Mapping[str, NDArray[np.integer]]

    def __len__(self) -> int:
        """Number of instances at the finest magnification."""
        return len(next(iter(self.features.values())))

    @property
    def scales(self) -> tuple[str, ...]:
        """Names of the magnifications, finest first."""
        return tuple(self.features)

    def fused(self) -> NDArray[np.float32]:
        """(N, sum of D_m) float32: each finest instance beside its parent at every coarser magnification."""
        finest, *coarser = self.features
        if not coarser:
            return self.features[finest]
        return np.concatenate(
            [self.features[finest], *(self.features[name][self.parents[name]] for name in coarser)], axis=1
        )


BagSource = str | os.PathLike | NDArray | Bag | Instances | tuple["BagSource", ...]
"""What stands for a bag: the path of a file, an (N, D) array, a ``Bag``, ``Instances``, or a tuple of these, whose
instances then are one bag (the slides of a patient)."""


@dataclass(frozen=True)
class BagFacts:
    """What the bags of a cohort have in common, and how large they are.

    Attributes:
        widths: magnification name to feature length, finest first.
        encoder: name, weights hash and settings of the encoder; None where no bag states it.
        counts: (bags, magnifications) number of instances.
    """

    widths: dict[str, int]
    encoder: dict[str, Any] | None
    counts: NDArray[np.int64]


def load_instances(source: BagSource, scales: Sequence[str] | None = None, *, check: bool = True) -> Instances:
    """Reads a bag.

    Args:
        source: a zoomfeat bag, an HDF5 file of TRIDENT, CLAM or STAMP, a ``.pt`` or ``.npy`` matrix, an array,
            a ``Bag`` or ``Instances``.
        scales: the magnifications to read, finest first; None for all that the bag holds.
        check: refuse features that are not finite.

    Raises:
        BagInvalidError: the file is damaged, the bag is empty, or its features are not finite.
        MagnificationError: the bag lacks a magnification.
    """
    if isinstance(source, tuple):
        return _concatenated([load_instances(part, scales, check=check) for part in source])
    instances = _load(source, scales)
    _check_shapes({name: matrix.shape for name, matrix in instances.features.items()}, _path_of(source))
    if check:
        check_finite(instances, source)
    return instances


def check_finite(instances: Instances, source: BagSource) -> None:
    """Refuses a bag with NaN or infinite features.

    Raises:
        BagInvalidError: naming the file, the number of such rows and the first one.
    """
    for name, matrix in instances.features.items():
        # One sum is several times faster than a test of each value; it misses nothing but costs a look where it
        # overflows.
        with np.errstate(over="ignore", invalid="ignore"):
            suspicious = not np.isfinite(matrix.sum())
        if suspicious and (damaged := np.flatnonzero(~np.isfinite(matrix).all(axis=1))).size:
            raise BagInvalidError(
                f"{damaged.size} of {len(matrix)} {name} feature rows are not finite".replace("  ", " ")
                + f", the first is row {damaged[0]}",
                cure="Extract the slide again in float32; check the encoder's weights",
                path=_path_of(source),
            )


def probe(sources: Sequence[BagSource], scales: Sequence[str] | None = None) -> BagFacts:
    """What bags have in common, from their headers: no feature on disk is read.

    Args:
        sources: at least one bag.
        scales: the magnifications that will be used; None for those of the first bag.

    Raises:
        ConfigurationError: no bag, different widths or different encoders.
        BagInvalidError: a file is damaged, or a bag is empty.
        MagnificationError: a bag lacks a magnification.
    """
    if len(sources) == 0:
        raise ConfigurationError("no bag", cure="Give at least one")
    widths: dict[str, int] = {}
    encoder: dict[str, Any] | None = None
    counts = []
    for source in sources:
        shapes, found = _describe(source, scales)
        _check_shapes(shapes, _path_of(source))
        mine = {name: width for name, (_, width) in shapes.items()}
        if not widths:
            widths, scales = mine, tuple(mine)
        if mine != widths:
            raise ConfigurationError(
                f"features of {_lengths(mine)}, expected {_lengths(widths)} as in {_label(sources[0])}",
                cure="Train and predict on bags of one encoder, or name common magnifications with scales=",
                path=_path_of(source),
            )
        check_same_encoder(found, encoder, source)
        encoder = encoder or found
        counts.append([count for count, _ in shapes.values()])
    return BagFacts(widths, encoder, np.array(counts, dtype=np.int64))


_NO_SETTINGS = {"name", "weights_hash"}


def check_same_encoder(found: dict[str, Any] | None, expected: dict[str, Any] | None, source: BagSource) -> None:
    """Refuses features of another encoder; what one side does not state counts as equal.

    Raises:
        ConfigurationError: naming both encoders.
    """
    if found is None or expected is None:
        return
    keys = found.keys() | expected.keys()
    if found.keys() == _NO_SETTINGS or expected.keys() == _NO_SETTINGS:
        keys = _NO_SETTINGS  # other tools' bags name their encoder and none of its settings
    known = {key for key in keys if UNKNOWN not in (found.get(key), expected.get(key))}
    different = sorted(key for key in known if found.get(key) != expected.get(key))
    if different:
        raise ConfigurationError(
            f"features of encoder {_encoder_label(found, different)}, expected {_encoder_label(expected, different)}",
            cure="Extract all slides with one encoder and the same settings",
            path=_path_of(source),
        )


def encoder_identity(metadata: BagMetadata) -> dict[str, Any] | None:
    """What fixes the features of a bag: name, weights hash and settings of the encoder; None where unknown."""
    if metadata.encoder == UNKNOWN:
        return None
    return {"name": metadata.encoder, "weights_hash": metadata.weights_hash, **metadata.encoder_settings}


def _load(source: BagSource, scales: Sequence[str] | None) -> Instances:
    assert not isinstance(source, tuple)  # load_instances reads its parts one by one
    if isinstance(source, Instances):
        return _select(source, scales)
    if isinstance(source, Bag):
        return _from_scales(source.scales, source.parents, scales, source.path)
    if isinstance(source, np.ndarray):
        return _plain(_as_matrix(source), scales, None)
    path = Path(source)
    if not is_bag(path):
        return _plain(read_matrix(path), scales, path)
    if scales and (found := read_bag(path, scales)):
        return Instances(*found)
    stored, parents, _ = hdf5.read(path)
    return _from_scales(stored, parents, scales, path)


def _describe(
    source: BagSource, scales: Sequence[str] | None
) -> tuple[dict[str, tuple[int, ...]], dict[str, Any] | None]:
    """Shape of the features at each magnification, and the encoder, from the header alone."""
    if isinstance(source, tuple):
        facts = probe(source, scales)
        counts = facts.counts.sum(axis=0).tolist()
        return dict(zip(facts.widths, zip(counts, facts.widths.values(), strict=True), strict=True)), facts.encoder
    if isinstance(source, Instances):
        return {name: matrix.shape for name, matrix in _select(source, scales).features.items()}, None
    if isinstance(source, Bag):
        return _scale_shapes(source.scales, scales, source.path), encoder_identity(source.metadata)
    if isinstance(source, np.ndarray):
        return _plain_shape(_as_matrix(source).shape, scales, None), None
    path = Path(source)
    if not is_bag(path):
        return _plain_shape(matrix_shape(path), scales, path), None
    stored, _, metadata = hdf5.read(path)
    return _scale_shapes(stored, scales, path), encoder_identity(metadata)


def _from_scales(found: Sequence[AnyScale], parents: Any, scales: Sequence[str] | None, path: Path | None) -> Instances:
    chosen = _choose(found, scales, path)
    rows = {}
    for scale in chosen[1:]:
        # A bag stores the parents of its finest patches; those of others follow from where they lie.
        is_finest = chosen[0] is found[0]
        rows[scale.magnification] = parents[scale.magnification] if is_finest else find_parents(chosen[0], scale, path)
    return Instances({scale.magnification: scale.features for scale in chosen}, rows)


def _scale_shapes(
    found: Sequence[AnyScale], scales: Sequence[str] | None, path: Path | None
) -> dict[str, tuple[int, ...]]:
    return {scale.magnification: (len(scale), scale.dim) for scale in _choose(found, scales, path)}


def _choose(found: Sequence[AnyScale], scales: Sequence[str] | None, path: Path | None) -> list[AnyScale]:
    by_name = {scale.magnification: scale for scale in found}
    _check_names(list(by_name), scales, path)
    return sorted((by_name[name] for name in scales or by_name), key=lambda scale: scale.mpp)


def _select(instances: Instances, scales: Sequence[str] | None) -> Instances:
    names = list(instances.features)
    _check_names(names, scales, None)
    if scales is None or list(scales) == names:
        return instances
    kept = [name for name in names if name in scales]
    if len(kept) > 1 and kept[0] != names[0]:
        raise MagnificationError(
            f"instances state the parents of {names[0]} only, and {', '.join(kept)} was asked for",
            cure="Give the bag itself",
        )
    return Instances(
        {name: instances.features[name] for name in kept},
        {name: instances.parents[name] for name in kept[1:]},
    )


def _concatenated(parts: Sequence[Instances]) -> Instances:
    """The instances of several bags as one; rows of parents move by the coarser instances before them."""
    features = {name: np.concatenate([part.features[name] for part in parts]) for name in parts[0].features}
    parents = {}
    for name in parts[0].parents:
        starts = np.cumsum([0] + [len(part.features[name]) for part in parts[:-1]])
        parents[name] = np.concatenate([part.parents[name] + start for part, start in zip(parts, starts, strict=True)])
    return Instances(features, parents)


def _plain(matrix: NDArray[np.float32], scales: Sequence[str] | None, path: Path | None) -> Instances:
    _check_names([PLAIN], scales, path)
    return Instances({PLAIN: matrix}, {})


def _plain_shape(shape: tuple[int, ...], scales: Sequence[str] | None, path: Path | None) -> dict[str, tuple[int, ...]]:
    _check_names([PLAIN], scales, path)
    return {PLAIN: shape}


def _check_names(found: list[str], scales: Sequence[str] | None, path: Path | None) -> None:
    missing = [name for name in scales or () if name not in found]
    if missing:
        held = ", ".join(found) if found != [PLAIN] else "one matrix that states none"
        raise MagnificationError(
            f"no magnification {', '.join(missing)} in the bag, it holds {held}",
            cure="Name magnifications that every bag holds with scales=, or leave it out",
            path=path,
        )


def _check_shapes(shapes: dict[str, tuple[int, ...]], path: Path | None) -> None:
    for name, shape in shapes.items():
        if len(shape) != 2 or 0 in shape:
            raise BagInvalidError(
                f"{name or 'features'} has shape {shape}, expected (N, D) with at least one instance",
                cure="Leave slides without patches out",
                path=path,
            )


def _as_matrix(array: NDArray) -> NDArray[np.float32]:
    if array.dtype.kind not in "fiu":
        raise BagInvalidError(
            f"an array of type {array.dtype}, expected numbers (N, D)", cure="Give features as float32"
        )
    return np.require(array, dtype=np.float32, requirements=["C", "W"])  # PyTorch shares memory that it may write


def _path_of(source: BagSource) -> Path | None:
    if isinstance(source, tuple):
        return _path_of(source[0])
    if isinstance(source, Bag):
        return source.path
    return Path(source) if isinstance(source, str | os.PathLike) else None


def _label(source: BagSource) -> str:
    return str(_path_of(source) or "the first bag")


def _lengths(widths: dict[str, int]) -> str:
    return ", ".join(f"length {width} at {name}" if name else f"length {width}" for name, width in widths.items())


def _encoder_label(encoder: dict[str, Any], different: list[str]) -> str:
    rest = ", ".join(f"{key} {encoder.get(key)!r}" for key in different if key != "name")
    return f"{encoder['name']} ({rest})" if rest else str(encoder["name"])

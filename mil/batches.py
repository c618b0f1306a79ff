"""Bags into padded batches, read one batch ahead while the network computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mil.dataset import BagSource, Instances, load_instances


@dataclass(frozen=True)
class Sampling:
    """Which instances of a bag a training step sees.

    Attributes:
        max_instances: most instances of a bag and magnification; None for all.
        dropout: share of instances left out at random.
    """

    max_instances: int | None = None
    dropout: float = 0.0

    def rows(self, count: int, rng: np.random.Generator) -> NDArray[np.intp] | None:
        """Sorted rows to keep of ``count``, at least one; None for all."""
        kept = count - int(rng.binomial(count, self.dropout)) if self.dropout else count
        kept = max(1, min(kept, self.max_instances or kept))
        return None if kept == count else np.sort(rng.choice(count, kept, replace=False))


@dataclass(frozen=True)
class BagReader:
    """Reads bags as the network takes them: one matrix for each branch.

    Attributes:
        sources: the bags.
        scales: magnifications, finest first.
        fusion: ``"early"`` for one matrix of fused features, ``"late"`` for one a magnification.
    """

    sources: Sequence[BagSource]
    scales: tuple[str, ...]
    fusion: str

    @property
    def in_memory(self) -> bool:
        """Whether no bag has to be read from a disk."""
        return all(isinstance(source, np.ndarray | Instances) for source in self.sources)

    def read(self, bag: int, *, check: bool = False) -> list[NDArray[np.float32]]:
        """The matrices (N_i, D_i) of one bag.

        Raises:
            BagInvalidError: the bag is damaged or, with ``check``, its features are not finite.
        """
        return self.branches(self.instances(bag, check=check))

    def instances(self, bag: int, *, check: bool = False) -> Instances:
        """One bag at the reader's magnifications."""
        source = self.sources[bag]
        if isinstance(source, Instances) and source.scales == self.scales and not check:
            return source
        return load_instances(source, self.scales, check=check)

    def branches(self, instances: Instances) -> list[NDArray[np.float32]]:
        """The matrices (N_i, D_i) of instances in memory."""
        return [instances.fused()] if self.fusion == "early" else list(instances.features.values())


@dataclass(frozen=True)
class Part:
    """Bags of a batch that the network takes at once, padded to the longest.

    Attributes:
        features: (B, N_i, D_i) float32 for each branch; padding holds 0.
        masks: (B, N_i) bool for each branch, True for instances.
    """

    features: list[Tensor]
    masks: list[Tensor]

    def to(self, device: torch.device) -> Part:
        """The part on another device."""
        return Part(
            [values.to(device, non_blocking=True) for values in self.features],
            [mask.to(device, non_blocking=True) for mask in self.masks],
        )


@dataclass(frozen=True)
class Batch:
    """The bags of one step.

    Attributes:
        bags: their places in the reader, in the order of the parts.
        parts: small bags padded together, large ones by themselves and without a copy.
    """

    bags: NDArray[np.intp]
    parts: list[Part]


PART_INSTANCES = 4096
"""Most instances, padding included, of bags that are padded together: enough to keep a processor busy."""


def make_batch(bags: NDArray[np.intp], matrices: Sequence[Sequence[NDArray[np.float32]]]) -> Batch:
    """A batch of several bags.

    Args:
        bags: their places in the reader.
        matrices: of each bag, one (N_i, D_i) for each branch.
    """
    # By size, so that little is padded. Padding has no part in the result, but the order of sums has.
    lengths = [sum(map(len, branches)) for branches in matrices]
    order = np.argsort(lengths, kind="stable")
    parts: list[list[int]] = []
    for place in order:
        if parts and lengths[place] * (len(parts[-1]) + 1) <= PART_INSTANCES:
            parts[-1].append(int(place))
        else:
            parts.append([int(place)])
    return Batch(bags[order], [_pad([matrices[place] for place in part]) for part in parts])


def _pad(matrices: Sequence[Sequence[NDArray[np.float32]]]) -> Part:
    features, masks = [], []
    for branch in zip(*matrices, strict=True):
        lengths = torch.tensor([len(matrix) for matrix in branch])
        if len(branch) == 1:
            features.append(torch.from_numpy(branch[0])[None])
        else:
            padded = torch.zeros(len(branch), int(lengths.max()), branch[0].shape[1])
            for place, matrix in enumerate(branch):
                padded[place, : len(matrix)] = torch.from_numpy(matrix)
            features.append(padded)
        masks.append(torch.arange(int(lengths.max())) < lengths[:, None])
    return Part(features, masks)


def read_batches(
    reader: BagReader,
    groups: Sequence[NDArray[np.intp]],
    sampling: Sampling | None = None,
    seed: Sequence[int] = (0,),
    *,
    check: bool = False,
) -> Iterator[Batch]:
    """Yields one batch for each group of bags; the next is read while the caller works on this one.

    Args:
        reader: of the bags.
        groups: which bags make each batch.
        sampling: of instances; None for all of them.
        seed: fixes the sampling, together with the place of the batch.
        check: refuse features that are not finite.
    """

    def read(place: int) -> Batch:
        rng = np.random.default_rng([*seed, place])
        matrices = []
        for bag in groups[place]:
            branches = reader.read(int(bag), check=check)
            if sampling is not None:
                rows = [sampling.rows(len(branch), rng) for branch in branches]
                branches = [
                    branch if kept is None else branch[kept] for branch, kept in zip(branches, rows, strict=True)
                ]
            matrices.append(branches)
        return make_batch(np.asarray(groups[place]), matrices)

    if reader.in_memory:  # nothing to wait for, and handing over between threads costs more than a small batch
        yield from map(read, range(len(groups)))
        return
    with ThreadPoolExecutor(max_workers=1) as reading:
        ahead = reading.submit(read, 0) if groups else None
        for place in range(len(groups)):
            assert ahead is not None
            batch = ahead.result()
            ahead = reading.submit(read, place + 1) if place + 1 < len(groups) else None
            yield batch

"""Which items, timesteps and noise each training step sees: a function of seed and step, and of nothing else.

Every process works out the whole global batch and takes its share. So resuming, another number of processes or of
accumulated micro-batches changes neither what is seen nor in which order.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import pandas as pd
import torch
from diffusers import VQModel
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from zoomfeat.errors import ConfigurationError
from zoomfeat.magnification import Ladder, parse
from zoomfeat.models.zoomldm import as_input
from zoomfeat.words import shown

Levels = dict[int, NDArray[np.int64]]
"""Places in a data set by magnification index, finest first."""


class Sample(Protocol):
    """One item; what is not asked for need not be read."""

    @property
    def image(self) -> NDArray[np.uint8]:
        """The patch, ``(256, 256, 3)`` RGB."""
        ...

    @property
    def latent(self) -> NDArray[np.float32] | None:
        """Its first-stage latent ``(3, h, w)``; None where it was not stored."""
        ...

    @property
    def grid(self) -> NDArray[np.float32]:
        """Embeddings of the 20x patches below, ``(C, g, g)``, pooled to at most 8 x 8, not normalised."""
        ...


class TrainingData(Protocol):
    """What training asks of a data set; :class:`generation.data.TrainingSet` is one."""

    @property
    def magnifications(self) -> NDArray[np.integer]:
        """Index in the ladder of every item, known without reading them."""
        ...

    @property
    def slides(self) -> Sequence[str]:
        """Slide of every item, known without reading them."""
        ...

    @property
    def ladder(self) -> Ladder:
        """What the indices stand for."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


@dataclass(frozen=True)
class Batch:
    """Items side by side; tensors on the CPU until moved.

    Attributes:
        items: their places in the data set.
        images: ``(B, 3, 256, 256)`` in [-1, 1]; None where latents stand for them.
        latents: ``(B, 3, h, w)``; None where an item has none.
        grids: raw embeddings, ``(C, g, g)`` each.
        magnifications: ``(B,)`` indices in the ladder.
    """

    items: list[int]
    images: Tensor | None
    latents: Tensor | None
    grids: list[Tensor]
    magnifications: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        return Batch(
            self.items,
            None if self.images is None else self.images.to(device),
            None if self.latents is None else self.latents.to(device),
            [grid.to(device) for grid in self.grids],
            self.magnifications.to(device),
        )

    @torch.no_grad()
    def encoded(self, vae: VQModel) -> Tensor:
        """The stored latents, or the images through the first stage (not quantised)."""
        if self.latents is not None:
            return self.latents
        assert self.images is not None  # read_batch gives one of the two
        return vae.encode(self.images).latents * vae.config.scaling_factor


def read_batch(data: TrainingData, items: Sequence[int], *, images: bool = False) -> Batch:
    """Items of a data set; images are only decoded where a latent is missing, or when asked for."""
    samples = [data[i] for i in items]
    latents = [torch.from_numpy(latent) for sample in samples if (latent := sample.latent) is not None]
    complete = len(latents) == len(samples)
    return Batch(
        items=list(items),
        images=read_images(data, items) if images or not complete else None,
        latents=torch.stack(latents) if complete else None,
        grids=[torch.from_numpy(sample.grid) for sample in samples],
        magnifications=torch.tensor([int(data.magnifications[i]) for i in items]),
    )


def read_images(data: TrainingData, items: Sequence[int]) -> Tensor:
    """Images of a data set, ``(B, 3, 256, 256)`` in [-1, 1]."""
    return as_input(np.stack([data[i].image for i in items]))


@dataclass(frozen=True)
class Draw:
    """The choices of one step, for the whole global batch of B.

    Attributes:
        items: ``(B,)`` places in the data set.
        timesteps: ``(B,)``, 0 to 999.
        dropped: ``(B,)``, true where the condition is dropped.
    """

    items: NDArray[np.int64]
    timesteps: Tensor
    dropped: Tensor


@dataclass(frozen=True)
class Draws:
    """What every step sees, balanced over magnifications and not over data, as published.

    Attributes:
        levels: the items to draw from, an array a magnification.
        batch_size: the global one.
        seed: decides everything.
        drop: probability that the condition is dropped.
        timesteps: of the noise schedule.
    """

    levels: tuple[NDArray[np.int64], ...]
    batch_size: int
    seed: int
    drop: float = 0.1
    timesteps: int = 1000

    def at(self, step: int) -> Draw:
        """The choices of a step."""
        rng = np.random.default_rng([self.seed, step])
        chosen = rng.integers(len(self.levels), size=self.batch_size)
        items = np.array([rng.choice(self.levels[level]) for level in chosen], dtype=np.int64)
        timesteps = torch.from_numpy(rng.integers(self.timesteps, size=self.batch_size))
        return Draw(items, timesteps, torch.from_numpy(rng.random(self.batch_size) < self.drop))

    def noise(self, step: int, samples: slice, shape: Sequence[int]) -> Tensor:
        """Standard normal noise of some samples, ``(n, *shape)``, on the CPU so that every device sees the same.

        Args:
            step: the step.
            samples: places in the global batch.
            shape: of one latent.
        """
        return torch.stack(
            [seeded_normal(shape, self.seed, step, sample) for sample in range(samples.start, samples.stop)]
        )


def seeded_normal(shape: Sequence[int], *seed: int) -> Tensor:
    """Standard normal float32 numbers that depend on the seeds alone."""
    state = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
    # Generators take signed 64-bit seeds.
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(state >> 1))


@dataclass(frozen=True)
class Share:
    """One process's part of every global batch, in micro-batches.

    Attributes:
        batch_size: the global one.
        accumulate: micro-batches of each process a step.
        process: index of this process.
        processes: how many there are.
    """

    batch_size: int
    accumulate: int = 1
    process: int = 0
    processes: int = 1

    def __post_init__(self) -> None:
        parts = self.processes * self.accumulate
        if self.batch_size < 1 or self.batch_size % parts:
            raise ConfigurationError(
                f"batch_size={self.batch_size} does not divide into {self.processes} processes times "
                f"{self.accumulate} accumulated micro-batches",
                cure=f"Choose a multiple of {parts}; batch_size counts the samples of all processes in one step",
            )

    @property
    def micro_batches(self) -> list[tuple[slice, slice]]:
        """Places in the global batch: for each micro-batch this process's, and those of all processes together.

        The latter are consecutive, so gathering the processes' results restores the order of the batch.
        """
        size = self.batch_size // (self.processes * self.accumulate)
        together = size * self.processes
        micro_batches = []
        for start in range(0, self.batch_size, together):
            own = start + self.process * size
            micro_batches.append((slice(own, own + size), slice(start, start + together)))
        return micro_batches


T = TypeVar("T")


class _Reads(Dataset[T]):
    """A data set whose index is the places of a whole micro-batch."""

    def __init__(self, data: TrainingData, read: Callable[[TrainingData, list[int]], T]) -> None:
        self._data, self._read = data, read

    def __getitem__(self, items: list[int]) -> T:
        return self._read(self._data, items)


class _Steps(Sampler[list[int]]):
    """The items of this process's micro-batches, step by step."""

    def __init__(self, draws: Draws, share: Share, steps: range) -> None:
        self._draws, self._share, self._steps = draws, share, steps

    def __iter__(self) -> Iterator[list[int]]:
        for step in self._steps:
            items = self._draws.at(step).items
            for samples, _ in self._share.micro_batches:
                yield items[samples].tolist()


def load_batches(
    data: TrainingData,
    draws: Draws,
    share: Share,
    steps: range,
    workers: int,
    read: Callable[[TrainingData, list[int]], T],
) -> Iterator[T]:
    """This process's micro-batches of those steps, in order.

    Args:
        data: the data set.
        draws: which items a step sees.
        share: this process's part of them.
        steps: the steps.
        workers: processes that read ahead; 0: none.
        read: makes a micro-batch of items, :func:`read_batch` or :func:`read_images`.
    """
    return iter(
        DataLoader(_Reads(data, read), sampler=_Steps(draws, share, steps), batch_size=None, num_workers=workers)
    )


def choose_items(
    data: TrainingData, names: Sequence[str], held_out: float | Sequence[str], seed: int
) -> tuple[Levels, Levels]:
    """Items to train on and items held out, by magnification; a slide is wholly in one of the two.

    Args:
        data: the training set.
        names: magnifications to use; none: all that the data hold.
        held_out: share of the slides that is held out (above 0, at least one slide where there are two), or the names
            of those slides, with ``*`` for any letters.
        seed: decides which share.

    Returns:
        Both; the second is empty where nothing is to be held out or all is one slide's.

    Raises:
        ConfigurationError: a magnification is asked for that no training item has, a name that no slide has, or the
            data are empty.
    """
    magnifications = np.asarray(data.magnifications)
    slide, names_of_slides = pd.factorize(np.asarray(data.slides), sort=True)
    if isinstance(held_out, float | int):
        number = len(names_of_slides)
        count = min(max(1, round(held_out * number)), number - 1) if held_out > 0 else 0
        held_out_slides = np.random.default_rng(seed).permutation(number)[:count].tolist()
    else:
        held_out_slides = _named(held_out, list(names_of_slides))
    chosen = np.isin(slide, held_out_slides)
    training = _by_level(np.flatnonzero(~chosen), magnifications)
    validation = _by_level(np.flatnonzero(chosen), magnifications)
    if not training:
        raise ConfigurationError("the data set is empty", cure="See the report of `zoomfeat prepare`")
    steps = data.ladder.steps
    wanted = [step.index for step in parse(list(names), data.ladder)] if names else list(training)
    if missing := [level for level in wanted if level not in training]:
        raise ConfigurationError(
            f"the training items hold no {', '.join(str(steps[level]) for level in missing)}; "
            f"they hold {', '.join(str(steps[level]) for level in training)}",
            cure="Prepare those magnifications too, or leave them out of magnifications=",
        )
    return _only(training, wanted), _only(validation, wanted)


def _named(patterns: Sequence[str], slides: list[str]) -> list[int]:
    """Places of the slides whose names fit one of the patterns."""
    for pattern in patterns:
        if not fnmatch.filter(slides, pattern):
            raise ConfigurationError(
                f"held_out_slides: no slide is called {pattern!r}", cure=f"The data hold {', '.join(slides[:5])}, ..."
            )
    return [place for place, name in enumerate(slides) if any(fnmatch.fnmatch(name, p) for p in patterns)]


def _only(levels: Levels, wanted: Sequence[int]) -> Levels:
    return {level: levels[level] for level in wanted if level in levels}


def _by_level(items: NDArray[np.int64], magnifications: NDArray[np.integer]) -> Levels:
    of_items = magnifications[items]
    return {int(level): items[of_items == level] for level in np.unique(of_items)}


def describe(data: TrainingData, items: Sequence[int] | NDArray[np.int64], limit: int = 4) -> str:
    """Items for a message: place, slide and magnification of the first few."""
    return shown(
        [f"item {i} ({data.ladder.steps[int(data.magnifications[i])]} of {data.slides[i]})" for i in items], limit
    )

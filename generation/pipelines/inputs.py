"""What users hand to a pipeline, checked before anything is computed, and one random source a sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from zoomfeat.errors import ConfigurationError
from zoomfeat.magnification import Ladder, Magnification

Embeddings = Tensor | NDArray[Any]
"""Embeddings of the finest patches under one region ``(C, g, g)``, or under several ``(B, C, g, g)``."""

Name = str | float | Magnification
"""How users write a magnification."""


def as_grids(embeddings: Embeddings | Sequence[Embeddings]) -> list[Tensor]:
    """One tensor a region.

    Raises:
        ConfigurationError: none at all, or neither ``(C, g, g)`` nor ``(B, C, g, g)``.
    """
    if isinstance(embeddings, Sequence):
        grids = [torch.as_tensor(grid) for grid in embeddings]
    else:
        several = torch.as_tensor(embeddings)
        grids = [several] if several.ndim == 3 else list(several) if several.ndim == 4 else [several]
    for grid in grids:
        if grid.ndim != 3:
            raise ConfigurationError(
                f"embeddings of shape {tuple(grid.shape)}; expected (channels, rows, columns) for each region",
                cure="Give one grid (C, g, g), a batch (B, C, g, g), or a list of grids",
            )
    if not grids:
        raise ConfigurationError("no embeddings in ssl_embeddings", cure="Give at least one grid")
    return grids


def check_grid(grid: Tensor, magnification: Magnification, width: int) -> None:
    """Refuses a grid that a Summarizer does not read at that magnification.

    Args:
        grid: ``(C, h, w)``.
        magnification: its rows are 2**index, or 8 where they were pooled.
        width: channels that the Summarizer reads.

    Raises:
        ConfigurationError: another width, another number of rows or columns, no floating-point numbers, or NaN.
    """
    sides = dict.fromkeys((magnification.grid, magnification.pooled_grid))
    expected = " or ".join(f"({width}, {side}, {side})" for side in sides)
    if grid.shape[0] != width:
        raise ConfigurationError(
            f"embeddings of width {grid.shape[0]}; the model reads {width}",
            cure="Use the encoder that the model was trained with",
        )
    if grid.shape[1] != grid.shape[2] or grid.shape[1] not in sides:
        raise ConfigurationError(
            f"embeddings of shape {tuple(grid.shape)} for {magnification}; expected {expected}",
            cure="Give one embedding for each of the finest patches under the region, rows downwards",
        )
    if not grid.is_floating_point():
        raise ConfigurationError(f"embeddings of type {grid.dtype}", cure="Give floating-point numbers")
    if not grid.isfinite().all():
        raise ConfigurationError(
            f"the embeddings for {magnification} hold NaN or infinity", cure="Embed the patches again, in float32"
        )


def read_magnifications(wanted: Name | Sequence[Name] | None, ladder: Ladder, grids: int | None) -> list[Magnification]:
    """One step of the ladder for each region.

    Args:
        wanted: one for all, or one each.
        ladder: what the model knows.
        grids: regions there are; null: as many as named.

    Raises:
        MagnificationError: a name that the ladder lacks.
        ConfigurationError: none named, or not as many as there are regions.
    """
    if wanted is None:
        raise ConfigurationError("magnification= is missing", cure=f"Give for example {ladder.steps[0]}")
    names = [wanted] if isinstance(wanted, str | float | int | Magnification) else list(wanted)
    steps = [ladder[name] for name in names]
    if grids is not None and len(steps) == 1:
        steps *= grids
    if not steps or (grids is not None and len(steps) != grids):
        raise ConfigurationError(
            f"{len(steps)} magnifications for {grids or 'no'} grids of embeddings",
            cure="Give one magnification for all, or a list with one a grid",
        )
    return steps


def check_rows(name: str, given: Tensor, rows: int | None, shape: tuple[int, ...]) -> None:
    """Refuses a tensor that is not ``rows`` (null: any number from 1) times ``shape``, or not finite.

    Raises:
        ConfigurationError: one line with the shape found and the one expected.
    """
    if given.shape[1:] != shape or not len(given) or (rows is not None and len(given) != rows):
        expected = ", ".join(map(str, ("B" if rows is None else rows, *shape)))
        raise ConfigurationError(
            f"{name} of shape {tuple(given.shape)}; expected ({expected})", cure=f"See what the pipeline says of {name}"
        )
    if not given.isfinite().all():
        raise ConfigurationError(f"{name} holds NaN or infinity", cure="Make it again, in float32")


def one_each(generator: torch.Generator | Sequence[torch.Generator] | None, samples: int) -> list[torch.Generator]:
    """A random source for each sample.

    Raises:
        ConfigurationError: a list of another length.
    """
    if generator is None or isinstance(generator, torch.Generator):
        return spawn(generator, samples)
    if len(generator) != samples:
        raise ConfigurationError(
            f"{len(generator)} generators for {samples} samples",
            cure="Give one generator, from which each sample's own is spawned, or a list with one a sample",
        )
    return list(generator)


def spawn(generator: torch.Generator | None, samples: int) -> list[torch.Generator]:
    """Generators on the CPU, seeded by one draw each from ``generator``, or from torch's default.

    The first of many are those of few, and two calls with the same generator continue each other.
    """
    device = "cpu" if generator is None else generator.device
    seeds = [torch.randint(2**63 - 1, (), generator=generator, device=device).item() for _ in range(samples)]
    return [torch.Generator().manual_seed(int(seed)) for seed in seeds]

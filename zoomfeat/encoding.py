"""Patches of a slide in, features out.

Reading and encoding overlap: threads decode regions ahead, in the order of the reading plan, while the encoder
runs. Rows are written where the grid says, so neither the number of threads nor the batch size changes a bag.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from zoomfeat.encoders import PatchEncoder
from zoomfeat.errors import ZoomfeatError
from zoomfeat.magnification import MAX_GRID, PATCH_SIZE
from zoomfeat.slide_log import log
from zoomfeat.slides import Grid, Scale, Slide, read_region, regions

Advance = Callable[[int, int], None]
"""Told how many patches of a slide are encoded, and how many it has."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Encoded:
    """What one encoder made of a grid.

    Attributes:
        features: one array ``(N, dim)`` a scale.
        seconds: that the encoder took.
    """

    features: list[NDArray[np.float32]]
    seconds: float


def encode_grid(
    slide: Slide, grid: Grid, encoders: Sequence[PatchEncoder], batch_size: int, workers: int, advance: Advance
) -> list[Encoded]:
    """Features of every patch of a grid by every encoder, each region of the slide being read once.

    Args:
        slide: where the pixels are.
        grid: which patches.
        encoders: each is run at each scale's magnification.
        batch_size: patches a call of an encoder.
        workers: threads that read ahead.
        advance: told of progress after every call of an encoder.
    """
    scaled = [[encoder.at(scale.magnification) for scale in grid.scales] for encoder in encoders]
    features = [[np.empty((len(scale.coords), e.dim), np.float32) for scale in grid.scales] for e in encoders]
    seconds = [0.0] * len(encoders)
    limits = [batch_size] * len(encoders)
    waiting: list[list[tuple[int, NDArray[np.uint8]]]] = [[] for _ in grid.scales]
    total = len(encoders) * sum(len(scale.coords) for scale in grid.scales)
    done = 0

    def encode(i: int, count: int) -> None:
        nonlocal done
        batch, waiting[i] = waiting[i][:count], waiting[i][count:]
        rows = np.array([row for row, _ in batch])
        patches = np.stack([patch for _, patch in batch])
        for j, encoder in enumerate(scales[i] for scales in scaled):
            start = time.perf_counter()
            context = _context(slide, grid.scales[i], rows, encoder, limits[j])
            features[j][i][rows], limits[j] = _encode_within_memory(encoder, patches, context, limits[j])
            seconds[j] += time.perf_counter() - start
            done += len(batch)
            advance(done, total)

    advance(0, total)
    for parts in _read_ahead(lambda region: read_region(slide, region), regions(grid), workers):
        for i, rows, patches in parts:
            waiting[i] += zip(rows, patches, strict=True)
            while len(waiting[i]) >= batch_size:
                encode(i, batch_size)
    for i, rest in enumerate(waiting):
        if rest:
            encode(i, len(rest))
    return [Encoded(arrays, took) for arrays, took in zip(features, seconds, strict=True)]


def _encode_within_memory(
    encoder: PatchEncoder, patches: NDArray[np.uint8], context: NDArray[np.float32] | None, limit: int
) -> tuple[NDArray[np.float32], int]:
    """Features of a batch, in parts of half the size whenever memory runs out.

    Returns:
        The features, and how many patches at once went well: the ``limit`` of the next batch.

    Raises:
        ZoomfeatError: memory is too little for one patch.
    """
    parts: list[NDArray[np.float32]] = []
    start = 0
    while start < len(patches):
        part = slice(start, start + limit)
        size = len(patches[part])
        try:
            parts.append(encoder(patches[part], None if context is None else context[part]))
            start += size
            continue
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            if size == 1:
                raise ZoomfeatError(
                    f"memory is too little for one patch of {encoder.name}",
                    cure="Use device=cpu, a machine with more memory, or end what else runs there",
                ) from error
        # Only here, behind the handler, is the memory of what failed free again.
        limit = size // 2
        torch.cuda.empty_cache()
        log.warning("out of memory with %d patches of %s at once; going on with %d", size, encoder.name, limit)
    return np.concatenate(parts), limit


def _is_out_of_memory(error: Exception) -> bool:
    """Whether an error says so; on a CPU, and in cuDNN and cuBLAS, PyTorch has no type of its own for it."""
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or "DefaultCPUAllocator" in str(error) or "ALLOC_FAILED" in str(error)


def _read_ahead(read: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Results in order, read by threads that run at most a few items ahead of the consumer."""
    queue = iter(items)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="read")
    try:
        pending = deque(pool.submit(read, item) for item in islice(queue, 2 * workers))
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(read, item) for item in islice(queue, 1))
            yield result
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _context(
    slide: Slide, scale: Scale, rows: NDArray[np.integer], encoder: PatchEncoder, batch_size: int
) -> NDArray[np.float32] | None:
    """Embeddings of the finest patches under some patches, ``(len(rows), C, g, g)``, for a conditioned encoder."""
    side = scale.magnification.grid
    if encoder.context_encoder is None or side == 1:
        return None
    embed = encoder.context_encoder
    context = np.empty((len(rows), embed.dim, side, side), np.float32)
    block = min(side, MAX_GRID)  # finest patches a side that are read at once, so that memory stays bounded
    width, height = (length // side for length in scale.size)
    for i, (x, y) in enumerate(scale.coords[rows]):
        for top in range(0, side, block):
            for left in range(0, side, block):
                box = (int(x) + left * width, int(y) + top * height, block * width, block * height)
                (canvas,) = slide.read(*box, sizes=[(block * PATCH_SIZE, block * PATCH_SIZE)])
                cells = canvas.reshape(block, PATCH_SIZE, block, PATCH_SIZE, 3).swapaxes(1, 2)
                patches = cells.reshape(-1, PATCH_SIZE, PATCH_SIZE, 3)
                parts = [embed(patches[start : start + batch_size]) for start in range(0, len(patches), batch_size)]
                grid = np.concatenate(parts).T.reshape(embed.dim, block, block)
                context[i, :, top : top + block, left : left + block] = grid
    return context

"""Synthetic slides for the coarse magnifications: drawn layouts, filled with the texture of real tissue.

There is one small real slide and no gigapixel one to train on. These have pieces of tissue on glass, regions inside
them, lumens and ragged edges, all drawn; inside a region lies real H&E, mirrored over and over, without its own slow
changes of colour. They are marked as synthetic, show no anatomy and are for training `zoomldm-tiny` only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

from benchmarks.tiny.images import stain, to_density, to_rgb
from zoomfeat.files import replacing
from zoomfeat.slides.synthetic import MARK

_CELL = 32  # px of level 0 a cell of the drawn layout
_TILE = 1024
_GLASS = to_density(np.array([[[243, 241, 243]]], np.uint8))[0, 0]
_MPP = 0.5


@dataclass(frozen=True, eq=False)
class Layout:
    """What lies where, in cells of 32 px.

    Attributes:
        tissue: ``(h, w)`` float32, above 0.5 inside a piece of tissue.
        regions: ``(h, w, K)`` float32, share of each texture; they sum to 1.
        density: ``(h, w)`` float32, factor on the optical density; 0 in a lumen.
        places: ``(h, w, K, 2)`` float32, x and y in each texture; bent, so that its repetition is not seen.
    """

    tissue: NDArray[np.float32]
    regions: NDArray[np.float32]
    density: NDArray[np.float32]
    places: NDArray[np.float32]


def write_collage(
    path: Path, textures: Sequence[NDArray[np.uint8]], rng: np.random.Generator, tissue_patches: int = 1200
) -> None:
    """Writes a synthetic pyramidal TIFF of 16 to 33 thousand px a side at 0.5 um/px.

    Args:
        path: the file, ending in ``.tiff``.
        textures: real H&E at about 0.5 um/px, each ``(H, W, 3)``.
        rng: decides everything.
        tissue_patches: about how many 20x patches of tissue it holds.
    """
    width, height = (int(side) * _TILE for side in rng.integers(16, 33, 2))
    chosen = rng.permutation(len(textures))[: rng.integers(2, 5)]
    densities = [_flat(to_density(textures[i])) @ stain(rng) for i in chosen]
    layout = _layout(rng, width // _CELL, height // _CELL, len(chosen), tissue_patches * (256 // _CELL) ** 2)
    thumbnails = np.full((height // 4, width // 4, 3), to_rgb(_GLASS), np.uint8)

    def tiles() -> Iterator[NDArray[np.uint8]]:
        for y in range(0, height, _TILE):
            for x in range(0, width, _TILE):
                tile = _tile(x, y, layout, densities)
                small = cv2.resize(tile, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
                thumbnails[y // 4 : (y + _TILE) // 4, x // 4 : (x + _TILE) // 4] = small
                yield tile

    with replacing(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=True) as tiff:
        _write(tiff, tiles(), (height, width, 3), 1)
        _write(tiff, thumbnails, thumbnails.shape, 4)
        _write(tiff, cv2.resize(thumbnails, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA), None, 16)


def _write(tiff: tifffile.TiffWriter, pixels: object, shape: tuple[int, ...] | None, downsample: int) -> None:
    scale = 1e4 / (_MPP * downsample)
    tiff.write(
        pixels,
        shape=shape,
        dtype=np.uint8,
        resolution=(scale, scale),
        resolutionunit="CENTIMETER",
        subfiletype=0 if downsample == 1 else 1,
        description=MARK if downsample == 1 else None,
        software="zoomfeat",
        photometric="rgb",
        tile=(_TILE, _TILE) if downsample == 1 else (256, 256),
        compression="jpeg",
        compressionargs={"level": 92},
        metadata=None,
    )


def _flat(density: NDArray[np.float32]) -> NDArray[np.float32]:
    """A texture without its slow changes, whose repetition would show at coarse magnifications."""
    slow = cv2.GaussianBlur(density, (0, 0), 64, borderType=cv2.BORDER_REFLECT)
    return density - slow + density.mean((0, 1))


def _layout(rng: np.random.Generator, width: int, height: int, textures: int, area: float) -> Layout:
    pieces = int(rng.integers(1, 5))
    y, x = np.mgrid[:height, :width].astype(np.float32)
    tissue = np.zeros((height, width), np.float32)
    edge = _noise(rng, width, height, 60) + 0.5 * _noise(rng, width, height, 12) + 0.25 * _noise(rng, width, height, 4)
    for share in rng.dirichlet([3] * pieces):
        radius = np.sqrt(area * share / np.pi)
        stretch = float(rng.uniform(0.6, 1.6))
        cx, cy = rng.uniform(0.2, 0.8) * width, rng.uniform(0.2, 0.8) * height
        turn = rng.uniform(0, np.pi)
        u = (x - cx) * np.cos(turn) + (y - cy) * np.sin(turn)
        v = (y - cy) * np.cos(turn) - (x - cx) * np.sin(turn)
        power = float(rng.choice([2, 2, 4]))  # round, or cut like a block
        distance = (np.abs(u / (radius * stretch)) ** power + np.abs(v * stretch / radius) ** power) ** (1 / power)
        tissue = np.maximum(tissue, 1.5 - distance + 0.18 * edge)
    grain = float(rng.uniform(12, 80))
    fields = np.stack([_noise(rng, width, height, grain) for _ in range(textures)], axis=-1)
    fields += 0.5 * np.stack([_noise(rng, width, height, grain / 4) for _ in range(textures)], axis=-1)
    weights = np.exp(6 * (fields - fields.max(-1, keepdims=True)))
    regions = (weights / weights.sum(-1, keepdims=True)).astype(np.float32)
    density = 1 + 0.12 * _noise(rng, width, height, 30) + 0.08 * _noise(rng, width, height, 5)
    lumens = _noise(rng, width, height, float(rng.uniform(3, 10))) > rng.uniform(1.3, 2.5)
    porous = _noise(rng, width, height, grain) > 0.3
    density[lumens & porous] = 0
    places = np.stack([_bent(rng, x * _CELL, y * _CELL) for _ in range(textures)], axis=2)
    return Layout(tissue, regions, density.astype(np.float32), places)


def _bent(rng: np.random.Generator, x: NDArray[np.float32], y: NDArray[np.float32]) -> NDArray[np.float32]:
    """Coordinates turned as a whole and bent by a few hundred px over some thousand, ``(h, w, 2)``."""
    height, width = x.shape
    turn = rng.uniform(0, 2 * np.pi)
    turned = x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)
    bends = [240 * _noise(rng, width, height, 50) + 60 * _noise(rng, width, height, 20) for _ in turned]
    return np.stack([side + bend for side, bend in zip(turned, bends, strict=True)], axis=-1).astype(np.float32)


def _noise(rng: np.random.Generator, width: int, height: int, grain: float) -> NDArray[np.float32]:
    """Smooth noise of about unit deviation; its grain is in cells."""
    shape = max(4, round(height / grain) + 3), max(4, round(width / grain) + 3)
    grid = rng.normal(size=shape).astype(np.float32)
    return np.asarray(cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)


def _tile(x: int, y: int, layout: Layout, densities: Sequence[NDArray[np.float32]]) -> NDArray[np.uint8]:
    margin = 2  # cells, so that tiles join smoothly
    height, width = layout.tissue.shape
    rows = np.clip(np.arange(y // _CELL - margin, (y + _TILE) // _CELL + margin), 0, height - 1)
    columns = np.clip(np.arange(x // _CELL - margin, (x + _TILE) // _CELL + margin), 0, width - 1)
    window = np.ix_(rows, columns)
    if layout.tissue[window].max() < 0.4:
        return np.broadcast_to(to_rgb(_GLASS), (_TILE, _TILE, 3))
    inside = slice(margin * _CELL, margin * _CELL + _TILE)

    def enlarged(field: NDArray[np.float32]) -> NDArray[np.float32]:
        large = cv2.resize(field, None, fx=_CELL, fy=_CELL, interpolation=cv2.INTER_CUBIC)
        return np.asarray(large, np.float32)[inside, inside]

    density = np.clip(enlarged(layout.density[window]), 0, 2)
    density *= np.clip((enlarged(layout.tissue[window]) - 0.5) * 12, 0, 1)
    total = np.zeros((_TILE, _TILE, 3), np.float32)
    for k, texture in enumerate(densities):
        share = np.clip(enlarged(layout.regions[window][..., k]), 0, 1)
        if share.max() > 0.01:
            places = enlarged(layout.places[window][:, :, k])
            total += share[..., None] * _mirrored(texture, places)
    return to_rgb(total * density[..., None] + _GLASS)


def _mirrored(texture: NDArray[np.float32], places: NDArray[np.float32]) -> NDArray[np.float32]:
    """The texture, mirrored without end, at those places ``(h, w, 2)``."""
    sides = np.array(texture.shape[1::-1], np.float32)
    folded = np.mod(places, 2 * sides)
    folded = np.clip(np.minimum(folded, 2 * sides - folded), 0, sides - 1)
    x, y = np.ascontiguousarray(folded[..., 0]), np.ascontiguousarray(folded[..., 1])
    return np.asarray(cv2.remap(texture, x, y, cv2.INTER_LINEAR), np.float32)

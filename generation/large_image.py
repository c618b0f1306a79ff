"""Images of many patches: one latent for all, its seams removed, decoded in overlapping windows.

Source: ZoomLDM (CVPR 2025, section 3, and its release). The patches of a large image are sampled side by side; a short
second pass over windows that overlap by half removes their seams, with embeddings that are interpolated on the sphere;
decoded windows overlap too and blend.

In both, the release's weights (equal ones, and a Gaussian that ends at a fifth) leave a step where a window ends, and
there the padding of convolutions shows. Here the default is a weight that vanishes at the edge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from generation.joint_guidance import Estimate, NoiseLevel, estimate
from zoomfeat.models.summarizer import embedding_grid
from zoomfeat.models.zoomldm import ZoomLDM

Weight = Callable[[int], Tensor]
"""From the side of a window to the weight of each of its places, ``(side, side)``."""


def raised_cosine(side: int) -> Tensor:
    """A weight that falls to zero at the edges; windows that overlap by half add up to one (Hann's window)."""
    line = torch.sin(torch.pi * (torch.arange(side) + 0.5) / side).square()
    return line[:, None] * line[None]


def uniform(side: int) -> Tensor:
    """Equal weights."""
    return torch.ones(side, side)


def merge(patches: Tensor, columns: int) -> Tensor:
    """Patches ``(N, C, h, w)``, row by row, as one ``(C, H, W)``."""
    rows = [torch.cat(list(patches[start : start + columns]), dim=2) for start in range(0, len(patches), columns)]
    return torch.cat(rows, dim=1)


def window_starts(length: int, window: int) -> range:
    """Where windows that overlap by half start, in a line of whole windows."""
    return range(0, length - window + 1, window // 2)


def between(embeddings: Tensor, row: float, column: float) -> Tensor:
    """The embedding at a place between patches: interpolated on the sphere, first along rows, and normalised again.

    Args:
        embeddings: one a patch, ``(C, R, C')``, normalised over their channels.
        row: place in patches, 0 to R - 1; 0.5 is half-way between the first two.
        column: the same across.

    Returns:
        ``(C, 1, 1)``.
    """
    top, left = int(row), int(column)
    bottom, right = min(top + 1, embeddings.shape[1] - 1), min(left + 1, embeddings.shape[2] - 1)
    upper = _slerp(embeddings[:, top, left], embeddings[:, top, right], column - left)
    lower = _slerp(embeddings[:, bottom, left], embeddings[:, bottom, right], column - left)
    return embedding_grid(_slerp(upper, lower, row - top)[None, :, None, None])[0]


def _slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Spherical interpolation between two vectors (Shoemake, "Animating rotation with quaternion curves", 1985)."""
    cosine = torch.dot(a / a.norm(), b / b.norm()).clamp(-1, 1)
    angle = torch.acos(cosine)
    if torch.sin(angle) < 1e-6:  # the same direction, or opposite ones, between which no path is the shortest
        return (1 - share) * a + share * b
    return (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / torch.sin(angle)


def window_estimate(
    bundle: ZoomLDM,
    state: Tensor,
    level: NoiseLevel,
    embeddings: Tensor | None,
    scale: float,
    *,
    window: int,
    batch_size: int,
    weight: Weight = raised_cosine,
    clip: bool = False,
    finished: Callable[[int], None] = lambda windows: None,
) -> Estimate:
    """Clean latent and noise of a large state, averaged over windows of the denoiser that overlap by half.

    Args:
        bundle: the model.
        state: ``(C, H, W)``, both sides multiples of half a window.
        level: how noisy it is.
        embeddings: of the finest magnification, one a patch, normalised, ``(D, H / window, W / window)``; None: no
            condition.
        scale: of classifier-free guidance.
        window: its side, the latent side of a patch.
        batch_size: windows at once.
        weight: of a window's places in the mean.
        clip: as in :class:`generation.joint_guidance.Pull`.
        finished: is called with the number of windows of every batch.
    """
    places = [(y, x) for y in window_starts(state.shape[1], window) for x in window_starts(state.shape[2], window)]
    total, weights = torch.zeros_like(state), torch.zeros_like(state[:1])
    each = weight(window).to(state)
    for start in range(0, len(places), batch_size):
        batch = places[start : start + batch_size]
        tokens = None
        if embeddings is not None:
            cells = torch.stack([between(embeddings, y / window, x / window) for y, x in batch])
            tokens = bundle.summarizer(cells, 0)
        cut = torch.stack([state[:, y : y + window, x : x + window] for y, x in batch])
        for (y, x), clean in zip(batch, estimate(bundle, cut, level, tokens, scale, clip).clean, strict=True):
            total[:, y : y + window, x : x + window] += each * clean
            weights[:, y : y + window, x : x + window] += each
        finished(len(batch))
    clean = total / weights
    return Estimate(clean, (state - level.signal**0.5 * clean) / (1 - level.signal) ** 0.5)


def diffused(clean: Tensor, level: NoiseLevel, noise: Tensor) -> Tensor:
    """A clean latent taken up to a noise level."""
    return level.signal**0.5 * clean + (1 - level.signal) ** 0.5 * noise


def seam_step(now: Estimate, level: NoiseLevel, noise: Tensor) -> Tensor:
    """The state of the next noise level; here the predicted noise makes room for the variance that is added."""
    kept = max(1 - level.next_signal - level.variance, 0.0)
    return level.next_signal**0.5 * now.clean + kept**0.5 * now.noise + level.variance**0.5 * noise


def decode_bands(
    bundle: ZoomLDM, latent: Tensor, *, window: int, batch_size: int, weight: Weight = raised_cosine
) -> Iterator[Tensor]:
    """The image of a large latent, from top to bottom, without ever holding it whole.

    Args:
        bundle: its first stage decodes, through the nearest codes.
        latent: ``(C, H, W)``, both sides at least a window and multiples of half a window.
        window: side of the windows, which overlap by half.
        batch_size: windows at once.
        weight: under which they blend.

    Yields:
        ``(3, height, W * f)``, not clamped; together ``H * f`` rows.
    """
    columns = window_starts(latent.shape[2], window)
    each: Tensor | None = None
    values = weights = torch.empty(0)
    for top in window_starts(latent.shape[1], window):
        rows = latent[:, top : top + window]
        for start in range(0, len(columns), batch_size):
            lefts = columns[start : start + batch_size]
            tiles = bundle.decode(torch.stack([rows[:, :, x : x + window] for x in lefts])).float()
            if each is None:
                side = tiles.shape[-1]
                factor = side // window
                each = weight(side).to(tiles)
                values = tiles.new_zeros(3, side, latent.shape[2] * factor)
                weights = torch.zeros_like(values[0])
            for x, tile in zip(lefts, tiles, strict=True):
                values[:, :, x * factor : x * factor + side] += each * tile
                weights[:, x * factor : x * factor + side] += each
        half = side // 2
        yield values[:, :half] / weights[:half]
        # What the next row of windows shares with this one moves up.
        values = torch.cat([values[:, half:], torch.zeros_like(values[:, :half])], dim=1)
        weights = torch.cat([weights[half:], torch.zeros_like(weights[:half])])
    yield values[:, :half] / weights[:half]

"""The patches of an image at one magnification, their conditions, and what pulls at them from above."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from zoomfeat.magnification import Magnification
from zoomfeat.models.summarizer import embedding_grid
from zoomfeat.models.zoomldm import ZoomLDM


@dataclass(frozen=True)
class Mosaic:
    """The patches of one magnification, side by side.

    Attributes:
        magnification: theirs.
        rows: patches downwards.
        columns: patches across.
        embeddings: of the finest magnification under all of them, ``(D, rows * grid, columns * grid)``; None: their
            condition is ``tokens``, or nothing.
        tokens: the condition of each as Summarizer tokens ``(rows * columns, 65, D)``.
    """

    magnification: Magnification
    rows: int
    columns: int
    embeddings: Tensor | None = None
    tokens: Tensor | None = None

    def conditions(self, bundle: ZoomLDM, patches: Sequence[int]) -> Tensor | None:
        """Summarizer tokens of some patches, made when needed: those of all would fill the memory."""
        if self.tokens is not None:
            return self.tokens[list(patches)].to(bundle.device)
        if self.embeddings is None:
            return None
        side = self.magnification.grid
        cells = [
            self.embeddings[:, row * side : (row + 1) * side, column * side : (column + 1) * side]
            for row, column in (divmod(patch, self.columns) for patch in patches)
        ]
        return bundle.summarizer(embedding_grid(torch.stack(cells).to(bundle.device)), self.magnification.index)


class Above(Protocol):
    """What patches should look like from afar."""

    def targets(self, patches: Sequence[int]) -> Tensor:
        """``(B, 3, h, w)`` in [-1, 1], for some patches of the mosaic below."""


class GivenImage:
    """A given image pulls at the patches.

    Args:
        image: ``(3, H, W)`` in [-1, 1].
        columns: patches across.
    """

    def __init__(self, image: Tensor, columns: int) -> None:
        self._image, self._columns = image, columns

    def targets(self, patches: Sequence[int]) -> Tensor:
        """The parts of the image under them."""
        side = self._image.shape[2] // self._columns
        places = [divmod(patch, self._columns) for patch in patches]
        return torch.stack([self._image[:, r * side : (r + 1) * side, c * side : (c + 1) * side] for r, c in places])


class CoarserPatches:
    """Patches of a coarser scale pull at those below them, with what they would show if they were clean now.

    Args:
        bundle: decodes them, one by one and only when needed.
        clean: their clean latents ``(N, C, h, w)``.
        columns: of them across.
        factor: patches of the finer scale along the side of one of them.
    """

    def __init__(self, bundle: ZoomLDM, clean: Tensor, columns: int, factor: int) -> None:
        self._bundle, self._clean, self._columns, self._factor = bundle, clean, columns, factor
        self._decoded: dict[int, Tensor] = {}

    def parent(self, patch: int) -> tuple[int, int, int]:
        """The patch above one of the finer scale, and the row and column of the latter inside it."""
        row, column = divmod(patch, self._columns * self._factor)
        above = row // self._factor * self._columns + column // self._factor
        return above, row % self._factor, column % self._factor

    def targets(self, patches: Sequence[int]) -> Tensor:
        """The parts of the coarser patches under them."""
        places = [self.parent(patch) for patch in patches]
        needed = {above for above, _, _ in places}
        self._decoded = {above: image for above, image in self._decoded.items() if above in needed}
        parts = []
        for above, row, column in places:
            if above not in self._decoded:
                self._decoded[above] = self._bundle.decode(self._clean[above : above + 1])[0].clamp(-1, 1)
            image = self._decoded[above]
            side = image.shape[1] // self._factor
            parts.append(image[:, row * side : (row + 1) * side, column * side : (column + 1) * side])
        return torch.stack(parts)

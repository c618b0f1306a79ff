"""What every patch encoder is: patches in, one feature vector a patch out."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoomfeat.errors import ConfigurationError
from zoomfeat.magnification import BRCA, PATCH_SIZE, Ladder, Magnification


class PatchEncoder(ABC):
    """A callable that turns patches into features.

    ``encoder(images)`` takes ``(B, 256, 256, 3)`` uint8 RGB and gives ``(B, dim)`` float32. The features of a
    patch depend on that patch and the encoder's settings only: on a CPU each patch runs by itself, so that a
    batch of 1 and a batch of 64 give the same bits.

    Attributes:
        name: its name in the registry.
        dim: length of a feature vector.
        magnification: what the patches are seen at.
        ladder: the magnifications it was trained on; None where it takes those of any domain.
        weights_hash: SHA-256 of its weights, ``"none"`` where it has none.
        settings: everything that decides its features besides weights and magnification, JSON-able.
        note: what a reader of its output must know, for example that weights are random; else empty.
        device: where it runs.
        context_encoder: the encoder whose embeddings of the finest patches under a patch this one is
            conditioned on, or None.
    """

    name: str
    dim: int
    ladder: Ladder | None = None
    weights_hash: str = "none"
    note: str = ""
    context_encoder: PatchEncoder | None = None

    def __init__(self, magnification: str | Magnification | None = None, device: str = "auto") -> None:
        self.magnification = self._step(magnification)
        self.device = resolve_device(device)
        self.settings: Mapping[str, Any] = {}

    def at(self, magnification: str | Magnification) -> PatchEncoder:
        """The same encoder (same weights in memory) for patches of another magnification."""
        other = copy.copy(self)
        other.magnification = self._step(magnification)
        return other

    def _step(self, magnification: str | Magnification | None) -> Magnification:
        """A step of the ladder, the finest for None; names mean those of histology where there is no ladder."""
        ladder = self.ladder or BRCA
        if magnification is None:
            return ladder.finest
        if self.ladder is None and isinstance(magnification, Magnification):
            return magnification
        return ladder[magnification]

    @abstractmethod
    def transform(self, images: NDArray[np.uint8] | Tensor) -> Tensor:
        """Patches ``(B, 256, 256, 3)`` uint8 as network input ``(B, 3, H, W)`` float32, resized, normalised.

        Where they are is where it is done: patches go to a GPU as bytes, a quarter of what they are in float32.
        """

    @abstractmethod
    def embed(self, inputs: Tensor, context: Tensor | None) -> Tensor:
        """Features ``(B, dim)`` of transformed patches, on the encoder's device.

        Args:
            inputs: what :meth:`transform` gives.
            context: embeddings of the finest patches under each patch, ``(B, C, g, g)``, or None.
        """

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.uint8], context: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """Features of patches.

        Args:
            images: ``(B, 256, 256, 3)`` uint8 RGB; B may be 0.
            context: for a conditioned encoder, the embeddings by ``context_encoder`` of the finest patches under
                each patch, ``(B, C, g, g)`` with rows downwards.

        Returns:
            ``(B, dim)`` float32.

        Raises:
            ValueError: images of another type or shape.
        """
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.shape[1:] != (PATCH_SIZE, PATCH_SIZE, 3):
            raise ValueError(
                f"patches of {images.dtype} {images.shape}; expected uint8 (B, {PATCH_SIZE}, {PATCH_SIZE}, 3)"
            )
        # Kernels chosen by batch size differ in their last bits: on a CPU, where a batch buys nothing, do without.
        step = 1 if self.device.type == "cpu" else max(1, len(images))
        if context is None and self.context_encoder is not None:
            context = self._own_context(images)
        features = [np.empty((0, self.dim), np.float32)]
        for start in range(0, len(images), step):
            inputs = self.transform(self.sent(images[start : start + step]))
            part = None if context is None else self.sent(context[start : start + step])
            features.append(self.embed(inputs, part).float().cpu().numpy())
        return np.concatenate(features)

    def sent(self, values: NDArray[Any]) -> Tensor:
        """An array on the encoder's device; a GPU fetches it from pinned memory while its work is being queued."""
        tensor = torch.from_numpy(np.ascontiguousarray(values))
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def _own_context(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """At the finest magnification a patch's embedding grid is its own embedding."""
        if self.context_encoder is None or self.magnification.index > 0:
            side = self.magnification.grid
            raise ConfigurationError(
                f"a conditioned {self.magnification} patch needs the embeddings of the {side} x {side} finest patches "
                "under it",
                cure="Pass context=, as `zoomfeat extract` does, or use conditioning=null",
            )
        return self.context_encoder(images)[:, :, None, None]


def resolve_device(device: str) -> torch.device:
    """``auto`` is a GPU where there is one.

    Raises:
        ConfigurationError: no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigurationError(f"no device {device!r} here", cure="Use device=auto, cpu or cuda") from error
    return torch.device(device)

"""The bundle: first stage, denoiser, Summarizer and noise schedule of one ZoomLDM, as diffusers keeps them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DConditionModel, VQModel
from diffusers.utils import logging as diffusers_logging
from numpy.typing import NDArray
from torch import Tensor

from zoomfeat.errors import CheckpointMismatchError
from zoomfeat.models.checkpoint import load_checkpoint
from zoomfeat.models.summarizer import Summarizer
from zoomfeat.models.weights import align, check_complete, check_finite, hash_weights

PARTS = ("vae", "unet", "summarizer")
"""The modules that hold weights."""


def as_input(images: NDArray[np.uint8] | Tensor) -> Tensor:
    """Images ``(B, H, W, 3)`` as the first stage takes them: ``(B, 3, H, W)`` float32 in [-1, 1]."""
    pixels = images if isinstance(images, Tensor) else torch.from_numpy(np.ascontiguousarray(images))
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


class ZoomLDM(DiffusionPipeline):
    """One trained ZoomLDM.

    A diffusers pipeline without a sampling loop: ``from_pretrained``, ``save_pretrained`` (safetensors) and ``to``
    are diffusers' own. Features need only its parts; samplers add a ``__call__``.

    Args:
        vae: the first stage; encoding does not quantise, decoding does.
        unet: the denoiser, which predicts noise.
        summarizer: makes the denoiser's context from SSL embeddings.
        scheduler: the noise schedule.
    """

    def __init__(
        self, vae: VQModel, unet: UNet2DConditionModel, summarizer: Summarizer, scheduler: DDIMScheduler
    ) -> None:
        super().__init__()
        self.register_modules(vae=vae, unet=unet, summarizer=summarizer, scheduler=scheduler)

    @classmethod
    def from_checkpoint(cls, weights: str | Path, config: str | Path | None = None, *, ema: bool = True) -> ZoomLDM:
        """Loads the release's own layout (``weights.ckpt`` with its ``config.yaml``).

        Args:
            weights: the checkpoint; read with ``weights_only=True``, so a pickle that would run code is refused.
            config: its configuration; ``config.yaml`` beside the checkpoint where not given.
            ema: the averaged denoiser weights (what the publication samples with) or the raw ones.

        Raises:
            CheckpointMismatchError: keys that are missing, extra or of another shape; the first ones are named.
        """
        return cls(**load_checkpoint(weights, config, ema=ema))

    @classmethod
    def load(cls, weights: str | Path, *, ema: bool = True) -> ZoomLDM:
        """Loads weights from disk in either layout; opens nothing else and fetches nothing.

        Args:
            weights: a folder that :meth:`save_pretrained` wrote, a folder with the release's ``weights.ckpt`` and
                ``config.yaml``, or such a checkpoint itself.
            ema: as in :meth:`from_checkpoint`; a folder of :meth:`save_pretrained` holds what was saved.

        Raises:
            CheckpointMismatchError: no such file or folder, or one that does not hold a complete ZoomLDM.
        """
        path = Path(weights)
        if not path.is_dir():
            return cls.from_checkpoint(path, ema=ema)
        if (path / "weights.ckpt").is_file():
            return cls.from_checkpoint(path / "weights.ckpt", ema=ema)
        diffusers_logging.disable_progress_bar()  # four folders of a local disk need none
        try:
            bundle = cls.from_pretrained(path, local_files_only=True)
        except (OSError, ValueError, RuntimeError, AttributeError) as error:
            raise CheckpointMismatchError(
                f"not a ZoomLDM folder ({str(error).splitlines()[0]})",
                path=path,
                cure="Give a folder that `zoomfeat convert-checkpoint` wrote, or the release's weights.ckpt",
            ) from error
        finally:
            diffusers_logging.enable_progress_bar()
        for part in PARTS:
            check_complete(getattr(bundle, part), path / part)
            check_finite(getattr(bundle, part).state_dict(), path / part)
            align(getattr(bundle, part))
        return bundle

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels ``(B, 3, H, W)`` in [-1, 1] to latents ``(B, 3, H/4, W/4)``, not quantised."""
        return self.vae.encode(pixels).latents * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents ``(B, 3, h, w)`` to pixels ``(B, 3, 4h, 4w)``, about [-1, 1], through the nearest codes."""
        return self.vae.decode(latents / self.vae.config.scaling_factor).sample

    def weights_hash(self) -> str:
        """SHA-256 over every weight's name, type, shape and bytes, however the weights were stored."""
        return hash_weights({part: getattr(self, part) for part in PARTS})

"""What pipelines of large images share: sampling with a state on disk, decoding in windows, files that stream."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from diffusers import SchedulerMixin, UNet2DConditionModel, VQModel
from diffusers.image_processor import VaeImageProcessor
from numpy.typing import NDArray
from torch import Tensor

from generation.conditioning import ConditioningDiT
from generation.joint_sampling import Sampled, Settings, sample
from generation.large_image import decode_bands
from generation.mosaic import Mosaic
from generation.pipelines.patch import ZoomLDMPipeline
from generation.sampling_state import SamplingState
from generation.tiff import write_pyramid
from zoomfeat.errors import ConfigurationError
from zoomfeat.magnification import PATCH_SIZE
from zoomfeat.models.summarizer import Summarizer

OUTPUTS = ("pil", "np", "pt", "latent")


class LargeImagePipeline(ZoomLDMPipeline):
    """Draws images of many patches of the finest magnification.

    Modules, ``load``, ``from_region`` and so on are those of :class:`ZoomLDMPipeline`; the scheduler gives the noise
    levels only, since joint sampling has a step of its own.

    Weights of convolutions are laid out with the channels last, which the first stage gains a fifth by on a CPU and the
    released denoiser as much.
    """

    def __init__(
        self,
        vae: VQModel,
        unet: UNet2DConditionModel,
        summarizer: Summarizer,
        scheduler: SchedulerMixin,
        cdm: ConditioningDiT | None = None,
        ladder: str | None = None,
        ssl_encoder: str | None = None,
    ) -> None:
        super().__init__(vae, unet, summarizer, scheduler, cdm, ladder, ssl_encoder)
        for module in (self.vae, self.unet):
            module.to(memory_format=torch.channels_last)

    @classmethod
    def over(cls, pipe: ZoomLDMPipeline) -> Self:
        """The same modules behind another call."""
        return cls(**pipe.components, ladder=pipe.config.ladder, ssl_encoder=pipe.config.ssl_encoder)

    def finest_mpp(self) -> float:
        """um/px of the images."""
        return self.ladder.finest.mpp

    @torch.no_grad()
    def write(
        self,
        latent: Tensor,
        path: str | Path,
        arguments: dict[str, Any],
        *,
        size: tuple[int, int] | None = None,
        batch_size: int = 4,
        on_rows: Callable[[int, int], object] | None = None,
    ) -> None:
        """Decodes a latent into a tiled, pyramidal TIFF that slide readers open, with its um/px.

        Args:
            latent: ``(C, H, W)``, as ``sample`` gives it.
            path: the file, ending in ``.tiff``; it is there whole or not at all.
            arguments: how the image was made; they are kept in the file.
            size: width and height to which the image is cropped; null: all of it.
            batch_size: windows at once on a GPU.
            on_rows: called with the rows written and their number.

        Raises:
            ZoomfeatError: the file cannot be written.
        """
        mpp = self.finest_mpp()
        width, height = size or self.image_size(latent)

        def bands() -> Iterator[NDArray[np.uint8]]:
            done = 0
            for band in self._bands(latent, batch_size):
                part = band[:, : height - done, :width].clamp(-1, 1) * 127.5 + 127.5
                done += part.shape[1]
                yield part.round().byte().permute(1, 2, 0).cpu().numpy()
                if on_rows is not None:
                    on_rows(done, height)
                if done == height:
                    return

        write_pyramid(bands(), (width, height), Path(path), mpp=mpp, arguments=arguments)

    def image_size(self, latent: Tensor) -> tuple[int, int]:
        """Width and height in px of the image of a latent ``(C, H, W)``."""
        factor = PATCH_SIZE // self.latent_shape[1]
        return latent.shape[2] * factor, latent.shape[1] * factor

    @torch.no_grad()
    def picture(
        self, latent: Tensor, output_type: str = "pil", *, batch_size: int = 4, size: tuple[int, int] | None = None
    ) -> Any:
        """Decodes a latent as a whole.

        Args:
            latent: ``(C, H, W)``, as ``sample`` gives it.
            output_type: ``pil``, ``np``, ``pt`` or ``latent``.
            batch_size: windows at once on a GPU.
            size: width and height in px to which the image is cropped; null: all of it.

        Returns:
            A batch of one, as diffusers' pipelines give images.
        """
        if output_type == "latent":
            return latent[None]
        width, height = size or self.image_size(latent)
        image = torch.cat(list(self._bands(latent, batch_size)), dim=1)[None, :, :height, :width]
        return VaeImageProcessor().postprocess(image, output_type)

    def _at_once(self, batch_size: int) -> int:
        """Patches in a batch.

        Raises:
            ConfigurationError: none.
        """
        if batch_size < 1:
            raise ConfigurationError(f"batch_size={batch_size}", cure="Use 1 or more")
        return self.samples_at_once(batch_size)

    def _bands(self, latent: Tensor, batch_size: int) -> Iterator[Tensor]:
        at_once = self._at_once(batch_size)
        return decode_bands(self, latent, window=self.latent_shape[1], batch_size=at_once)

    def _sample(
        self,
        mosaics: Sequence[Mosaic],
        settings: Settings,
        generator: torch.Generator | None,
        state: str | Path | None,
        progress: Callable[[int, int], object] | None,
        image: Tensor | None = None,
    ) -> Sampled:
        """:func:`generation.joint_sampling.sample` with diffusers' generator and progress bar.

        Raises:
            ConfigurationError: half precision; the state of another run.
        """
        if self.unet.dtype != torch.float32 or self.vae.dtype != torch.float32:
            raise ConfigurationError(
                f"joint sampling in {self.unet.dtype}: its finite differences drown in rounding",
                cure="Use pipe.to(torch.float32)",
            )
        seed = draw_seed(generator)
        kept = None
        if state is not None:
            kept = SamplingState(Path(state), self._identity(mosaics, settings, seed, image))
        with self.progress_bar(total=1) as bar:

            def advance(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)
                if progress is not None:
                    progress(done, total)

            return sample(self, mosaics, settings, seed=seed, image=image, state=kept, progress=advance)

    def _identity(self, mosaics: Sequence[Mosaic], settings: Settings, seed: int, image: Tensor | None) -> str:
        """A hash of all that decides a run's latents."""
        numbers = asdict(settings)
        del numbers["save_every"]
        scales = [f"{mosaic.magnification} {mosaic.rows} {mosaic.columns}" for mosaic in mosaics]
        tensors = (image, *(t for mosaic in mosaics for t in (mosaic.embeddings, mosaic.tokens)))
        return self.hash_of([numbers, seed, scales], tensors)

    def hash_of(self, facts: Any, tensors: Iterable[Tensor | None]) -> str:
        """SHA-256 of the weights, of facts as JSON, and of tensors."""
        digest = hashlib.sha256(self.weights_hash().encode())
        digest.update(json.dumps(facts, sort_keys=True).encode())
        for tensor in tensors:
            digest.update(b"none" if tensor is None else tensor.detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()


def draw_seed(generator: torch.Generator | None) -> int:
    """A seed drawn from a generator, or from torch's default."""
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(2**63 - 1, (), generator=generator, device=device))


def check_output(output_type: str) -> None:
    """Refuses forms of images that pipelines do not give.

    Raises:
        ConfigurationError: an unknown one.
    """
    if output_type not in OUTPUTS:
        raise ConfigurationError(f"output_type={output_type!r}", cure=f"Use one of {', '.join(OUTPUTS)}")

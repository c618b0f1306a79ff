"""Large images as a diffusers pipeline: one patch of a coarse magnification guides the 20x patches under it."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import BaseOutput
from numpy.typing import NDArray
from torch import Tensor

from generation.joint_guidance import Pull
from generation.joint_sampling import Sampled, Settings, latent_shape, sample
from generation.large_image import decode_bands
from generation.mosaic import Mosaic
from generation.pipelines.inputs import Embeddings, Name, check_grid, check_rows
from generation.pipelines.patch import ZoomLDMPipeline
from generation.sampling_state import SamplingState
from generation.tiff import write_pyramid
from zoomfeat.errors import ConfigurationError, MagnificationError
from zoomfeat.magnification import PATCH_SIZE, Magnification
from zoomfeat.models.zoomldm import ZoomLDM

OUTPUTS = ("pil", "np", "pt", "latent")


@dataclass
class JointOutput(BaseOutput):
    """What joint sampling gives.

    Attributes:
        images: the finest scale: PIL images, ``(1, H, W, 3)`` or ``(1, 3, H, W)`` in [0, 1], or ``(1, C, h, w)``.
        coarser: the same of each scale above, by magnification, the coarsest first.
    """

    images: Any
    coarser: dict[str, Any]


class JointMultiScalePipeline(ZoomLDMPipeline):
    """Draws images of many 20x patches that agree with one patch of a coarser magnification.

    A guide at 5x gives 1024 px, one at 1.25x 4096 px. Modules, ``load``, ``from_region`` and so on are those of
    :class:`ZoomLDMPipeline`; the scheduler gives the noise levels only, since the sampler has a step of its own.

    Sources: ZoomLDM (CVPR 2025, section 3) and its release; see :mod:`generation.joint_guidance` and
    :mod:`generation.large_image`.
    """

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        ssl_embeddings: Embeddings | None = None,
        magnification: Name = "5x",
        *,
        output_type: str = "pil",
        batch_size: int = 4,
        return_dict: bool = True,
        **options: Any,
    ) -> JointOutput | tuple[Any, dict[str, Any]]:
        """Draws one image, whole in memory; :meth:`sample` and :meth:`write` stream one to a file.

        Args:
            ssl_embeddings: as in :meth:`sample`.
            magnification: of the guide.
            output_type: ``pil``, ``np``, ``pt`` or ``latent``.
            batch_size: patches at once on a GPU; a CPU takes them one by one, so that the image does not depend on it.
            return_dict: false: a tuple instead of :class:`JointOutput`.
            options: of :meth:`sample`.

        Raises:
            ConfigurationError: arguments that do not fit each other or the model; one line says which.
            MagnificationError: a magnification that the model lacks, or none over which it can guide.
        """
        if output_type not in OUTPUTS:
            raise ConfigurationError(f"output_type={output_type!r}", cure=f"Use one of {', '.join(OUTPUTS)}")
        sampled = self.sample(ssl_embeddings, magnification, batch_size=batch_size, **options)
        image = postprocess(self, sampled.latent, output_type, batch_size)
        coarser = {name: postprocess(self, latent, output_type, batch_size) for name, latent in sampled.coarser.items()}
        return JointOutput(images=image, coarser=coarser) if return_dict else (image, coarser)

    @torch.no_grad()
    def sample(
        self,
        ssl_embeddings: Embeddings | None = None,
        magnification: Name = "5x",
        *,
        through: Sequence[Name] = (),
        tokens: Tensor | None = None,
        num_inference_steps: int = 20,
        guidance_scale: float = 3.0,
        pulls: int = 2,
        rate: float = 0.5,
        by: Literal["differences", "gradient"] = "differences",
        seam_start: int = 300,
        generator: torch.Generator | None = None,
        batch_size: int = 4,
        state: str | Path | None = None,
        save_every: int = 1,
        progress: Callable[[int, int], object] | None = None,
    ) -> Sampled:
        """Latents of one image.

        Args:
            ssl_embeddings: raw embeddings of all 20x patches of the image, rows downwards, ``(C, g, g)`` with
                g = 2**k for a guide of index k; not pooled, since each patch needs its own.
            magnification: of the guide, which is one patch.
            through: magnifications between the guide and 20x; each is guided by the one above.
            tokens: Summarizer tokens ``(1, 65, D)`` of the guide instead of embeddings, for example drawn by the
                conditioning model; the patches below then have no condition but the guide.
            num_inference_steps: noise levels, a number that divides 1000.
            guidance_scale: as in :class:`ZoomLDMPipeline`; the publication's w = 2 is 3.
            pulls: how often every patch is pulled towards the guide at each noise level; 0: never.
            rate: how far.
            by: ``differences`` needs forward passes only; ``gradient`` backpropagates, to compare.
            seam_start: timestep that the second pass against seams starts from, a multiple of 50; 0: no such pass.
            generator: decides all noise; null: torch's default.
            batch_size: as in a call.
            state: a file to keep the state of a run in; where it exists already, sampling goes on from it and ends
                with the same latents as if it had not been interrupted.
            save_every: steps between two savings.
            progress: called with the denoiser's forward passes done and their number.

        Raises:
            ConfigurationError: arguments that do not fit each other or the model, or the state of another run.
            MagnificationError: a magnification that the model lacks, or an order that is not from coarse to fine.
        """
        steps = self.scales(magnification, through)
        mosaics = self._mosaics(steps, ssl_embeddings, tokens)
        options = Pull(guidance_scale, pulls, rate, by=by)
        settings = Settings(num_inference_steps, options, seam_start, at_once(self, batch_size), save_every)
        return sample_with(self, mosaics, settings, generator, state, progress)

    def scales(self, guide: Name, through: Sequence[Name] = ()) -> list[Magnification]:
        """The guide, what lies between, and the finest magnification.

        Raises:
            MagnificationError: a magnification that the model lacks, or an order that is not from coarse to fine.
        """
        finest = self.ladder.steps[0]
        steps = [self.ladder[guide], *(self.ladder[name] for name in through), finest]
        if any(above.index <= below.index for above, below in itertools.pairwise(steps)):
            raise MagnificationError(
                f"scales {' > '.join(map(str, steps))} do not go from coarse to fine",
                cure=f"Give a guide coarser than {finest}, and what lies between from coarse to fine",
            )
        return steps

    def decode_rows(self, latent: Tensor, batch_size: int = 4) -> Iterator[NDArray[np.uint8]]:
        """The image of a large latent as bands of rows ``(height, W, 3)``, from top to bottom."""
        window = latent_shape(self)[1]
        for band in decode_bands(self, latent, window=window, batch_size=at_once(self, batch_size)):
            yield to_uint8(band)

    @torch.no_grad()
    def write(self, latent: Tensor, path: str | Path, arguments: dict[str, Any], batch_size: int = 4) -> None:
        """Decodes a latent into a tiled, pyramidal TIFF that slide readers open, with its um/px.

        Args:
            latent: of :meth:`sample`.
            path: the file, ending in ``.tiff``; it is there whole or not at all.
            arguments: how the image was made; they are kept in the file.
            batch_size: as in a call.

        Raises:
            ZoomfeatError: the file cannot be written.
            ConfigurationError: the model's finest magnification has no physical size.
        """
        mpp = self.ladder.steps[0].mpp
        if not mpp > 0:
            raise ConfigurationError(
                f"the {self.ladder.name} ladder has no um/px", cure="Call the pipeline with output_type='pil' instead"
            )
        factor = PATCH_SIZE // latent_shape(self)[1]
        size = (latent.shape[2] * factor, latent.shape[1] * factor)
        write_pyramid(self.decode_rows(latent, batch_size), size, Path(path), mpp=mpp, arguments=arguments)

    def _mosaics(
        self, steps: Sequence[Magnification], embeddings: Embeddings | None, tokens: Tensor | None
    ) -> list[Mosaic]:
        sides = [steps[0].grid // step.grid for step in steps]
        if (embeddings is None) == (tokens is None):
            raise ConfigurationError(
                "neither ssl_embeddings nor tokens" if tokens is None else "both ssl_embeddings and tokens",
                cure="Give one of them",
            )
        if tokens is not None:
            check_rows("tokens", tokens, 1, self.summarizer.context_shape)
            return [Mosaic(steps[0], 1, 1, tokens=tokens)] + [
                Mosaic(step, side, side) for step, side in zip(steps[1:], sides[1:], strict=True)
            ]
        grid = torch.as_tensor(embeddings)
        expected = (self.summarizer.config.input_dim, steps[0].grid, steps[0].grid)
        if grid.ndim != 3 or grid.shape[1:] != expected[1:]:
            raise ConfigurationError(
                f"embeddings of shape {tuple(grid.shape)} for a guide at {steps[0]}; expected {expected}",
                cure="Give one embedding for each of the finest patches under the guide, not pooled",
            )
        check_grid(grid, steps[0], expected[0])
        return [Mosaic(step, side, side, embeddings=grid.float()) for step, side in zip(steps, sides, strict=True)]


def at_once(bundle: ZoomLDM, batch_size: int) -> int:
    """Patches in a batch: one on a CPU, whose kernels depend on the batch in their last bits.

    Raises:
        ConfigurationError: a batch of none.
    """
    if batch_size < 1:
        raise ConfigurationError(f"batch_size={batch_size}", cure="Use 1 or more")
    return 1 if bundle.device.type == "cpu" else batch_size


def sample_with(
    pipe: ZoomLDMPipeline,
    mosaics: Sequence[Mosaic],
    settings: Settings,
    generator: torch.Generator | None,
    state: str | Path | None,
    progress: Callable[[int, int], object] | None,
    image: Tensor | None = None,
) -> Sampled:
    """:func:`generation.joint_sampling.sample` with diffusers' generator and progress bar.

    Raises:
        ConfigurationError: half precision, in which finite differences drown; the state of another run.
    """
    if pipe.unet.dtype != torch.float32 or pipe.vae.dtype != torch.float32:
        raise ConfigurationError(
            f"joint sampling in {pipe.unet.dtype}: its finite differences drown in rounding",
            cure="Use pipe.to(torch.float32)",
        )
    device = "cpu" if generator is None else generator.device
    seed = int(torch.randint(2**63 - 1, (), generator=generator, device=device))
    kept = None
    if state is not None:
        kept = SamplingState(Path(state), identity(pipe, mosaics, settings, seed, image))
    with pipe.progress_bar(total=1) as bar:

        def advance(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)
            if progress is not None:
                progress(done, total)

        return sample(pipe, mosaics, settings, seed=seed, image=image, state=kept, progress=advance)


def identity(
    pipe: ZoomLDMPipeline, mosaics: Sequence[Mosaic], settings: Settings, seed: int, image: Tensor | None
) -> str:
    """A hash of all that decides a run's latents."""
    digest = hashlib.sha256(pipe.weights_hash().encode())
    numbers = asdict(settings)
    del numbers["save_every"]
    digest.update(json.dumps([numbers, seed], sort_keys=True).encode())
    for mosaic in mosaics:
        digest.update(f"{mosaic.magnification} {mosaic.rows} {mosaic.columns}".encode())
    for tensor in (image, *(t for mosaic in mosaics for t in (mosaic.embeddings, mosaic.tokens))):
        digest.update(b"none" if tensor is None else tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def postprocess(pipe: ZoomLDM, latent: Tensor, output_type: str, batch_size: int) -> Any:
    """A large latent ``(C, H, W)`` as diffusers' pipelines give images, a batch of one."""
    if output_type == "latent":
        return latent[None]
    bands = decode_bands(pipe, latent, window=latent_shape(pipe)[1], batch_size=at_once(pipe, batch_size))
    return VaeImageProcessor().postprocess(torch.cat(list(bands), dim=1)[None], output_type)


def to_uint8(band: Tensor) -> NDArray[np.uint8]:
    """``(3, H, W)`` in [-1, 1] to ``(H, W, 3)``."""
    return (band.clamp(-1, 1) * 127.5 + 127.5).round().byte().permute(1, 2, 0).cpu().numpy()

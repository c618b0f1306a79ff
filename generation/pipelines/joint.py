"""Large images as a diffusers pipeline: one patch of a coarse magnification guides the 20x patches under it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from generation.joint_guidance import Pull
from generation.joint_sampling import Sampled, Settings
from generation.mosaic import Mosaic
from generation.pipelines.inputs import Embeddings, Name, check_grid, check_rows
from generation.pipelines.large import LargeImagePipeline, check_output
from zoomfeat.errors import ConfigurationError, MagnificationError
from zoomfeat.magnification import Magnification


@dataclass
class JointOutput(BaseOutput):
    """What joint sampling gives.

    Attributes:
        images: the finest scale: PIL images, ``(1, H, W, 3)`` or ``(1, 3, H, W)`` in [0, 1], or ``(1, C, h, w)``.
        coarser: the same of each scale above, by magnification, the coarsest first.
    """

    images: Any
    coarser: dict[str, Any]


class JointMultiScalePipeline(LargeImagePipeline):
    """Draws images of many 20x patches that agree with one patch of a coarser magnification.

    A guide at 5x gives 1024 px, one at 1.25x 4096 px.

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
        check_output(output_type)
        sampled = self.sample(ssl_embeddings, magnification, batch_size=batch_size, **options)
        image = self.picture(sampled.latent, output_type, batch_size=batch_size)
        coarser = {
            name: self.picture(latent, output_type, batch_size=batch_size) for name, latent in sampled.coarser.items()
        }
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
        clip: bool = False,
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
            clip: keep predicted latents within the box of all codes (:class:`generation.joint_guidance.Pull`).
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
        options = Pull(guidance_scale, pulls, rate, by=by, clip=clip)
        settings = Settings(num_inference_steps, options, seam_start, self._at_once(batch_size), save_every)
        return self._sample(mosaics, settings, generator, state, progress)

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

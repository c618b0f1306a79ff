"""Super-resolution as a diffusers pipeline: 20x patches are drawn that look like a given coarser image from afar."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import ImagePipelineOutput
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from generation.inversion import STEPS, infer_embeddings, patch_places
from generation.joint_guidance import Pull
from generation.joint_sampling import Sampled, Settings
from generation.mosaic import Mosaic
from generation.pipelines.inputs import Embeddings
from generation.pipelines.large import LargeImagePipeline, check_output, draw_seed
from generation.resize import mirrored
from generation.sampling_state import SamplingState
from zoomfeat.errors import ConfigurationError
from zoomfeat.magnification import MAX_GRID, PATCH_SIZE, Magnification

CONDITIONS = ("inferred", "given", "uncond")

Condition = Literal["inferred", "given", "uncond"]
Picture = Image.Image | NDArray[Any] | Tensor
"""An image as users have it: PIL, ``(H, W, 3)`` uint8 or floats in [0, 1], or a tensor ``(3, H, W)`` in [0, 1]."""


class SuperResolutionPipeline(LargeImagePipeline):
    """Draws the 20x image of a given image of 10x, 5x or 2.5x.

    The image takes the place of the guide in joint sampling: ZoomLDM (CVPR 2025, section 4.3).
    """

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self,
        image: Picture,
        scale: int = 4,
        condition: Condition = "inferred",
        ssl_embeddings: Embeddings | None = None,
        *,
        output_type: str = "pil",
        batch_size: int = 4,
        return_dict: bool = True,
        **options: Any,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draws a finer image, whole in memory; :meth:`sample` and :meth:`write` stream one to a file.

        Args:
            image: as in :meth:`sample`.
            scale: how much finer.
            condition: ``inferred``, ``given`` or ``uncond``.
            ssl_embeddings: what is given.
            output_type: ``pil``, ``np``, ``pt``, or ``latent``, which is that of the padded image.
            batch_size: patches at once on a GPU; a CPU takes them one by one.
            return_dict: false: a tuple instead of diffusers' output class.
            options: of :meth:`sample`.

        Raises:
            ConfigurationError: an image or other arguments that do not fit each other or the model.
        """
        check_output(output_type)
        pixels = read_image(image, PATCH_SIZE // self.magnification_of(scale).grid)
        sampled = self.sample(image, scale, condition, ssl_embeddings, batch_size=batch_size, **options)
        size = (scale * pixels.shape[2], scale * pixels.shape[1])
        found = self.picture(sampled.latent, output_type, batch_size=batch_size, size=size)
        return ImagePipelineOutput(images=found) if return_dict else (found,)

    @torch.no_grad()
    def sample(
        self,
        image: Picture,
        scale: int = 4,
        condition: Condition = "inferred",
        ssl_embeddings: Embeddings | None = None,
        *,
        num_inference_steps: int = 20,
        guidance_scale: float = 3.0,
        pulls: int = 2,
        rate: float = 0.5,
        clip: bool = False,
        seam_start: int = 300,
        inversion_steps: int = STEPS,
        generator: torch.Generator | None = None,
        batch_size: int = 4,
        state: str | Path | None = None,
        save_every: int = 1,
        progress: Callable[[str, int, int], object] | None = None,
    ) -> Sampled:
        """Latents of a finer image.

        Args:
            image: of any size that at least one 20x patch lies under (64 px a side at scale 4). Where 20x patches do
                not cover it exactly, it is continued by its mirror image: crop the result to ``scale`` times its size.
            scale: how much finer: 2 from 10x, 4 from 5x, 8 from 2.5x.
            condition: ``inferred`` looks for the embeddings that explain the image (:mod:`generation.inversion`),
                ``given`` takes ``ssl_embeddings``, ``uncond`` goes without.
            ssl_embeddings: raw embeddings of the 20x patches, rows downwards, ``(C, rows, columns)``.
            num_inference_steps: noise levels, a number that divides 1000.
            guidance_scale: as in :class:`ZoomLDMPipeline`; the publication's w = 2 is 3.
            pulls: how often every patch is pulled towards the image at each noise level.
            rate: how far.
            clip: keep predicted latents within the box of all codes (:class:`generation.joint_guidance.Pull`).
            seam_start: timestep that the pass against seams starts from, a multiple of 50; 0: no such pass.
            inversion_steps: of condition inversion.
            generator: decides all random numbers; null: torch's default.
            batch_size: as in a call.
            state: a file to keep the state of a run in, as in :meth:`JointMultiScalePipeline.sample`; the embeddings
                that are inferred are kept beside it (:func:`inference_state`).
            save_every: steps between two savings.
            progress: called with what is going on, steps done and their number.

        Raises:
            ConfigurationError: an image or other arguments that do not fit each other or the model.
        """
        if inversion_steps < 1:
            raise ConfigurationError(f"inversion_steps={inversion_steps}", cure=f"Use 1 or more; {STEPS} is published")
        step = self.magnification_of(scale)
        cell = PATCH_SIZE // scale
        pixels = read_image(image, cell)
        rows, columns = (math.ceil(side / cell) for side in pixels.shape[1:])
        given = check_condition(condition, ssl_embeddings, (self.summarizer.config.input_dim, rows, columns))
        options = Pull(guidance_scale, pulls, rate, clip=clip)
        settings = Settings(num_inference_steps, options, seam_start, self._at_once(batch_size), save_every)
        if condition == "inferred":
            kept = None if state is None else inference_state(state)
            given = self.infer(pixels, step, inversion_steps, generator, kept, progress)[:, :rows, :columns]
        return self._sample(
            [Mosaic(self.ladder.steps[0], rows, columns, embeddings=given)],
            settings,
            generator,
            state,
            None if progress is None else lambda done, total: progress("sampling", done, total),
            image=covered(pixels, rows * cell, columns * cell),
        )

    def magnification_of(self, scale: int) -> Magnification:
        """The magnification that is ``scale`` times coarser than the finest.

        Raises:
            ConfigurationError: not a power of 2 of at least 2, or coarser than single embeddings reach.
        """
        steps = [step for step in self.ladder.steps[1:] if step.grid <= MAX_GRID]
        for step in steps:
            if step.grid == scale:
                return step
        known = ", ".join(f"{step.grid} (from {step})" for step in steps)
        raise ConfigurationError(f"scale={scale}", cure=f"Use one of {known}")

    def infer(
        self,
        pixels: Tensor,
        magnification: Magnification,
        steps: int = STEPS,
        generator: torch.Generator | None = None,
        state: str | Path | None = None,
        progress: Callable[[str, int, int], object] | None = None,
    ) -> Tensor:
        """Embeddings of the 20x patches that explain an image.

        Args:
            pixels: ``(3, H, W)`` in [-1, 1].
            magnification: of the image.
            steps: of the inversion, for each patch of the image's magnification.
            generator: as in a call.
            state: a file to keep what is found in; where it exists already, patches in it are not looked at again.
            progress: as in a call.

        Returns:
            ``(C, rows, columns)``, of the image continued by its mirror image to at least one patch.

        Raises:
            ConfigurationError: the state of another run.
        """
        cell = PATCH_SIZE // magnification.grid
        height, width = (max(math.ceil(side / cell) * cell, PATCH_SIZE) for side in pixels.shape[1:])
        total, done = steps * len(patch_places(height, width)), 0

        def advance() -> None:
            nonlocal done
            done += 1
            if progress is not None:
                progress("inferring embeddings", done, total)

        image, seed = covered(pixels, height, width), draw_seed(generator)
        kept = None
        if state is not None:
            kept = SamplingState(Path(state), self.hash_of([str(magnification), steps, seed], [image]))
        return infer_embeddings(self, image, magnification, seed=seed, steps=steps, on_step=advance, state=kept)


def inference_state(state: str | Path) -> Path:
    """Where embeddings are kept while the state of sampling is kept in ``state``."""
    return Path(f"{state}.inferred")


def read_image(image: Picture, smallest: int) -> Tensor:
    """An image as users have it, as ``(3, H, W)`` float32 in [-1, 1] on the CPU.

    Raises:
        ConfigurationError: not three channels, values out of range or not finite, or a side below ``smallest`` px.
    """
    if isinstance(image, Image.Image):
        image = np.asarray(image.convert("RGB"))
    if isinstance(image, np.ndarray):
        pixels = torch.from_numpy(np.array(image))
        pixels = pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels
    else:
        pixels = image[0] if image.ndim == 4 and len(image) == 1 else image
    if pixels.ndim != 3 or pixels.shape[0] != 3:
        raise ConfigurationError(
            f"an image of shape {tuple(image.shape)}",
            cure="Give a PIL image, an array (H, W, 3), or a tensor (3, H, W)",
        )
    if min(pixels.shape[1:]) < smallest:
        raise ConfigurationError(
            f"an image of {pixels.shape[2]} x {pixels.shape[1]} px; one of the finest patches covers "
            f"{smallest} x {smallest} of it",
            cure="Give a larger image, or a larger scale",
        )
    pixels = pixels.cpu().float() / 255 if pixels.dtype == torch.uint8 else pixels.cpu().float()
    if not pixels.isfinite().all():
        raise ConfigurationError("the image holds NaN or infinity", cure="Read it again")
    if pixels.min() < 0 or pixels.max() > 1:
        raise ConfigurationError(
            f"an image with values from {pixels.min():g} to {pixels.max():g}", cure="Give uint8, or floats in [0, 1]"
        )
    return 2 * pixels - 1


def check_condition(condition: str, embeddings: Embeddings | None, expected: tuple[int, int, int]) -> Tensor | None:
    """The embeddings that are given, if any, once they are known to fit.

    Raises:
        ConfigurationError: an unknown condition, or embeddings of another shape, not finite, missing or unasked for.
    """
    if condition not in CONDITIONS:
        raise ConfigurationError(f"condition={condition!r}", cure=f"Use one of {', '.join(CONDITIONS)}")
    if (embeddings is None) == (condition == "given"):
        found = "without" if embeddings is None else "with"
        raise ConfigurationError(
            f"condition={condition} {found} ssl_embeddings", cure="Give embeddings with condition=given, and only then"
        )
    if embeddings is None:
        return None
    grid = torch.as_tensor(embeddings).float()
    if grid.shape != expected:
        raise ConfigurationError(
            f"embeddings of shape {tuple(grid.shape)}; expected {expected}",
            cure="Give one embedding for each of the finest patches that lie under the image, at least in part",
        )
    if not grid.isfinite().all():
        raise ConfigurationError("the embeddings hold NaN or infinity", cure="Embed the patches again, in float32")
    return grid


def covered(pixels: Tensor, height: int, width: int) -> Tensor:
    """An image continued to the right and below by its mirror image, to ``height`` x ``width`` px."""
    return mirrored(pixels, (0, width - pixels.shape[2], 0, height - pixels.shape[1]))

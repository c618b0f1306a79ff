"""What super-resolution is held against, behind the same call: bicubic interpolation, and latent diffusion."""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor

from generation.pipelines.large import check_output
from generation.pipelines.superres import Picture, covered, read_image
from generation.resize import upscale
from zoomfeat.errors import ConfigurationError

_LATENT_MULTIPLE = 32  # px: what the denoiser of latent diffusion halves without a rest


class BicubicUpscaler:
    """Interpolation."""

    def __call__(
        self, image: Picture, scale: int = 4, *, output_type: str = "pil", return_dict: bool = True, **_: Any
    ) -> ImagePipelineOutput | tuple[Any]:
        """Enlarges an image with a cubic kernel and mirrored borders; further arguments of a pipeline are ignored."""
        check_output(output_type)
        images = VaeImageProcessor().postprocess(upscale(read_image(image, 1)[None], scale), output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)


class LatentUpscaler:
    """Super-resolution by latent diffusion (Rombach et al., CVPR 2022), on diffusers' own pipeline.

    Args:
        pipeline: an ``LDMSuperResolutionPipeline`` with weights. The published ones, trained on photographs, load by
            their hub name, ``CompVis/ldm-super-resolution-4x-openimages``.
    """

    scale = 4

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        self.pipeline = pipeline

    def __call__(
        self,
        image: Picture,
        scale: int = 4,
        *,
        num_inference_steps: int = 100,
        eta: float = 0.0,
        generator: torch.Generator | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        **_: Any,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draws an image four times as large; further arguments of a pipeline are ignored.

        Args:
            image: of any size; it is continued by its mirror image to multiples of 32 px, and the result cropped.
            scale: 4.
            num_inference_steps: denoising steps.
            eta: ancestral noise, for DDIM; the pipeline draws it from torch's default generator.
            generator: decides all noise.
            output_type: ``pil``, ``np`` or ``pt``.
            return_dict: false: a tuple instead of diffusers' output class.

        Raises:
            ConfigurationError: another scale, or an image that is none.
        """
        check_output(output_type)
        if scale != self.scale:
            raise ConfigurationError(f"scale={scale}", cure=f"Latent diffusion was trained for {self.scale}")
        pixels = read_image(image, 1)
        height, width = pixels.shape[1:]
        padded = covered(pixels, *(math.ceil(side / _LATENT_MULTIPLE) * _LATENT_MULTIPLE for side in (height, width)))
        (found,) = self.pipeline(
            padded[None],
            num_inference_steps=num_inference_steps,
            eta=eta,
            generator=generator,
            output_type="pt",
            return_dict=False,
        )
        images = VaeImageProcessor().postprocess(2 * found[:, :, : scale * height, : scale * width] - 1, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

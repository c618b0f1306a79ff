"""What super-resolution is held against, behind the same call: interpolation, latent diffusion, and a ControlNet."""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

from generation.pipelines.large import check_output
from generation.pipelines.superres import Picture, covered, read_image
from generation.resize import upscale
from zoomfeat.errors import ConfigurationError

_LATENT_MULTIPLE = 32  # px: what the denoiser of latent diffusion halves without a rest
_CONTROL_MULTIPLE = 64  # px of the result: the same for Stable Diffusion's, behind an autoencoder that divides by 8


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
        (found,) = self.pipeline(
            _padded(pixels, _LATENT_MULTIPLE)[None],
            num_inference_steps=num_inference_steps,
            eta=eta,
            generator=generator,
            output_type="pt",
            return_dict=False,
        )
        images = _cropped(found, pixels, scale, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)


class ControlNetUpscaler:
    """Super-resolution by Stable Diffusion under a ControlNet (Zhang et al., ICCV 2023), on diffusers' own pipeline.

    The image is enlarged by interpolation; it is what sampling starts from, noised, and what the ControlNet reads.

    Args:
        pipeline: a ``StableDiffusionControlNetImg2ImgPipeline`` with weights, which needs the extra ``baselines``. The
            published ones for photographs load by their hub names: ``lllyasviel/control_v11f1e_sd15_tile`` is a
            ControlNet for ``stable-diffusion-v1-5/stable-diffusion-v1-5`` that reads an enlarged image.
        prompt: text that describes the images.
        negative_prompt: text that they are led away from.
    """

    def __init__(self, pipeline: DiffusionPipeline, prompt: str = "", negative_prompt: str = "") -> None:
        self.pipeline, self.prompt, self.negative_prompt = pipeline, prompt, negative_prompt

    def __call__(
        self,
        image: Picture,
        scale: int = 4,
        *,
        num_inference_steps: int = 50,
        strength: float = 1.0,
        guidance_scale: float = 7.5,
        control_scale: float = 1.0,
        generator: torch.Generator | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        **_: Any,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draws a larger image; further arguments of a pipeline are ignored.

        Args:
            image: of any size; it is continued by its mirror image so that the result, which is cropped, has
                multiples of 64 px. The result is sampled as one image: memory grows with it.
            scale: how much larger, 2 or more.
            num_inference_steps: denoising steps, of which the last ``strength`` are taken.
            strength: how noisy sampling starts, 0 to 1; at 1 little but what the ControlNet reads is left of the image.
            guidance_scale: of classifier-free guidance with the prompts, as in :class:`ZoomLDMPipeline`.
            control_scale: weight of what the ControlNet adds.
            generator: decides all noise.
            output_type: ``pil``, ``np`` or ``pt``.
            return_dict: false: a tuple instead of diffusers' output class.

        Raises:
            ConfigurationError: a scale below 2, a strength out of range, or an image that is none.
        """
        check_output(output_type)
        if scale < 2:
            raise ConfigurationError(f"scale={scale}", cure="Use 2 or more")
        if not 0 <= strength <= 1 or int(num_inference_steps * strength) < 1:
            raise ConfigurationError(
                f"strength={strength} of {num_inference_steps} steps",
                cure="Use 0 to 1, so that at least a step is left",
            )
        pixels = read_image(image, 1)
        large = upscale(pixels[None], scale)[0].clamp(-1, 1) / 2 + 0.5
        large = _padded(large, _CONTROL_MULTIPLE)[None]
        (found, *_) = self.pipeline(
            self.prompt,
            image=large,
            control_image=large,
            strength=strength,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            controlnet_conditioning_scale=control_scale,
            negative_prompt=self.negative_prompt,
            generator=generator,
            output_type="pt",
            return_dict=False,
        )
        images = _cropped(found, pixels, scale, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)


def _padded(pixels: Tensor, multiple: int) -> Tensor:
    """An image continued by its mirror image to multiples of some px."""
    height, width = (math.ceil(side / multiple) * multiple for side in pixels.shape[1:])
    return covered(pixels, height, width)


def _cropped(found: Tensor, pixels: Tensor, scale: int, output_type: str) -> Any:
    """Images in [0, 1], cropped to ``scale`` times the size of what they were made of, as diffusers gives them."""
    height, width = (scale * side for side in pixels.shape[1:])
    return VaeImageProcessor().postprocess(2 * found[:, :, :height, :width] - 1, output_type)

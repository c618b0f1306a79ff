"""One step of joint multi-scale sampling: patches are pulled towards what an image of a coarser magnification shows.

Source: ZoomLDM (CVPR 2025, section 3, "Joint multi-scale generation") with the inexact Newton step of Graikos et al.,
"Fast constrained sampling in pre-trained diffusion models" (2024). A change of the image is carried into the latent
space, and from there to the noisy state, by finite differences: forward passes only. Its counterpart,
the gradient of the squared difference by backpropagation, is there to be compared with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from generation.guidance import guided_noise
from generation.resize import downscale, upscale
from zoomfeat.errors import ConfigurationError
from zoomfeat.models.zoomldm import ZoomLDM


@dataclass(frozen=True)
class NoiseLevel:
    """One step of the sampler.

    Attributes:
        timestep: what the denoiser is told, in (0, 1000].
        signal: share of the clean latent's variance at this step, ``alphas_cumprod[t - 1]``.
        next_signal: the same after the step.
        variance: of the noise that the step adds.
    """

    timestep: float
    signal: float
    next_signal: float
    variance: float


def noise_levels(scheduler: DDIMScheduler, start: int, stride: int) -> list[NoiseLevel]:
    """The steps from timestep ``start`` down to ``stride``, as the release's joint sampler reads its schedule."""
    abar, betas = scheduler.alphas_cumprod.double(), scheduler.betas.double()
    levels = []
    for t in range(start, 0, -stride):
        signal, next_signal = abar[t - 1].item(), abar[max(t - 1 - stride, 0)].item()
        levels.append(NoiseLevel(float(t), signal, next_signal, betas[t - 1].item() * (1 - next_signal) / (1 - signal)))
    return levels


@dataclass(frozen=True)
class Pull:
    """How patches are pulled.

    Attributes:
        scale: of classifier-free guidance (see :mod:`generation.guidance`); the publication's w = 2 is 3 here.
        iterations: pulls at every step.
        rate: length of a pull, in units of the state's standard deviation.
        difference: h of the finite differences.
        by: ``"differences"`` needs forward passes only, ``"gradient"`` backpropagates.
        clip: keep predicted latents within the box of all codes. The nearest code hides from a pull what lies beyond,
            so that with a small model it runs away there.
    """

    scale: float = 3.0
    iterations: int = 2
    rate: float = 0.5
    difference: float = 0.005
    by: Literal["differences", "gradient"] = "differences"
    clip: bool = False

    def __post_init__(self) -> None:
        if self.by not in ("differences", "gradient"):
            raise ConfigurationError(f"by={self.by!r}", cure="Use differences, the default, or gradient")
        if self.iterations < 0:
            raise ConfigurationError(f"pulls={self.iterations}", cure="Use 2, the default, or 0 for none")
        for name, value in (("guidance_scale", self.scale), ("rate", self.rate), ("difference", self.difference)):
            if not math.isfinite(value):
                raise ConfigurationError(f"{name}={value}", cure="Use the default")


@dataclass(frozen=True)
class Estimate:
    """What the denoiser makes of a state: the clean latent and the noise, each ``(B, C, h, w)``."""

    clean: Tensor
    noise: Tensor


def estimate(
    bundle: ZoomLDM, states: Tensor, level: NoiseLevel, tokens: Tensor | None, scale: float, clip: bool = False
) -> Estimate:
    """Clean latent and noise of states under classifier-free guidance.

    Args:
        bundle: the model.
        states: ``(B, C, h, w)``.
        level: how noisy they are.
        tokens: their conditions ``(B, 65, D)``; None predicts without one, in half the time.
        scale: as in :class:`Pull`.
        clip: likewise.
    """
    if tokens is None:
        tokens, scale = bundle.summarizer.null_context(len(states)), 1.0
    noise = guided_noise(bundle, states, level.timestep, tokens, scale)
    clean = (states - (1 - level.signal) ** 0.5 * noise) / level.signal**0.5
    if not clip:
        return Estimate(clean, noise)
    codes = bundle.vae.quantize.embedding.weight * bundle.vae.config.scaling_factor
    lowest, highest = (end[:, None, None] for end in torch.aminmax(codes, dim=0))
    clean = torch.clamp(clean, lowest, highest)
    return Estimate(clean, (states - level.signal**0.5 * clean) / (1 - level.signal) ** 0.5)


@dataclass(frozen=True)
class Pulled:
    """Patches after they were pulled.

    Attributes:
        states: the noisy states, ``(B, C, h, w)``.
        estimate: of these states.
        direction: of the last pull, largest magnitude 1 in each patch.
    """

    states: Tensor
    estimate: Estimate
    direction: Tensor


def pull(
    bundle: ZoomLDM, states: Tensor, targets: Tensor, level: NoiseLevel, tokens: Tensor | None, options: Pull
) -> Pulled:
    """Pulls patches towards targets, ``options.iterations`` times.

    Args:
        bundle: the model.
        states: noisy states of patches ``(B, C, h, w)``.
        targets: what each should look like from afar, ``(B, 3, H / f, W / f)`` in [-1, 1] for patches of H x W px.
        level: how noisy the states are.
        tokens: conditions ``(B, 65, D)``, or None.
        options: how.
    """
    direction = torch.zeros_like(states)
    if options.by == "gradient":
        for _ in range(options.iterations):
            direction = gradient_direction(bundle, states, targets, level, tokens, options)
            states = states + options.rate * direction
        return Pulled(states, estimate(bundle, states, level, tokens, options.scale, options.clip), direction)
    now = estimate(bundle, states, level, tokens, options.scale, options.clip)
    for _ in range(options.iterations):
        wanted = latent_direction(bundle, bundle.decode(now.clean), targets, options.difference)
        nudged = estimate(bundle, states + options.difference * wanted, level, tokens, options.scale, options.clip)
        direction = unit_peak((nudged.clean - now.clean) / options.difference)
        states = states + options.rate * direction
        now = estimate(bundle, states, level, tokens, options.scale, options.clip)
    return Pulled(states, now, direction)


def latent_direction(bundle: ZoomLDM, images: Tensor, targets: Tensor, difference: float) -> Tensor:
    """How latents must change for their images to look like the targets from afar.

    Args:
        bundle: the model.
        images: decoded patches ``(B, 3, H, W)``, not clamped.
        targets: ``(B, 3, H / f, W / f)``.
        difference: step of the finite difference.

    Returns:
        ``(B, C, h, w)``, largest magnitude 1 in each patch.
    """
    wanted = image_error(images, targets)
    return unit_peak(bundle.encode(images + difference * wanted) - bundle.encode(images))


def image_error(images: Tensor, targets: Tensor) -> Tensor:
    """What images lack to look like the targets from afar, at their own size, largest magnitude 1 in each."""
    factor = images.shape[-1] // targets.shape[-1]
    return unit_peak(upscale(targets - downscale(images, factor), factor))


def gradient_direction(
    bundle: ZoomLDM, states: Tensor, targets: Tensor, level: NoiseLevel, tokens: Tensor | None, options: Pull
) -> Tensor:
    """Steepest descent of the squared difference from the targets, through decoder and denoiser."""
    with torch.enable_grad():
        states = states.detach().requires_grad_()
        clean = estimate(bundle, states, level, tokens, options.scale, options.clip).clean
        # The nearest code passes the gradient straight through, as in the first stage's own training.
        images = bundle.vae.decode(clean / bundle.vae.config.scaling_factor).sample
        seen = downscale(images, images.shape[-1] // targets.shape[-1])
        (gradient,) = torch.autograd.grad((seen - targets).square().sum(), states)
    return unit_peak(-gradient)


def unit_peak(change: Tensor) -> Tensor:
    """Each sample of ``(B, ...)`` divided by its largest magnitude; zeros stay zeros."""
    peak = change.abs().amax(tuple(range(1, change.ndim)), keepdim=True)
    return change / peak.clamp_min(torch.finfo(change.dtype).tiny)


def ancestral_step(now: Estimate, level: NoiseLevel, noise: Tensor) -> Tensor:
    """The states of the next noise level.

    As the release has it, the predicted noise is not reduced by the variance of what is added, and noise is added in
    the last step too.
    """
    return level.next_signal**0.5 * now.clean + (1 - level.next_signal) ** 0.5 * now.noise + level.variance**0.5 * noise

"""Joint multi-scale sampling of whole images: every scale's patches go down the noise levels together.

At each noise level, what the patches of one scale will show pulls at the patches of the next finer one (see
:mod:`generation.joint_guidance`). Memory is bounded by the batch: beside its patches only latents are held.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from generation.batches import seeded_normal
from generation.joint_guidance import NoiseLevel, Pull, ancestral_step, estimate, noise_levels, pull
from generation.large_image import diffused, merge, seam_step, window_estimate
from generation.mosaic import Above, CoarserPatches, GivenImage, Mosaic
from generation.sampling_state import SamplingState
from zoomfeat.errors import ConfigurationError
from zoomfeat.magnification import PATCH_SIZE
from zoomfeat.models.summarizer import embedding_grid
from zoomfeat.models.zoomldm import ZoomLDM

SEAM_STRIDE = 50
"""Timesteps between the steps of the pass that removes seams."""

_JOINT, _SEAM_START, _SEAM = range(3)  # what noise is for, as a part of its seed


@dataclass(frozen=True)
class Settings:
    """How images are sampled.

    Attributes:
        steps: of the joint pass; divides 1000.
        pull: how coarser patches pull at finer ones.
        seam_start: timestep that the pass against seams starts from; 0: none.
        batch_size: patches at once.
        save_every: steps between two savings of the state.
    """

    steps: int = 20
    pull: Pull = field(default_factory=Pull)
    seam_start: int = 300
    batch_size: int = 4
    save_every: int = 1

    def __post_init__(self) -> None:
        if self.steps < 1 or 1000 % self.steps:
            raise ConfigurationError(
                f"{self.steps} steps; expected a number that divides 1000", cure="Use 20, the default, or 10, 25, 50"
            )
        if self.seam_start % SEAM_STRIDE or not 0 <= self.seam_start < 1000:
            raise ConfigurationError(
                f"a pass against seams from {self.seam_start}; expected a multiple of {SEAM_STRIDE} below 1000",
                cure="Use 300, the default, or 0 for none",
            )
        for name, value in (("batch_size", self.batch_size), ("save_every", self.save_every)):
            if value < 1:
                raise ConfigurationError(f"{name}={value}; expected at least 1", cure="Use the default")


@dataclass(frozen=True)
class Sampled:
    """Latents of a sampled image.

    Attributes:
        latent: of the finest scale, ``(C, H, W)``.
        coarser: of each scale above by its magnification, the coarsest first, likewise.
    """

    latent: Tensor
    coarser: dict[str, Tensor]


@torch.no_grad()
def sample(
    bundle: ZoomLDM,
    mosaics: Sequence[Mosaic],
    settings: Settings,
    *,
    seed: int,
    image: Tensor | None = None,
    state: SamplingState | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Sampled:
    """Samples an image at one or several scales.

    Args:
        bundle: the model.
        mosaics: the scales, the coarsest first; each covers the same area.
        settings: how.
        seed: decides all noise, whatever the batch size.
        image: what the coarsest scale should look like from afar, ``(3, h, w)`` in [-1, 1]; None: nothing pulls at it.
        state: where to keep how far it is, and go on from.
        progress: is called with the forward passes of the denoiser that are done and their total.

    Returns:
        Latents.

    Raises:
        ConfigurationError: the state belongs to another run.
    """
    state = state or SamplingState(None, "")
    joint = noise_levels(bundle.scheduler, 1000, 1000 // settings.steps)
    finest = mosaics[-1]
    needs_seams = settings.seam_start and finest.rows * finest.columns > 1
    seam = noise_levels(bundle.scheduler, settings.seam_start, SEAM_STRIDE) if needs_seams else []
    counter = _Passes(mosaics, settings, len(joint), len(seam), image is not None, progress)

    done, tensors = state.load()
    shape = latent_shape(bundle)
    if not tensors:
        for mosaic in mosaics:
            noise = [_noise(shape, seed, _JOINT, mosaic, 0, patch) for patch in range(mosaic.rows * mosaic.columns)]
            tensors[mosaic.magnification.name] = torch.stack(noise)
    tensors = {name: tensor.to(bundle.device) for name, tensor in tensors.items()}
    counter.skip(done)
    for step in range(done, len(joint) + len(seam)):
        if step < len(joint):
            tensors = _joint_step(bundle, mosaics, tensors, joint[step], step + 1, settings, seed, image, counter)
        else:
            tensors = _seam_step(bundle, finest, tensors, seam, step - len(joint), settings, seed, counter)
        if (step + 1) % settings.save_every == 0 or step + 1 == len(joint) + len(seam):
            state.save(step + 1, tensors)
    coarser = {m.magnification.name: merge(tensors[m.magnification.name], m.columns) for m in mosaics[:-1]}
    latent = tensors["merged"] if seam else merge(tensors[finest.magnification.name], finest.columns)
    return Sampled(latent, coarser)


def latent_shape(bundle: ZoomLDM) -> tuple[int, int, int]:
    """Channels, height and width of the latent of one patch."""
    side = PATCH_SIZE // 2 ** (len(bundle.vae.config.block_out_channels) - 1)
    return bundle.unet.config.in_channels, side, side


def _joint_step(
    bundle: ZoomLDM,
    mosaics: Sequence[Mosaic],
    states: dict[str, Tensor],
    level: NoiseLevel,
    number: int,
    settings: Settings,
    seed: int,
    image: Tensor | None,
    counter: _Passes,
) -> dict[str, Tensor]:
    """All scales one noise level down, the coarsest first."""
    above: Above | None = None if image is None else GivenImage(image.to(bundle.device), mosaics[0].columns)
    following = {}
    for place, mosaic in enumerate(mosaics):
        before = states[mosaic.magnification.name]
        clean, after = torch.empty_like(before), torch.empty_like(before)
        order = list(range(len(before)))
        if isinstance(above, CoarserPatches):
            order.sort(key=above.parent)  # so that each patch above is decoded once
        for start in range(0, len(order), settings.batch_size):
            batch = order[start : start + settings.batch_size]
            tokens = mosaic.conditions(bundle, batch)
            if above is None:
                now = estimate(bundle, before[batch], level, tokens, settings.pull.scale, settings.pull.clip)
            else:
                now = pull(bundle, before[batch], above.targets(batch), level, tokens, settings.pull).estimate
            noise = [_noise(before.shape[1:], seed, _JOINT, mosaic, number, patch) for patch in batch]
            clean[batch] = now.clean
            after[batch] = ancestral_step(now, level, torch.stack(noise).to(before))
            counter.patches(len(batch), pulled=above is not None)
        following[mosaic.magnification.name] = after
        if place + 1 < len(mosaics):
            factor = mosaics[place + 1].columns // mosaic.columns
            above = CoarserPatches(bundle, clean, mosaic.columns, factor)
    return following


def _seam_step(
    bundle: ZoomLDM,
    mosaic: Mosaic,
    states: dict[str, Tensor],
    levels: list[NoiseLevel],
    step: int,
    settings: Settings,
    seed: int,
    counter: _Passes,
) -> dict[str, Tensor]:
    """The finest scale as one latent, one noise level down."""
    latent = states["merged"] if step else merge(states[mosaic.magnification.name], mosaic.columns)
    if step == 0:
        noise = _noise(latent.shape, seed, _SEAM_START, mosaic, 0, 0).to(latent)
        latent = diffused(latent, levels[0], noise)
    embeddings = None
    if mosaic.embeddings is not None:
        embeddings = embedding_grid(mosaic.embeddings.flatten(1).T[:, :, None, None].to(latent))[..., 0, 0]
        embeddings = embeddings.T.reshape(mosaic.embeddings.shape)
    now = window_estimate(
        bundle,
        latent,
        levels[step],
        embeddings,
        settings.pull.scale,
        window=latent_shape(bundle)[1],
        batch_size=settings.batch_size,
        clip=settings.pull.clip,
        finished=counter.windows,
    )
    noise = _noise(latent.shape, seed, _SEAM, mosaic, step, 0).to(latent)
    return {**states, "merged": seam_step(now, levels[step], noise)}


def _noise(shape: Sequence[int], seed: int, purpose: int, mosaic: Mosaic, step: int, patch: int) -> Tensor:
    """Noise that depends on these numbers alone, so neither on the batch nor on an interruption."""
    return seeded_normal(shape, seed, purpose, mosaic.magnification.index, step, patch)


class _Passes:
    """Counts forward passes of the denoiser; with guidance, conditional and unconditional are one."""

    def __init__(
        self,
        mosaics: Sequence[Mosaic],
        settings: Settings,
        joint_steps: int,
        seam_steps: int,
        pulled: bool,
        progress: Callable[[int, int], None],
    ) -> None:
        self._each = 1 + (2 if settings.pull.by == "differences" else 1) * settings.pull.iterations
        finest = mosaics[-1]
        self._joint = sum(
            mosaic.rows * mosaic.columns * (self._each if place or pulled else 1)
            for place, mosaic in enumerate(mosaics)
        )
        self._seam = (2 * finest.rows - 1) * (2 * finest.columns - 1)
        self._joint_steps = joint_steps
        self._total = joint_steps * self._joint + seam_steps * self._seam
        self._done = 0
        self._progress = progress

    def skip(self, steps: int) -> None:
        """Steps that an earlier run has done."""
        joint = min(steps, self._joint_steps)
        self._add(joint * self._joint + (steps - joint) * self._seam)

    def patches(self, count: int, *, pulled: bool) -> None:
        self._add(count * (self._each if pulled else 1))

    def windows(self, count: int) -> None:
        self._add(count)

    def _add(self, passes: int) -> None:
        self._done += passes
        self._progress(self._done, self._total)

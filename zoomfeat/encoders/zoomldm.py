"""ZoomLDM as a patch encoder: activations of its denoiser on a patch that is noised to a fixed timestep.

Publication: ZoomLDM (CVPR 2025), section 4.4. It fixes neither block nor timestep; both are options here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import VQModel
from numpy.typing import NDArray
from torch import Tensor

from zoomfeat.conf.schema import ZoomLDMConfig, ZoomLDMTinyConfig
from zoomfeat.domains import load_domain
from zoomfeat.encoders.base import PatchEncoder
from zoomfeat.encoders.registry import load_encoder, register
from zoomfeat.errors import ConfigurationError
from zoomfeat.magnification import BRCA, NAIP, PATCH_SIZE, Ladder, Magnification
from zoomfeat.models import onednn
from zoomfeat.models.architecture import (
    FIRST_STAGES,
    SUMMARIZERS,
    UNETS,
    build_first_stage,
    build_scheduler,
    build_unet,
)
from zoomfeat.models.compiled import check_compiler, compiled
from zoomfeat.models.denoiser import activations, canonical_taps, tap_dims, without_condition
from zoomfeat.models.distilled import LatentEncoder, check_first_stage, load_distilled
from zoomfeat.models.summarizer import Summarizer, embedding_grid
from zoomfeat.models.weights import fetch
from zoomfeat.models.zoomldm import ZoomLDM, as_input

TINY = Path(__file__).parents[1] / "weights" / "zoomldm-tiny"
"""The small model that ships: a folder of :meth:`ZoomLDM.load`, with its conditioning model in ``cdm``."""

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Types that the networks may compute in."""


class ZoomLDMEncoder(PatchEncoder):
    """Features from inside a ZoomLDM.

    The patch is encoded by the first stage (not quantised), noised to the timestep, and run through the denoiser
    up to the last tap; each tap's activations are pooled over space and the taps are concatenated. The first stage
    runs once, for all taps, timesteps and draws; without a condition the denoiser runs without its cross-attention.

    Args:
        bundle: the model.
        options: its name in the registry, taps, timestep and so on; see :class:`zoomfeat.conf.schema.ZoomLDMConfig`.
        magnification: what patches are seen at; it matters only to a conditioned encoder.
        device: where it runs.
        ladder: the magnifications that the model was trained on.
        note: what a reader of the features must know.

    Attributes:
        latent_shape: channels, rows and columns of a patch's latent.

    Raises:
        ConfigurationError: an option out of its range, or an embedding encoder of another width than the Summarizer.
    """

    ladder: Ladder

    def __init__(
        self,
        bundle: ZoomLDM,
        options: ZoomLDMConfig,
        magnification: str | Magnification | None,
        device: str,
        *,
        ladder: Ladder = BRCA,
        note: str = "",
    ) -> None:
        self.ladder = ladder
        super().__init__(magnification, device)
        _check(options, bundle.scheduler.config.num_train_timesteps)
        self.name = options.name
        self.note = note
        self.taps = canonical_taps(bundle.unet, options.taps)
        self.timesteps = tuple(options.timesteps or [options.timestep])
        self.dim = sum(tap_dims(bundle.unet, self.taps)) * len(self.timesteps)
        self.weights_hash = bundle.weights_hash()
        self.bundle = bundle.to(self.device)
        for part in (bundle.vae, bundle.unet, bundle.summarizer):
            part.eval().requires_grad_(False)
        # Convolutions run faster so: by 2 to 20 % on CPUs, measured. Patches lie in memory like that anyway.
        bundle.vae.to(memory_format=torch.channels_last)
        bundle.unet.to(memory_format=torch.channels_last)
        self._unet = without_condition(bundle.unet) if options.conditioning == "null" else bundle.unet
        self._encode: Callable[[Tensor], Tensor] = bundle.encode
        self._activations = activations
        by_onednn = self.device.type == "cpu" and options.precision == "float32" and onednn.available()
        if options.compile:  # the compiler has its own ways to oneDNN
            check_compiler(self.device)
            self._activations, self._encode = compiled(activations), compiled(bundle.encode)
        elif by_onednn:
            onednn.keep_memory()
            self._unet = onednn.accelerated(self._unet)
            self._encode = partial(_latents, bundle, onednn.accelerated(bundle.vae))
        self._pool = options.pool
        self._precision = PRECISIONS[options.precision]
        side = PATCH_SIZE // 2 ** (len(bundle.vae.config.block_out_channels) - 1)
        shape = (1, bundle.unet.config.in_channels, side, side)
        self._noises = [_noise(shape, options.seed, draw).to(self.device) for draw in range(options.draws)]
        self.latent_shape = shape[1:]
        self.settings = {
            "taps": list(self.taps),
            "pool": options.pool,
            "timestep": options.timestep,
            "seed": options.seed,
            "draws": options.draws,
            "conditioning": options.conditioning,
        }
        # Bags from before these keys stay what they are.
        if options.timesteps:
            self.settings["timestep"] = list(self.timesteps)
        if options.precision != "float32":
            self.settings["precision"] = options.precision
        if options.compile:
            self.settings["compile"] = True
        if options.conditioning == "ssl":
            embedding = options.ssl_encoder or load_domain(ladder.name).embedding
            self.context_encoder = load_encoder(embedding, ladder.finest, device)
            if self.context_encoder.dim != bundle.summarizer.config.input_dim:
                raise ConfigurationError(
                    f"{embedding} gives {self.context_encoder.dim} features, the Summarizer of {self.name} "
                    f"reads {bundle.summarizer.config.input_dim}",
                    cure="Set ssl_encoder to the encoder that the model was trained with",
                )
            self.settings |= {
                "ssl_encoder": self.context_encoder.name,
                "ssl_weights_hash": self.context_encoder.weights_hash,
            }
        if options.distilled_encoder is not None:
            accelerate = compiled if options.compile else onednn.accelerated if by_onednn else None
            self._distil(options.distilled_encoder, accelerate)

    def transform(self, images: NDArray[np.uint8] | Tensor) -> Tensor:
        """Channels first, in [-1, 1]."""
        return as_input(images)

    def embed(self, inputs: Tensor, context: Tensor | None) -> Tensor:
        """Pooled activations, the taps one after the other."""
        maps = self._maps(inputs, context)
        return torch.cat([m.mean((2, 3)) if self._pool == "mean" else m.amax((2, 3)) for m in maps.values()], dim=1)

    @torch.inference_mode()
    def maps(
        self, images: NDArray[np.uint8], context: NDArray[np.float32] | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """Unpooled activations at each tap, ``(B, channels, h, w)`` float32, averaged over the draws.

        Where several timesteps are asked for, the keys are ``TAP@TIMESTEP``.

        Args:
            images: ``(B, 256, 256, 3)`` uint8 RGB.
            context: as in a call of the encoder.
        """
        if context is None and self.context_encoder is not None:
            context = self._own_context(images)
        part = None if context is None else self.sent(context)
        maps = self._maps(self.transform(self.sent(images)), part)
        return {tap: m.float().cpu().numpy() for tap, m in maps.items()}

    def through(self, encode: Callable[[Tensor], Tensor]) -> ZoomLDMEncoder:
        """The same encoder over latents that something else makes of pixels ``(B, 3, 256, 256)`` in [-1, 1]."""
        other = copy.copy(self)
        other._encode = encode
        return other

    def _distil(self, folder: str, accelerate: Callable[[LatentEncoder], LatentEncoder] | None) -> None:
        encoder = load_distilled(LatentEncoder, folder)
        check_first_stage(encoder, self.bundle.vae, self.latent_shape, folder)
        record = encoder.record
        note = f"latents by a distilled encoder: {record.describe_fidelity()}"
        if record.weights_hash != self.weights_hash or record.settings != self.settings:
            note += ", measured with another denoiser or other taps, timestep or condition than these"
        self.name += "-distilled"
        self.note = "; ".join(filter(None, (self.note, note)))
        self.settings = {**self.settings, "distilled_encoder": encoder.weights_hash()}
        encoder = encoder.requires_grad_(False).to(self.device)
        self._encode = accelerate(encoder) if accelerate else encoder

    def _maps(self, inputs: Tensor, context: Tensor | None) -> dict[str, Tensor]:
        with torch.autocast(self.device.type, self._precision, enabled=self._precision != torch.float32):
            latents = self._encode(inputs)
            summarizer = self.bundle.summarizer
            if context is None:
                tokens = summarizer.null_context(len(latents))
            else:
                tokens = summarizer(embedding_grid(context), self.magnification.index)
            maps = {step: self._at_timestep(step, latents, tokens) for step in self.timesteps}
        if len(maps) == 1:
            return maps[self.timesteps[0]]
        return {f"{tap}@{step}": hidden for step, taps in maps.items() for tap, hidden in taps.items()}

    def _at_timestep(self, step: int, latents: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        timestep = torch.tensor([step], device=self.device)
        total: dict[str, Tensor] = {}
        for noise in self._noises:
            noisy = self.bundle.scheduler.add_noise(latents, noise.expand_as(latents), timestep)
            noisy = noisy.contiguous(memory_format=torch.channels_last)
            for tap, hidden in self._activations(self._unet, noisy, timestep, tokens, self.taps).items():
                # Sums of draws and pools keep their digits whatever the networks compute in.
                total[tap] = total[tap] + hidden.float() if tap in total else hidden.float()
        return {tap: hidden / len(self._noises) for tap, hidden in total.items()}


def _latents(bundle: ZoomLDM, vae: VQModel, pixels: Tensor) -> Tensor:
    """What :meth:`ZoomLDM.encode` gives, by a copy of the first stage; a later change of the scale holds for it too."""
    return vae.encode(pixels).latents * bundle.vae.config.scaling_factor


def _check(options: ZoomLDMConfig, steps: int) -> None:
    for step in (options.timestep, *(options.timesteps or ())):
        if not 0 <= step < steps:
            raise ConfigurationError(
                f"timestep={step}; expected 0 to {steps - 1}", cure=f"The default is {type(options).timestep}"
            )
    if len(set(options.timesteps or ())) < len(options.timesteps or ()):
        raise ConfigurationError(f"a timestep is asked for twice in {options.timesteps}", cure="Name each once")
    if options.precision not in PRECISIONS:
        raise ConfigurationError(
            f"precision={options.precision!r}; expected one of {', '.join(PRECISIONS)}", cure="The default is float32"
        )
    if options.draws < 1:
        raise ConfigurationError(f"draws={options.draws}; expected at least 1", cure="The default is 1")
    if options.seed < 0:
        raise ConfigurationError(f"seed={options.seed}; expected 0 or more", cure="The default is 0")
    if options.pool not in ("mean", "max"):
        raise ConfigurationError(
            f"pool={options.pool!r}; expected mean or max", cure="The unpooled map is `encoder.maps(images)` in Python"
        )
    if options.conditioning not in ("null", "ssl"):
        raise ConfigurationError(
            f"conditioning={options.conditioning!r}; expected null or ssl", cure="The default is null"
        )


def _noise(shape: tuple[int, ...], seed: int, draw: int) -> Tensor:
    """Standard normal noise that depends on seed and draw alone, made on the CPU whatever the device."""
    state = int(np.random.SeedSequence([seed, draw]).generate_state(1, np.uint64)[0])
    # Generators take signed 64-bit seeds.
    return torch.randn(shape, generator=torch.Generator().manual_seed(state >> 1))


def _released(domain: str, options: ZoomLDMConfig) -> ZoomLDM:
    """The weights that the options name, else those of the public release, from the hub."""
    return ZoomLDM.load(released_checkpoint(domain) if options.weights is None else options.weights)


RELEASED = {"zoomldm-brca": "brca", "zoomldm-naip": "naip"}
"""By encoder, the domain whose weights the public release holds."""


def released_checkpoint(domain: str) -> Path:
    """A domain's ``weights.ckpt`` of the public release, its ``config.yaml`` beside it; fetched where they are missing.

    Raises:
        ConfigurationError: the domain names none.
        CheckpointMismatchError: they are not to be had.
    """
    repository, folder = load_domain(domain).hub
    weights = fetch(repository, f"{folder}/weights.ckpt")
    fetch(repository, f"{folder}/config.yaml")
    return weights


@register(
    dim=960,
    input_size=256,
    mean=(0.5,) * 3,
    std=(0.5,) * 3,
    feature="taps",
    magnification="20x-0.15625x",
    hub=load_domain(BRCA.name).hub[0],
    revision="main",
    file="brca/weights.ckpt",
    parameters=494_899_361,  # first stage, denoiser, Summarizer
)
def zoomldm_brca(options: ZoomLDMConfig, magnification: str | Magnification | None, device: str) -> PatchEncoder:
    """ZoomLDM trained on TCGA-BRCA, eight magnifications (960 features at the default tap); 3.6 GB from the hub."""
    return ZoomLDMEncoder(_released("brca", options), options, magnification, device)


@register(
    dim=960,
    input_size=256,
    mean=(0.5,) * 3,
    std=(0.5,) * 3,
    feature="taps",
    magnification="1x-4x",
    hub=load_domain(NAIP.name).hub[0],
    revision="main",
    file="naip/weights.ckpt",
)
def zoomldm_naip(options: ZoomLDMConfig, magnification: str | Magnification | None, device: str) -> PatchEncoder:
    """ZoomLDM trained on NAIP aerial imagery, four magnifications; describes satellite images, not slides."""
    return ZoomLDMEncoder(_released("naip", options), options, magnification, device, ladder=NAIP)


@register(
    dim=384,
    input_size=256,
    mean=(0.5,) * 3,
    std=(0.5,) * 3,
    feature="taps",
    magnification="20x-0.15625x",
    licence="MIT",
    parameters=8_902_051,
)
def zoomldm_tiny(options: ZoomLDMTinyConfig, magnification: str | Magnification | None, device: str) -> PatchEncoder:
    """A small ZoomLDM that ships with zoomfeat, trained on few real pictures: to try the toolkit, not for science."""
    bundle = ZoomLDM.load(options.weights or TINY)
    note = "" if options.weights else "a small model trained on few pictures, for demonstration and tests only"
    return ZoomLDMEncoder(bundle, options, magnification, device, note=note)


def untrained_tiny(seed: int = 0) -> ZoomLDM:
    """The architecture of `zoomldm-tiny` (f8 first stage, 6.6 M parameters in the denoiser) with random weights.

    Args:
        seed: decides them.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ZoomLDM(
            vae=build_first_stage(**FIRST_STAGES["tiny"], sample_size=PATCH_SIZE),
            unet=build_unet(**UNETS["tiny"], sample_size=PATCH_SIZE // 8),
            summarizer=Summarizer(input_dim=1280, **SUMMARIZERS["tiny"]),
            scheduler=build_scheduler(),
        )

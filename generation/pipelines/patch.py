"""Patches at every magnification of a model, as a diffusers pipeline.

A patch is drawn under Summarizer tokens, which come from embeddings, from a region of a slide, or from the
conditioning model: ZoomLDM (CVPR 2025, section 3). Samplers are diffusers' own. It is one class, as their
pipelines are; what makes it long is what it says of its arguments.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import ImagePipelineOutput, SchedulerMixin, UNet2DConditionModel, VQModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from generation.conditioning import ConditioningDiT, sample_tokens
from generation.guidance import guided_noise
from generation.pipelines.inputs import (
    Embeddings,
    Name,
    as_grids,
    check_grid,
    check_rows,
    one_each,
    read_magnifications,
)
from generation.region import region_embeddings
from zoomfeat.domains import Domain, load_domain
from zoomfeat.encoders import PatchEncoder, load_encoder
from zoomfeat.errors import CheckpointMismatchError, ConfigurationError
from zoomfeat.magnification import BRCA, NAIP, PATCH_SIZE, Ladder, Magnification
from zoomfeat.models.summarizer import Summarizer, embedding_grid
from zoomfeat.models.weights import check_complete
from zoomfeat.models.zoomldm import ZoomLDM
from zoomfeat.slides import Slide

_OUTPUTS = ("pil", "np", "pt", "latent")

StepCallback = Callable[[Any, int, Tensor, dict[str, Any]], dict[str, Any]]
"""diffusers' ``callback_on_step_end``: pipeline, step, timestep and ``{"latents": ...}`` in, the last one out."""

_Context = Callable[[list[int], list[torch.Generator], Callable[[Tensor], object]], Tensor]


class ZoomLDMPipeline(ZoomLDM):
    """Draws 256 x 256 px patches at any magnification that the model knows.

    ``from_pretrained``, ``save_pretrained``, ``to`` and ``set_progress_bar_config`` are diffusers' own. Schedulers
    swap: ``pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config)``.

    Args:
        vae: the first stage.
        unet: the denoiser, which predicts noise.
        summarizer: makes the denoiser's context from SSL embeddings.
        scheduler: any diffusers scheduler over the model's noise schedule.
        cdm: the conditioning model, which draws contexts from a magnification alone; optional.
        ladder: the domain whose magnifications they are, ``"brca"``, ``"naip"`` or the path of a YAML file; null:
            NAIP's where the Summarizer knows four, as the released model does, else as many of histology's as it knows.
        ssl_encoder: name of the encoder whose embeddings the model was trained with, for :meth:`from_region`.

    Raises:
        CheckpointMismatchError: a conditioning model for another Summarizer.
        ConfigurationError: an unknown domain.
    """

    _optional_components = ["cdm"]  # noqa: RUF012, the type that diffusers takes

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
        super().__init__(vae, unet, summarizer, scheduler)
        if ladder is not None:
            load_domain(ladder)
        if cdm is not None:
            _check_cdm(cdm, summarizer)
        self.register_modules(cdm=cdm)
        self.register_to_config(ladder=ladder, ssl_encoder=ssl_encoder)

    @classmethod
    def load(cls, weights: str | Path, *, ema: bool = True, cdm: str | Path | None = None) -> ZoomLDMPipeline:
        """Loads weights from disk in either layout, as :meth:`ZoomLDM.load` does.

        Args:
            weights: a folder, or a checkpoint of the release.
            ema: the averaged weights, of the conditioning model too, or the raw ones.
            cdm: the conditioning model, a folder or a checkpoint of the release; null: the folder ``cdm`` beside the
                other modules, where there is one.

        Raises:
            CheckpointMismatchError: files that are missing, incomplete, or do not fit each other.
        """
        pipe = super().load(weights, ema=ema)
        assert isinstance(pipe, cls)
        beside = Path(weights) / "cdm"
        if cdm is None and pipe.cdm is not None:
            check_complete(pipe.cdm, beside)
        elif cdm is not None or beside.is_dir():
            model = ConditioningDiT.load(cdm or beside, ema=ema)
            _check_cdm(model, pipe.summarizer)
            pipe.register_modules(cdm=model)
        return pipe

    @property
    def domain(self) -> Domain:
        """What the model draws."""
        known = self.summarizer.config.num_magnifications
        return load_domain(self.config.ladder or (NAIP.name if known == len(NAIP.steps) else BRCA.name))

    @property
    def ladder(self) -> Ladder:
        """The magnifications that the model knows, finest first."""
        ladder = self.domain.ladder
        return Ladder(ladder.name, ladder.steps[: self.summarizer.config.num_magnifications])

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of the latent of one patch."""
        side = PATCH_SIZE // 2 ** (len(self.vae.config.block_out_channels) - 1)
        return self.unet.config.in_channels, side, side

    def samples_at_once(self, batch_size: int) -> int:
        """One on a CPU, where a batch buys little and its size decides the last bits; else as many as asked for."""
        return 1 if self._execution_device.type == "cpu" else batch_size

    @torch.no_grad()
    def __call__(
        self,
        ssl_embeddings: Embeddings | Sequence[Embeddings] | None = None,
        magnification: Name | Sequence[Name] | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 2.0,
        num_images: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        tokens: Tensor | None = None,
        eta: float = 0.0,
        num_cdm_steps: int = 200,
        batch_size: int = 8,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draws patches under embeddings, or without any under tokens that the conditioning model draws.

        A sample follows from its condition and its generator alone: each has a generator of its own, a CPU takes
        samples one by one (kernels chosen by batch size differ in their last bits), and a GPU takes them in batches,
        which are equal up to rounding.

        Args:
            ssl_embeddings: raw embeddings of the finest patches under each region, rows downwards: one grid
                ``(C, g, g)``, several ``(B, C, g, g)``, or a list of grids whose sizes may differ, since
                magnifications may. g is 2**k at the magnification of index k; grids pooled to 8 x 8 will do.
            magnification: of all samples, or a list: one a grid, and without embeddings one an image.
            num_inference_steps: denoising steps, 1 to 1000.
            guidance_scale: s in ``u + s (c - u)``, c and u being the noise predicted with and without the condition:
                the convention of diffusers and of the release's samplers, 1 is no guidance, 0 no condition. Ho and
                Salimans' ``(1 + w) c - w u``, which the release's joint sampler uses, is s = 1 + w: w = 2 is 3 here.
            num_images: images of each condition, or of each magnification; they follow each other.
            generator: a list, one a sample; or one, from which each sample's own is spawned in order, so that the
                first samples of many are those of few, and two calls with it continue each other. Generators on the
                CPU (spawned ones are) give the same noise on every device. Null: torch's default.
            latents: standard normal noise ``(B, C, h, w)`` to start from instead, a row a sample.
            tokens: Summarizer tokens ``(B, 65, D)`` instead of embeddings, a row a condition.
            eta: ancestral noise in each step, 0 to 1, for a scheduler that takes it (DDIM); ``DDPMScheduler`` is
                ancestral by itself.
            num_cdm_steps: steps of the conditioning model, 2 to 1000.
            batch_size: samples at once on a GPU.
            output_type: ``pil`` (a list of images), ``np`` (``(B, H, W, 3)`` in [0, 1]), ``pt`` (``(B, 3, H, W)`` in
                [0, 1]) or ``latent``.
            return_dict: false: a tuple instead of diffusers' output class.
            callback_on_step_end: diffusers' callback, after every denoising step of every batch; latents in what it
                returns replace those it was given.
            progress: called with the steps done and their number, conditioning model and denoiser together.

        Returns:
            The images.

        Raises:
            ConfigurationError: arguments that do not fit each other or the model; one line says which.
            MagnificationError: a magnification that the model lacks.
        """
        if output_type not in _OUTPUTS:
            raise ConfigurationError(f"output_type={output_type!r}", cure=f"Use one of {', '.join(_OUTPUTS)}")
        self._check_numbers(num_inference_steps, guidance_scale, num_images, batch_size)
        count, context = self._conditions(ssl_embeddings, magnification, tokens, num_cdm_steps)
        conditions = [i for i in range(count) for _ in range(num_images)]
        generators = one_each(generator, len(conditions))
        if latents is not None:
            multiple = 2 ** (len(self.unet.config.block_out_channels) - 1)
            sides = tuple(max(side // multiple, 1) * multiple for side in latents.shape[2:4])
            check_rows("latents", latents, len(conditions), (self.latent_shape[0], *sides))

        device = self._execution_device
        at_once = self.samples_at_once(batch_size)
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        drawn = ssl_embeddings is None and tokens is None
        each = len(self.scheduler.timesteps) + (num_cdm_steps if drawn else 0)
        total, done = each * math.ceil(len(conditions) / at_once), 0
        results = []
        with self.progress_bar(total=total) as bar:

            def advance(*_: object) -> None:
                nonlocal done
                done += 1
                bar.update()
                if progress is not None:
                    progress(done, total)

            for start in range(0, len(conditions), at_once):
                sources = generators[start : start + at_once]
                read = context(conditions[start : start + at_once], sources, advance)
                if latents is None:
                    noise = randn_tensor((len(sources), *self.latent_shape), sources, device, torch.float32)
                else:
                    noise = latents[start : start + at_once].to(device, torch.float32)
                sampled = self.denoise(
                    noise, read, num_inference_steps, guidance_scale, eta, sources, callback_on_step_end, advance
                )
                results.append(sampled if output_type == "latent" else self.decode(sampled.to(self.vae.dtype)).float())
        images = VaeImageProcessor().postprocess(torch.cat(results), output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def from_region(
        self,
        slide: Slide | str | Path,
        x: int,
        y: int,
        magnification: Name,
        *,
        encoder: PatchEncoder | None = None,
        mpp: float | None = None,
        **options: Any,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draws variations of a region: other pixels, the same semantics as far as embeddings tell.

        All finest patches under the region are embedded, which at 1.25x are 256 of 20x and at 0.15625x 16384.

        Args:
            slide: an open slide or its path; a reference patch is a plain image, whose um/px is ``mpp``.
            x: left edge of the region in level-0 pixels; what lies beyond the slide is white.
            y: top edge.
            magnification: of the region, which is 256 px a side there.
            encoder: embeds the patches; null: the one that the model was trained with, loaded anew in each call.
            mpp: um/px at level 0 of a path whose file does not say.
            options: of a call of the pipeline, for example ``num_images=4``.

        Raises:
            ConfigurationError: no encoder is known, or one of another width than the Summarizer reads; a region
                beside the slide; options as in a call.
            MagnificationError: a magnification that the model lacks, or pixels too coarse for the finest.
            SlideUnreadableError: the slide does not open, or the region does not decode.
        """
        if isinstance(slide, str | Path):
            with Slide.open(slide, default_mpp=mpp, reader=self.domain.reader) as opened:
                return self.from_region(opened, x, y, magnification, encoder=encoder, **options)
        step = self.ladder[magnification]
        encoder = self.embedding_encoder(encoder)
        return self(region_embeddings(slide, x, y, step, encoder, self.ladder), step, **options)

    def embedding_encoder(self, encoder: PatchEncoder | None = None) -> PatchEncoder:
        """The encoder given, or the one that the model was trained with, once it is known to fit.

        Raises:
            ConfigurationError: none is known, or its width is not what the Summarizer reads.
        """
        if encoder is None:
            if self.config.ssl_encoder is None:
                raise ConfigurationError(
                    "the model does not say by which encoder it was conditioned",
                    cure="Give encoder=load_encoder(name), on the command line ssl_encoder=name",
                )
            encoder = load_encoder(self.config.ssl_encoder, self.ladder.finest, str(self._execution_device))
        expected = self.summarizer.config.input_dim
        if encoder.dim != expected:
            raise ConfigurationError(
                f"{encoder.name} gives {encoder.dim} features, the Summarizer reads {expected}",
                cure="Use the encoder that the model was trained with",
            )
        return encoder

    @torch.no_grad()
    def encode_embeddings(self, grids: Sequence[Tensor], magnifications: Sequence[Magnification]) -> Tensor:
        """Summarizer tokens ``(B, 65, D)`` of raw embeddings, one ``(C, g, g)`` a sample."""
        device, dtype = self._execution_device, self.summarizer.dtype
        ready = [embedding_grid(grid[None].to(device, torch.float32))[0].to(dtype) for grid in grids]
        return self.summarizer(ready, torch.tensor([step.index for step in magnifications], device=device))

    def draw_tokens(
        self,
        magnifications: Sequence[Magnification],
        generators: Sequence[torch.Generator],
        steps: int = 200,
        on_step: Callable[[Tensor], object] | None = None,
    ) -> Tensor:
        """Summarizer tokens ``(B, 65, D)`` that the conditioning model draws for magnifications, one a sample."""
        indices = [step.index for step in magnifications]
        return sample_tokens(self.cdm, indices, list(generators), steps, on_step).to(self.unet.dtype)

    @torch.no_grad()
    def denoise(
        self,
        latents: Tensor,
        tokens: Tensor,
        steps: int = 50,
        guidance_scale: float = 2.0,
        eta: float = 0.0,
        generators: Sequence[torch.Generator] | None = None,
        callback: StepCallback | None = None,
        on_step: Callable[[], object] | None = None,
    ) -> Tensor:
        """The sampling loop, over one batch as a whole.

        Args:
            latents: standard normal noise ``(B, C, h, w)``, float32.
            tokens: ``(B, 65, D)`` in the denoiser's type.
            steps: of the scheduler.
            guidance_scale: as in a call.
            eta: as in a call.
            generators: of the noise that ancestral samplers add, one a sample.
            callback: as ``callback_on_step_end`` in a call.
            on_step: called after every step.

        Returns:
            Clean latents, float32: between steps nothing is rounded to the denoiser's type.

        Raises:
            ConfigurationError: an eta that the scheduler does not take.
        """
        scheduler = self.scheduler
        accepted = inspect.signature(scheduler.step).parameters
        if eta and "eta" not in accepted:
            raise ConfigurationError(
                f"eta={eta:g} with {type(scheduler).__name__}", cure="DDIMScheduler takes eta; leave it out here"
            )
        sources = None if generators is None else list(generators)
        options = {name: value for name, value in (("eta", eta), ("generator", sources)) if name in accepted}
        scheduler.set_timesteps(steps, device=latents.device)  # multi-step samplers also forget the last batch here
        latents = latents * scheduler.init_noise_sigma
        for index, timestep in enumerate(scheduler.timesteps):
            noisy = scheduler.scale_model_input(latents, timestep).to(self.unet.dtype)
            noise = guided_noise(self, noisy, timestep, tokens, guidance_scale).float()
            latents = scheduler.step(noise, timestep, latents, **options).prev_sample
            if callback is not None:
                latents = callback(self, index, timestep, {"latents": latents}).get("latents", latents)
            if on_step is not None:
                on_step()
        return latents

    def _conditions(
        self,
        embeddings: Embeddings | Sequence[Embeddings] | None,
        magnification: Name | Sequence[Name] | None,
        tokens: Tensor | None,
        cdm_steps: int,
    ) -> tuple[int, _Context]:
        """How many conditions there are, and what makes the denoiser's context of some of them."""
        if tokens is not None:
            if embeddings is not None:
                raise ConfigurationError("both ssl_embeddings and tokens", cure="Give one of them")
            check_rows("tokens", tokens, None, self.summarizer.context_shape)
            ready = tokens.to(self._execution_device, self.unet.dtype)
            return len(tokens), lambda part, generators, on_step: ready[part]
        grids = None if embeddings is None else as_grids(embeddings)
        steps = read_magnifications(magnification, self.ladder, None if grids is None else len(grids))
        if grids is None:
            if self.cdm is None:
                raise ConfigurationError(
                    "no ssl_embeddings, and the model has no conditioning model (cdm) to draw without them",
                    cure="Give ssl_embeddings=, or load one with ZoomLDMPipeline.load(weights, cdm=path)",
                )
            return len(steps), lambda part, generators, on_step: self.draw_tokens(
                [steps[i] for i in part], generators, cdm_steps, on_step
            )
        for grid, step in zip(grids, steps, strict=True):
            check_grid(grid, step, self.summarizer.config.input_dim)
        return len(steps), lambda part, generators, on_step: self.encode_embeddings(
            [grids[i] for i in part], [steps[i] for i in part]
        )

    def _check_numbers(self, steps: int, guidance: float, images: int, batch_size: int) -> None:
        trained = self.scheduler.config.num_train_timesteps
        if not 1 <= steps <= trained:
            raise ConfigurationError(f"num_inference_steps={steps}", cure=f"Use 1 to {trained}; the default is 50")
        for name, count in (("num_images", images), ("batch_size", batch_size)):
            if count < 1:
                raise ConfigurationError(f"{name}={count}", cure="Use 1 or more")
        if not math.isfinite(guidance):
            raise ConfigurationError(f"guidance_scale={guidance}", cure="The default is 2.0; 1.0 is no guidance")


def _check_cdm(cdm: ConditioningDiT, summarizer: Summarizer) -> None:
    """Tokens of another Summarizer mean nothing to a denoiser; another shape at least shows that."""
    found = (cdm.config.num_tokens, cdm.config.token_dim), cdm.config.num_magnifications
    expected = summarizer.context_shape, summarizer.config.num_magnifications
    if found != expected:
        raise CheckpointMismatchError(
            f"the conditioning model makes tokens {found[0]} for {found[1]} magnifications, "
            f"the model reads {expected[0]} for {expected[1]}",
            cure="Give the conditioning model that was trained with this model",
        )

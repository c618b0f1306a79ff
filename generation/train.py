"""The joint training of ZoomLDM's denoiser and Summarizer.

Source: ZoomLDM (CVPR 2025), sections 3 and 4.1: epsilon prediction, magnifications sampled uniformly, one condition in
ten replaced by zeros after the Summarizer, AdamW at 2e-5 after a linear warm-up, an average (EMA) of the denoiser.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.training_utils import EMAModel
from rich.console import Console
from torch import Tensor, nn

from generation.batches import Batch, Draw, Levels, TrainingData, read_batch
from generation.loop import TrainingLoop, averaged
from generation.losses import predict
from generation.monitoring import HELD_OUT_COLUMNS, validate, write_samples
from zoomfeat.conf.schema import TrainLDMConfig
from zoomfeat.errors import ConfigurationError
from zoomfeat.models.summarizer import Summarizer
from zoomfeat.models.weights import hash_weights
from zoomfeat.models.zoomldm import ZoomLDM


def train_ldm(config: TrainLDMConfig, data: TrainingData, bundle: ZoomLDM, console: Console | None = None) -> Path:
    """Trains, or goes on where the newest checkpoint in ``config.out`` ended.

    Run under ``accelerate launch`` it is one of several processes. On the CPU, a run that was killed and resumed
    arrives at the weights of an uninterrupted one, bit for bit.

    Args:
        config: everything that decides the run; see :class:`zoomfeat.conf.schema.TrainLDMConfig`.
        data: the training set.
        bundle: the model to start from (:func:`generation.initial.initial_model`); trained in place.
        console: where progress and notes go; None: nowhere.

    Returns:
        The folder of the last checkpoint; its ``model`` is a ZoomLDM folder with the averaged denoiser.

    Raises:
        ConfigurationError: keys out of range, magnifications that the data lack, or a resume of another run.
        ZoomfeatError: the loss or gradient is not finite (the items are named), or a checkpoint cannot be written.
    """
    return _LDMTraining(config, data, bundle).fit(console)


_LEAST_SIGNAL = 0.02  # of "velocity": below it the noisiest timesteps would be all that counts


def loss_weights(signal: Tensor, kind: str) -> Tensor:
    """The weight of each sample's squared error of the noise.

    The squared error of the velocity is that of the noise divided by the share of signal (Salimans and Ho,
    "Progressive Distillation", 2022, appendix D). At high noise, where layout and colour are decided, the noise itself
    is predicted well by handing the input through, and its plain error hardly tells a good picture from a bad one.

    Args:
        signal: ``alphas_cumprod`` of each sample, ``(B,)`` in (0, 1).
        kind: ``uniform`` (all 1) or ``velocity``.

    Returns:
        ``(B,)``.
    """
    return torch.ones_like(signal) if kind == "uniform" else 1 / signal.clamp(min=_LEAST_SIGNAL)


class _JointModel(nn.Module):
    """Denoiser and Summarizer as the one module that accelerate wraps."""

    def __init__(self, unet: UNet2DConditionModel, summarizer: Summarizer) -> None:
        super().__init__()
        self.unet = unet
        self.summarizer = summarizer

    def forward(
        self,
        latents: Tensor,
        grids: Sequence[Tensor],
        magnifications: Tensor,
        timesteps: Tensor,
        signal: Tensor,
        noise: Tensor,
        dropped: Tensor,
    ) -> Tensor:
        """Mean squared error of each sample, ``(B,)``; arguments as in :func:`generation.losses.predict`."""
        prediction = predict(
            self.unet, self.summarizer, latents, grids, magnifications, timesteps, signal, noise, dropped
        )
        return prediction.squared_error.mean((1, 2, 3))


class _LDMTraining(TrainingLoop[Batch]):
    validation_columns = HELD_OUT_COLUMNS

    def __init__(self, config: TrainLDMConfig, data: TrainingData, bundle: ZoomLDM) -> None:
        super().__init__(
            config,
            data,
            {"first stage": hash_weights({"vae": bundle.vae})[:12]},
            read_batch,
            magnifications=config.magnifications,
            drop=config.drop_condition,
        )
        self.config, self.bundle = config, bundle
        if config.loss_weight not in ("uniform", "velocity"):
            raise ConfigurationError(f"loss_weight={config.loss_weight!r}", cure="Use uniform or velocity")
        known = bundle.summarizer.config.num_magnifications
        if max(self.training) >= known:
            raise ConfigurationError(
                f"the data hold {data.ladder.steps[max(self.training)]}, the model knows {known} magnifications from "
                f"{data.ladder.finest} on",
                cure="Leave the others out with magnifications=",
            )
        bundle.vae.requires_grad_(False).eval().to(self.accelerator.device)
        if config.gradient_checkpointing:
            bundle.unet.enable_gradient_checkpointing()
        joint = _JointModel(bundle.unet, bundle.summarizer).train()
        optimizer = torch.optim.AdamW(joint.parameters(), config.learning_rate, weight_decay=config.weight_decay)
        self.model, self.optimizer = self.accelerator.prepare(joint, optimizer)
        self.optimizers = [self.optimizer]
        foreach = self.accelerator.device.type != "cpu"  # far faster there
        self.ema = EMAModel(bundle.unet.parameters(), decay=config.ema_decay, foreach=foreach)
        self._abar = bundle.scheduler.alphas_cumprod.to(self.accelerator.device)

    def step(self, step: int, draw: Draw, batches: Iterator[Batch]) -> Tensor:
        losses = []
        for samples, everyone in self.share.micro_batches:
            batch = next(batches).to(self.accelerator.device)
            latents = batch.encoded(self.bundle.vae)
            timesteps = draw.timesteps[samples].to(latents.device)
            dropped = draw.dropped[samples].to(latents.device)
            noise = self.draws.noise(step, samples, latents.shape[1:]).to(latents.device)
            with self.accelerator.accumulate(self.model):
                error = self.model(
                    latents, batch.grids, batch.magnifications, timesteps, self._abar[timesteps], noise, dropped
                )
                losses.append(self.gathered(error, step, draw.items[everyone]))
                self.accelerator.backward((error * loss_weights(self._abar[timesteps], self.config.loss_weight)).mean())
                if self.accelerator.sync_gradients:
                    self.check_gradient(self.model, step, draw)
                self.optimizer.step()
                self.optimizer.zero_grad()
        self.ema.step(self.bundle.unet.parameters())
        return torch.cat(losses)

    def validate(self) -> list[dict[str, Any]]:
        config = self.config
        with averaged(self.ema, self.bundle.unet):
            return validate(
                self.bundle, self.data, self.held_out, self.accelerator, items=config.validation_items, seed=config.seed
            )

    def picture(self, levels: Levels, path: Path) -> None:
        config = self.config
        with averaged(self.ema, self.bundle.unet):
            write_samples(
                self.bundle,
                self.data,
                levels,
                path,
                steps=config.sample_steps,
                guidance=config.guidance,
                seed=config.seed,
            )

    def export(self, folder: Path) -> None:
        with averaged(self.ema, self.bundle.unet):
            self.bundle.save_pretrained(folder)

    def resumed(self, step: int, checkpoint: Path) -> None:
        # The exported denoiser is the average, so a checkpoint need not hold it twice.
        exported = UNet2DConditionModel.from_pretrained(checkpoint / "model" / "unet", local_files_only=True)
        shadow = [weight.detach().to(self.accelerator.device) for weight in exported.parameters()]
        self.ema.load_state_dict({"shadow_params": shadow, "optimization_step": step})

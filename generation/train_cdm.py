"""The training of the conditioning diffusion model over the tokens of a frozen Summarizer.

Source: ZoomLDM (CVPR 2025), section 3, "Conditioning diffusion model": a DiT that predicts clean tokens under the
cosine schedule, conditioned on the magnification. Optimiser and average are the DiT paper's: AdamW at 1e-4 without
weight decay, EMA 0.9999. The variance beside the prediction stays untrained, since DDIM does not read it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel
from rich.console import Console
from torch import Tensor, nn

from generation.batches import Batch, Draw, TrainingData, seeded_normal
from generation.conditioning import SIZES, TRAIN_TIMESTEPS, ConditioningDiT, clean, noise_schedule
from generation.loop import TrainingLoop, averaged
from zoomfeat.conf.schema import TrainCDMConfig
from zoomfeat.errors import CheckpointMismatchError, ConfigurationError
from zoomfeat.models.summarizer import Summarizer, embedding_grid
from zoomfeat.models.weights import hash_weights

_SIZES = {
    "full": SIZES["B"],
    "tiny": {"hidden_dim": 96, "num_layers": 5, "num_heads": 4},  # 0.9 M parameters, to ship in the package
}


def initial_cdm(config: TrainCDMConfig, summarizer: Summarizer, embedding_dim: int) -> ConditioningDiT:
    """The network that training starts from: ``init``, or fresh weights of ``size``.

    Args:
        config: ``model`` (for messages), ``init``, ``size`` and ``seed`` count.
        summarizer: the shape of its tokens and its magnifications are the network's.
        embedding_dim: width of the data's embeddings.

    Raises:
        CheckpointMismatchError: the Summarizer reads embeddings of another width, or ``init`` does not load or is
            for another Summarizer's tokens.
    """
    if summarizer.config.input_dim != embedding_dim:
        raise CheckpointMismatchError(
            f"its Summarizer reads embeddings of width {summarizer.config.input_dim}, the data's have {embedding_dim}",
            path=config.model,
            cure="Prepare the data with the encoder that the model was trained with",
        )
    num_tokens, token_dim = summarizer.context_shape
    shape = {
        "num_tokens": num_tokens,
        "token_dim": token_dim,
        "num_magnifications": summarizer.config.num_magnifications,
    }
    if config.init is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            return ConditioningDiT(**_SIZES[config.size], **shape)
    model = ConditioningDiT.load(config.init)
    found = {name: model.config[name] for name in shape}
    if found != shape:
        raise CheckpointMismatchError(
            f"made for tokens of another Summarizer: {found}, this one's are {shape}",
            path=config.init,
            cure="Give the conditioning model of the ZoomLDM that model= names, or leave out init=",
        )
    return model


def read_grids(data: TrainingData, items: Sequence[int]) -> Batch:
    """Items of a data set without their images and latents, which tokens do not depend on."""
    return Batch(
        items=list(items),
        images=None,
        latents=None,
        grids=[torch.from_numpy(data[i].grid) for i in items],
        magnifications=torch.tensor([int(data.magnifications[i]) for i in items]),
    )


@torch.no_grad()
def summarise(summarizer: Summarizer, batch: Batch) -> Tensor:
    """The tokens of a batch, ``(B, 65, D)`` float32: what the network learns to draw."""
    return summarizer([embedding_grid(grid[None])[0] for grid in batch.grids], batch.magnifications).float()


def token_error(
    model: nn.Module, schedule: DDPMScheduler, tokens: Tensor, magnifications: Tensor, timesteps: Tensor, noise: Tensor
) -> Tensor:
    """The training loss of each sample, ``(B,)`` float32: mean squared error of the predicted clean tokens.

    Args:
        model: a :class:`ConditioningDiT`, bare or as accelerate wraps it.
        schedule: adds the noise.
        tokens: clean, ``(B, 65, D)``.
        magnifications: ``(B,)`` indices in the ladder.
        timesteps: ``(B,)``, 0 to 999.
        noise: standard normal, like ``tokens``.
    """
    noisy = schedule.add_noise(tokens, noise, timesteps)
    return (clean(model(noisy, timesteps, magnifications)).float() - tokens).square().mean((1, 2))


def train_cdm(
    config: TrainCDMConfig,
    data: TrainingData,
    summarizer: Summarizer,
    model: ConditioningDiT,
    console: Console | None = None,
) -> Path:
    """Trains, or goes on where the newest checkpoint in ``config.out`` ended.

    Run under ``accelerate launch`` it is one of several processes. On the CPU, a run that was killed and resumed
    arrives at the weights of an uninterrupted one, bit for bit.

    Args:
        config: everything that decides the run; see :class:`zoomfeat.conf.schema.TrainCDMConfig`.
        data: the training set; only its embeddings are read.
        summarizer: makes the tokens; frozen.
        model: the network to start from (:func:`initial_cdm`); trained in place.
        console: where progress and notes go; None: nowhere.

    Returns:
        The folder of the last checkpoint; its ``model`` is a :class:`ConditioningDiT` with the averaged weights.

    Raises:
        ConfigurationError: keys out of range, magnifications that the data or the Summarizer lack, or a resume of
            another run.
        ZoomfeatError: the loss or gradient is not finite (the items are named), or a checkpoint cannot be written.
    """
    return _CDMTraining(config, data, summarizer, model).fit(console)


class _CDMTraining(TrainingLoop[Batch]):
    validation_columns = ("magnification", "loss", "items")

    def __init__(
        self, config: TrainCDMConfig, data: TrainingData, summarizer: Summarizer, model: ConditioningDiT
    ) -> None:
        super().__init__(
            config,
            data,
            # In place of the path: a model may move, its Summarizer may not change.
            {"model": hash_weights({"summarizer": summarizer})[:12]},
            read_grids,
            magnifications=config.magnifications,
        )
        known = summarizer.config.num_magnifications
        if max(self.training) >= known:
            raise ConfigurationError(
                f"the data hold {data.ladder.steps[max(self.training)]}, "
                f"the model knows {', '.join(map(str, data.ladder.steps[:known]))}",
                cure="Leave the others out with magnifications=",
            )
        self.config = config
        self.summarizer = summarizer.requires_grad_(False).eval().to(self.accelerator.device)
        self.schedule = noise_schedule()
        self.bare = model.train()
        optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=config.weight_decay)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.optimizers = [self.optimizer]
        self.ema = EMAModel(model.parameters(), decay=config.ema_decay)

    def step(self, step: int, draw: Draw, batches: Iterator[Batch]) -> Tensor:
        losses = []
        for samples, everyone in self.share.micro_batches:
            batch = next(batches).to(self.accelerator.device)
            tokens = summarise(self.summarizer, batch)
            timesteps = draw.timesteps[samples].to(tokens.device)
            noise = self.draws.noise(step, samples, tokens.shape[1:]).to(tokens.device)
            with self.accelerator.accumulate(self.model):
                error = token_error(self.model, self.schedule, tokens, batch.magnifications, timesteps, noise)
                losses.append(self.gathered(error, step, draw.items[everyone]))
                self.accelerator.backward(error.mean())
                if self.accelerator.sync_gradients:
                    self.check_gradient(self.model, step, draw)
                self.optimizer.step()
                self.optimizer.zero_grad()
        self.ema.step(self.bare.parameters())
        return torch.cat(losses)

    @torch.no_grad()
    def validate(self) -> list[dict[str, Any]]:
        # The same items, timesteps and noise every time; each process works all of it out, which is cheap.
        rows = []
        seed, device = self.config.seed, self.accelerator.device
        with averaged(self.ema, self.bare) as model:
            for level, places in self.held_out.items():
                chosen = np.random.default_rng(seed).permutation(places)[: self.config.validation_items]
                batch = read_grids(self.data, chosen.tolist()).to(device)
                tokens = summarise(self.summarizer, batch)
                timesteps = torch.linspace(0, TRAIN_TIMESTEPS - 1, len(chosen), device=device).long()
                noise = torch.stack([seeded_normal(tokens.shape[1:], seed, item) for item in batch.items]).to(device)
                losses = token_error(model, self.schedule, tokens, batch.magnifications, timesteps, noise)
                name = str(self.data.ladder.steps[level])
                rows.append({"magnification": name, "loss": float(losses.mean()), "items": len(chosen)})
        return rows

    def export(self, folder: Path) -> None:
        with averaged(self.ema, self.bare) as model:
            model.save_pretrained(folder)

    def resumed(self, step: int, checkpoint: Path) -> None:
        # The exported network is the average, so a checkpoint need not hold it twice.
        exported = ConditioningDiT.load(checkpoint / "model")
        shadow = [weight.detach().to(self.accelerator.device) for weight in exported.parameters()]
        self.ema.load_state_dict({"shadow_params": shadow, "optimization_step": step})

"""Small networks taught to do what a ZoomLDM does for features: its first stage's part of the work, or all of it.

A *latent encoder* learns the first stage's latents (mean squared error, and if asked for that of the features that the
frozen denoiser makes of them). A *student* learns the features themselves (mean squared error after each feature is
brought to mean 0 and deviation 1, so that the small ones count as much as in a standardised probe).
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional

from generation.batches import Batch, Draw, TrainingData, read_images
from generation.loop import TrainingLoop
from zoomfeat.conf.schema import DistillConfig
from zoomfeat.encoders.zoomldm import ZoomLDMEncoder
from zoomfeat.errors import ConfigurationError
from zoomfeat.models.denoiser import tap_dims
from zoomfeat.models.distilled import DistillationRecord, FeatureStudent, LatentEncoder
from zoomfeat.models.weights import hash_weights

N = TypeVar("N", LatentEncoder, FeatureStudent)

_REMEMBERED = 100_000  # features of so many items are kept: a small set is encoded once
_SAMPLED = 16  # training items of each magnification that mean and deviation of the features are taken from


def distill(
    config: DistillConfig,
    data: TrainingData,
    teacher: ZoomLDMEncoder,
    network: LatentEncoder | FeatureStudent,
    console: Console | None = None,
) -> Path:
    """Teaches, or goes on where the newest checkpoint in ``config.out`` ended.

    Run under ``accelerate launch`` it is one of several processes. On the CPU, a run that was killed and resumed
    arrives at the weights of an uninterrupted one, bit for bit.

    Args:
        config: everything that decides the run; see :class:`zoomfeat.conf.schema.DistillConfig`.
        data: the training set. Latents that it stores must be the teacher's, and so must its embeddings where the
            teacher is conditioned.
        teacher: whose features count.
        network: what learns (:func:`generation.initial_distilled.initial_network`); trained in place.
        console: where progress and notes go; None: nowhere.

    Returns:
        The folder of the last checkpoint; its ``model`` is the network with its record.

    Raises:
        ConfigurationError: keys out of range, magnifications that the data lack, or a resume of another run.
        ZoomfeatError: the loss or gradient is not finite (the items are named), or a checkpoint cannot be written.
    """
    if isinstance(network, LatentEncoder):
        return _LatentDistillation(config, data, teacher, network).fit(console)
    return _FeatureDistillation(config, data, teacher, network).fit(console)


def teacher_record(teacher: ZoomLDMEncoder, magnifications: Sequence[str]) -> DistillationRecord:
    """What a network taught by this teacher says of it, before its fidelity is known."""
    vae = teacher.bundle.vae
    return DistillationRecord(
        teacher=teacher.name,
        weights_hash=teacher.weights_hash,
        first_stage_hash=hash_weights({"vae": vae}),
        scaling_factor=vae.config.scaling_factor,
        latent_shape=list(teacher.latent_shape),
        domain=teacher.ladder.name,
        magnifications=list(magnifications),
        settings=dict(teacher.settings),
        tap_dims=list(tap_dims(teacher.bundle.unet, teacher.taps)),
    )


def read_lesson(data: TrainingData, items: Sequence[int], *, grids: bool) -> Batch:
    """Images of a data set, latents where it stores them, and embeddings if they are asked for."""
    stored = [torch.from_numpy(latent) for i in items if (latent := data[i].latent) is not None]
    return Batch(
        items=list(items),
        images=read_images(data, items),
        latents=torch.stack(stored) if len(stored) == len(items) else None,
        grids=[torch.from_numpy(data[i].grid) for i in items] if grids else [],
        magnifications=torch.tensor([int(data.magnifications[i]) for i in items]),
    )


def features_of(encoder: ZoomLDMEncoder, batch: Batch, latents: Tensor | None = None) -> Tensor:
    """Features of a batch, patch by patch as on a CPU in extraction, so that none depends on another; gradients pass.

    Args:
        encoder: of any magnification; each patch is seen at its own.
        batch: of :func:`read_lesson`; with embeddings where the encoder is conditioned.
        latents: ``(B, C, h, w)`` in place of the encoder's own.

    Returns:
        ``(B, dim)`` float32.
    """
    assert batch.images is not None  # read_lesson gives them
    rows = []
    for i, level in enumerate(batch.magnifications.tolist()):
        part = slice(i, i + 1)
        one = encoder if latents is None else encoder.through(partial(_given, latents[part]))
        context = batch.grids[i][None] if batch.grids else None
        rows.append(one.at(encoder.ladder.steps[level]).embed(batch.images[part], context))
    return torch.cat(rows).float()


def _given(latents: Tensor, pixels: Tensor) -> Tensor:
    return latents


class _Distillation(TrainingLoop[Batch], Generic[N]):
    validation_columns = ("magnification", "loss", "cosine", "lowest", "items")

    def __init__(self, config: DistillConfig, data: TrainingData, teacher: ZoomLDMEncoder, network: N) -> None:
        record = teacher_record(teacher, ())
        super().__init__(
            config,
            data,
            {
                "teacher": f"{record.weights_hash[:12]} {json.dumps(record.settings, sort_keys=True)}",
                "network": json.dumps({k: v for k, v in network.config.items() if k[0] != "_" and k != "record"}),
            },
            partial(read_lesson, grids=teacher.context_encoder is not None),
            magnifications=config.magnifications,
        )
        if len(range(config.batch_size)[self.share.micro_batches[0][0]]) == 1 and any(
            isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()
        ):
            raise ConfigurationError(
                "micro-batches of one sample, over which the backbone's batch normalisation has no deviation",
                cure="Raise batch_size, lower accumulate, or choose a backbone without it, such as convnext_tiny",
            )
        names = [str(data.ladder.steps[level]) for level in self.training]
        self.config, self.teacher = config, teacher
        self.bare: N = network
        self.record = replace(record, magnifications=names)
        self._known: dict[int, Tensor] = {}
        self._done = 0
        self._measured: tuple[int, list[dict[str, Any]]] = (-1, [])
        network.to(self.accelerator.device).train()
        self.prepare_targets()
        optimizer = torch.optim.AdamW(network.parameters(), config.learning_rate, weight_decay=config.weight_decay)
        self.model, self.optimizer = self.accelerator.prepare(network, optimizer)
        self.optimizers = [self.optimizer]

    @abstractmethod
    def prepare_targets(self) -> None:
        """Called before training, when the items are chosen."""

    @abstractmethod
    def errors(self, batch: Batch) -> Tensor:
        """Loss of each sample, ``(B,)``."""

    @abstractmethod
    def features(self, batch: Batch) -> Tensor:
        """The features that the network leads to, ``(B, dim)``."""

    def step(self, step: int, draw: Draw, batches: Iterator[Batch]) -> Tensor:
        losses = []
        for _, everyone in self.share.micro_batches:
            batch = next(batches).to(self.accelerator.device)
            with self.accelerator.accumulate(self.model):
                error = self.errors(batch)
                losses.append(self.gathered(error, step, draw.items[everyone]))
                self.accelerator.backward(error.mean())
                if self.accelerator.sync_gradients:
                    self.check_gradient(self.model, step, draw)
                self.optimizer.step()
                self.optimizer.zero_grad()
        self._done = step + 1
        return torch.cat(losses)

    @torch.no_grad()
    def targets(self, batch: Batch) -> Tensor:
        """The teacher's features, ``(B, dim)``; those of an item are made once, as long as there is room."""
        rows = []
        for place, item in enumerate(batch.items):
            row = self._known.get(item)
            if row is None:
                one = _one(batch, place)
                row = features_of(self.teacher, one, one.latents)[0]
                if len(self._known) < _REMEMBERED:
                    self._known[item] = row
            rows.append(row)
        return torch.stack(rows)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each of the teacher's features over some training items, ``(dim,)`` each."""
        items = [int(item) for places in self.training.values() for item in places[:: max(1, len(places) // _SAMPLED)]]
        features = torch.cat([self.targets(self._lesson(item)) for item in items])
        return features.mean(0), features.std(0).clamp(min=1e-6)

    @torch.no_grad()
    def validate(self) -> list[dict[str, Any]]:
        # The same items every time; each process works all of them out.
        if self._measured[0] != self._done:
            self.bare.eval()
            self._measured = (self._done, [self._validate(level) for level in self.held_out])
            self.bare.train()
        return self._measured[1]

    def _validate(self, level: int) -> dict[str, Any]:
        chosen = np.random.default_rng(self.config.seed).permutation(self.held_out[level])
        losses, cosines = [], []
        for item in chosen[: self.config.validation_items].tolist():
            batch = self._lesson(item)
            losses.append(float(self.errors(batch)))
            cosines.append(float(functional.cosine_similarity(self.features(batch), self.targets(batch))))
        return {
            "magnification": str(self.data.ladder.steps[level]),
            "loss": float(np.mean(losses)),
            "cosine": float(np.mean(cosines)),
            "lowest": min(cosines),
            "items": len(losses),
        }

    def _lesson(self, item: int) -> Batch:
        return self._read(self.data, [item]).to(self.accelerator.device)

    def export(self, folder: Path) -> None:
        measured = {
            row["magnification"]: {name: row[name] for name in ("cosine", "lowest", "items")} for row in self.validate()
        }
        self.bare.write_record(replace(self.record, fidelity=measured))
        self.bare.save_pretrained(folder)

    def resumed(self, step: int, checkpoint: Path) -> None:
        self._done = step


def _one(batch: Batch, place: int) -> Batch:
    """A batch of one of its items."""
    part = slice(place, place + 1)
    return Batch(
        batch.items[part],
        None if batch.images is None else batch.images[part],
        None if batch.latents is None else batch.latents[part],
        batch.grids[part],
        batch.magnifications[part],
    )


class _LatentDistillation(_Distillation[LatentEncoder]):
    def prepare_targets(self) -> None:
        self.deviation = self.statistics()[1] if self.config.feature_weight else None

    def errors(self, batch: Batch) -> Tensor:
        found = self.model(batch.images).float()
        error = (found - batch.encoded(self.teacher.bundle.vae)).square().mean((1, 2, 3))
        if self.deviation is not None:
            apart = (features_of(self.teacher, batch, found) - self.targets(batch)) / self.deviation
            error = error + self.config.feature_weight * apart.square().mean(1)
        return error

    def features(self, batch: Batch) -> Tensor:
        assert batch.images is not None
        return features_of(self.teacher, batch, self.bare(batch.images))


class _FeatureDistillation(_Distillation[FeatureStudent]):
    def prepare_targets(self) -> None:
        self.bare.mean, self.bare.std = self.statistics()

    def errors(self, batch: Batch) -> Tensor:
        expected = self.bare.standardised(self.targets(batch))
        return (self.model(batch.images, batch.magnifications).float() - expected).square().mean(1)

    def features(self, batch: Batch) -> Tensor:
        assert batch.images is not None
        return self.bare.features(batch.images, batch.magnifications)

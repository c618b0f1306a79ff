"""The loop that every training run goes through: draw, step, log, validate, picture, save, and stop at NaN."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from diffusers.training_utils import EMAModel
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn
from torch.optim import Optimizer

from generation.batches import Draw, Draws, Levels, Share, TrainingData, choose_items, describe, load_batches
from generation.checkpoints import Checkpoints
from generation.logs import LossWindow, Table, announce
from zoomfeat.conf.schema import TrainConfig
from zoomfeat.errors import ConfigurationError, ZoomfeatError
from zoomfeat.files import make_folder
from zoomfeat.progress import progress_bar

B = TypeVar("B")
M = TypeVar("M", bound=nn.Module)


class TrainingLoop(ABC, Generic[B]):
    """A training run. Subclasses know the model; the loop knows when to do what.

    Subclasses set ``optimizers`` (whose learning rates warm up) and ``validation_columns`` (of a row of
    :meth:`validate`), and prepare their modules with ``accelerator``.

    Args:
        config: what decides the run.
        data: the training set.
        settings: more that decides the weights, JSON values; a resume compares it.
        read: makes a micro-batch of items.
        magnifications: names to train on; none: all that the data hold.
        drop: probability that a sample's condition is dropped.

    Attributes:
        accelerator: devices, processes and precision.
        training: items trained on, by magnification.
        held_out: items held out, by magnification; may be empty.
        checkpoints: of the run.
    """

    optimizers: Sequence[Optimizer]
    validation_columns: Sequence[str]

    def __init__(
        self,
        config: TrainConfig,
        data: TrainingData,
        settings: dict[str, Any],
        read: Callable[[TrainingData, list[int]], B],
        *,
        magnifications: Sequence[str] = (),
        drop: float = 0.0,
    ) -> None:
        check_config(config)
        self._config, self._read = config, read
        self.data = data
        self.accelerator = make_accelerator(config)
        self.training, self.held_out = choose_items(
            data, magnifications, config.held_out_slides or config.held_out, config.seed
        )
        self.draws = Draws(tuple(self.training.values()), config.batch_size, config.seed, drop)
        self.share = Share(
            config.batch_size, config.accumulate, self.accelerator.process_index, self.accelerator.num_processes
        )
        folder = make_folder(Path(config.out) / "checkpoints")
        self.checkpoints = Checkpoints(folder, run_settings(config, data) | settings, config.keep)

    @abstractmethod
    def step(self, step: int, draw: Draw, batches: Iterator[B]) -> Tensor:
        """One optimiser step from this process's micro-batches.

        Returns:
            The loss of every sample of the global batch, ``(B,)`` on the CPU, in order.
        """

    @abstractmethod
    def validate(self) -> list[dict[str, Any]]:
        """Held-out losses, in rows with a ``loss``; every process takes part."""

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Writes the model as its users load it; the main process only."""

    def picture(self, levels: Levels, path: Path) -> None:
        """Writes a PNG that shows what the model can do, on items of these; the main process only."""

    def resumed(self, step: int, checkpoint: Path) -> None:
        """Called when a checkpoint's state was loaded, for what the accelerator does not hold."""

    def fit(self, console: Console | None = None) -> Path:
        """Trains, or goes on where the newest checkpoint ended; returns the folder of the last one."""
        config, main = self._config, self.accelerator.is_main_process
        console = console if main and console else Console(quiet=True)
        announce(self.training, self.held_out, self.data.ladder, console)
        start, latest = self.checkpoints.resume(self.accelerator)
        if latest is not None:
            console.print(f"going on from {latest}", highlight=False, soft_wrap=True)
            self.resumed(start, latest)

        out = Path(config.out)
        window = LossWindow(self.training, self.data.magnifications, self.data.ladder)
        metrics = Table(out / "metrics.csv", ["step", *window.columns, "learning_rate"], start, active=main)
        validation = Table(out / "validation.csv", ["step", *self.validation_columns], start, active=main)
        batches = load_batches(
            self.data, self.draws, self.share, range(start, config.steps), config.workers, self._read
        )
        with progress_bar(console) as progress:
            task = progress.add_task("training", total=config.steps, completed=start, unit="steps")
            for step in range(start, config.steps):
                rate = warm_up(self.optimizers, step, config)
                draw = self.draws.at(step)
                window.add(draw.items, self.step(step, draw, batches))
                done = step + 1
                save = done % config.checkpoint_every == 0 or done == config.steps
                if save or done % config.log_every == 0:
                    row = window.means() | {"learning_rate": rate}
                    metrics.add([{"step": done, **row}])
                    self.accelerator.log(row, step=done)
                    progress.update(task, description=f"loss {row['loss']:.4f}")
                if self.held_out and _due(done, config.validate_every):
                    rows = self.validate()
                    validation.add([{"step": done, **row} for row in rows])
                    self.accelerator.log({"validation": float(np.mean([row["loss"] for row in rows]))}, step=done)
                if main and _due(done, config.sample_every):
                    self.picture(self.held_out or self.training, make_folder(out / "samples") / f"step-{done:08d}.png")
                if save:
                    latest = self.checkpoints.save(self.accelerator, done, self.export)
                progress.update(task, completed=done)
        self.accelerator.end_training()
        assert latest is not None  # the last step saves
        return latest

    def gathered(self, losses: Tensor, step: int, items: NDArray[np.int64]) -> Tensor:
        """Losses of one micro-batch from all processes, on the CPU.

        Args:
            losses: this process's.
            step: the step.
            items: what the micro-batch of all processes holds.

        Raises:
            ZoomfeatError: one is not finite; its item is named, in every process, and no weight is touched yet.
        """
        together = self.accelerator.gather(losses.detach()).float().cpu()
        if not together.isfinite().all():
            raise self._stopped("loss", step, items[~together.isfinite().numpy()])
        return together

    def check_gradient(self, model: nn.Module, step: int, draw: Draw) -> None:
        """Clips the gradient where the configuration asks for it.

        Raises:
            ZoomfeatError: it is not finite. Not under fp16, whose scaler meets overflows by skipping a step.
        """
        norm = self.accelerator.clip_grad_norm_(model.parameters(), self._config.max_grad_norm or math.inf)
        if self._config.mixed_precision != "fp16" and not math.isfinite(float(norm)):
            raise self._stopped("gradient", step, draw.items)

    def _stopped(self, what: str, step: int, items: NDArray[np.int64]) -> ZoomfeatError:
        latest = self.checkpoints.latest()
        kept = f"the last good checkpoint is {latest}" if latest else "there is no checkpoint yet"
        return ZoomfeatError(
            f"the {what} is not finite in step {step + 1}, at {describe(self.data, items)}; {kept}",
            cure="Look at those items; a lower learning_rate, max_grad_norm=1 or mixed_precision=no may help",
        )


@contextmanager
def averaged(ema: EMAModel, module: M) -> Iterator[M]:
    """The module with its averaged weights, while the block runs."""
    ema.store(module.parameters())
    ema.copy_to(module.parameters())
    try:
        yield module
    finally:
        ema.restore(module.parameters())


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0


# Keys that change what a run costs, shows or where it lies, and not the weights that it arrives at. A teacher's
# encoder stands in the settings by its hash.
_FREE = {
    "data", "out", "steps", "accumulate", "gradient_checkpointing", "validate_every", "validation_items",
    "checkpoint_every", "keep", "log_every", "workers", "tracker", "device", "sample_every", "sample_steps", "guidance",
    "encoder",
}  # fmt: skip


def check_config(config: TrainConfig) -> None:
    """Refuses values that no run can have.

    Raises:
        ConfigurationError: a key out of its range; the first one is named.
    """
    positive = ("steps", "batch_size", "accumulate", "checkpoint_every", "keep", "log_every", "warmup")
    for name in positive:
        if getattr(config, name) < 1:
            raise ConfigurationError(f"{name}={getattr(config, name)}; expected 1 or more", cure="See --help")
    for name in ("held_out", "drop_condition"):
        if not 0 <= getattr(config, name, 0) < 1:
            raise ConfigurationError(f"{name}={getattr(config, name)}; expected 0 to below 1", cure="See --help")
    if config.schedule not in ("constant", "cosine"):
        raise ConfigurationError(f"schedule={config.schedule!r}", cure="Use constant or cosine")
    if config.mixed_precision not in ("no", "bf16", "fp16"):
        raise ConfigurationError(f"mixed_precision={config.mixed_precision!r}", cure="Use no, bf16 or fp16")
    if config.device not in ("auto", "cpu"):
        raise ConfigurationError(
            f"device={config.device!r}; expected auto or cpu",
            cure="Choose GPUs with CUDA_VISIBLE_DEVICES or `accelerate launch`",
        )
    if config.size not in ("full", "tiny"):
        raise ConfigurationError(f"size={config.size!r}; expected full or tiny", cure="The default is full")
    available = ["none", *(str(tracker) for tracker in get_available_trackers())]
    if config.tracker not in available:
        known = config.tracker in LOGGER_TYPE_TO_CLASS
        raise ConfigurationError(
            f"tracker={config.tracker!r} {'is not installed' if known else 'is not one of accelerate'}",
            cure=f"Install it, or use one of {', '.join(available)}" if known else f"Use one of {', '.join(available)}",
        )


def make_accelerator(config: TrainConfig) -> Accelerator:
    """The accelerator of a run, with its tracker."""
    accelerator = Accelerator(
        cpu=config.device == "cpu",
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.accumulate,
        log_with=None if config.tracker == "none" else config.tracker,
        project_dir=config.out,
    )
    # Trackers take plain values only.
    accelerator.init_trackers("zoomfeat", {k: v if v is not None else "" for k, v in run_settings(config).items()})
    return accelerator


def run_settings(config: TrainConfig, data: TrainingData | None = None) -> dict[str, Any]:
    """What decides the weights that a run arrives at, as JSON values; checkpoints compare it when a run resumes."""
    settings = {k: v for k, v in asdict(config).items() if k not in _FREE}
    if config.schedule == "cosine":
        settings["steps"] = config.steps
    settings = {k: ",".join(map(str, v)) if isinstance(v, list) else v for k, v in settings.items()}
    if data is not None:
        settings |= {"items of data": len(data), "index of data": _fingerprint(data)}
    return settings


def _fingerprint(data: TrainingData) -> str:
    """Known by slides and magnifications of its items, in order: a folder may move, its content may not change."""
    digest = hashlib.sha256("\n".join(data.slides).encode())
    digest.update(np.asarray(data.magnifications).astype(np.int32).tobytes())
    return digest.hexdigest()[:12]


def warm_up(optimizers: Sequence[Optimizer], step: int, config: TrainConfig) -> float:
    """Sets the learning rate of a step, a function of the step alone, and returns it."""
    rate = config.learning_rate * min(1.0, (step + 1) / config.warmup)
    if config.schedule == "cosine":
        rate *= (1 + math.cos(math.pi * step / config.steps)) / 2
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
    return rate

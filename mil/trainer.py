"""The training loop of all estimators, and prediction."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from mil.batches import BagReader, Batch, Sampling, read_batches
from mil.heads.network import Network
from mil.objectives import CrossEntropy, Objective
from zoomfeat.errors import ConfigurationError
from zoomfeat.progress import progress_bar


@dataclass(frozen=True)
class Plan:
    """How a network is trained.

    Attributes:
        epochs: passes over the training bags.
        learning_rate: of AdamW at its highest; a cosine takes it to 0.
        weight_decay: of AdamW.
        batch_size: bags in memory at once.
        accumulate: batches a step of the optimizer.
        sampling: which instances of a bag a step sees.
        patience: epochs without a better loss on the validation bags before training stops.
        precision: ``auto``, ``float32`` or ``mixed``.
        seed: fixes order, sampling and dropout.
        verbose: show a progress bar.
    """

    epochs: int
    learning_rate: float
    weight_decay: float
    batch_size: int
    accumulate: int
    sampling: Sampling
    patience: int
    precision: str
    seed: int
    verbose: bool


@dataclass
class Targets:
    """What the network shall learn about bags.

    Attributes:
        values: one row a bag of the reader, as the objective takes them.
        objective: what training minimises.
        draw: (bags,) chance of each bag at each draw of an epoch; None for each bag once an epoch.
    """

    values: Tensor
    objective: Objective
    draw: NDArray[np.float64] | None = None


def train(
    network: Network,
    reader: BagReader,
    targets: Targets,
    plan: Plan,
    training: NDArray[np.intp],
    validation: NDArray[np.intp],
    device: torch.device,
) -> list[dict[str, float]]:
    """Trains a network in place; with validation bags, its weights are those of the epoch that did best on them.

    Args:
        network: on ``device``.
        reader: of all bags.
        targets: of all bags.
        plan: how.
        training: the bags to learn from.
        validation: the bags that say when to stop; may be empty.
        device: to run on.

    Returns:
        One row an epoch: ``loss``, and ``validation_loss`` where there are such bags.

    Raises:
        ConfigurationError: the loss is no longer finite.
    """
    values = targets.values.to(device)
    objective = targets.objective.to(device) if isinstance(targets.objective, torch.nn.Module) else targets.objective
    optimizer = torch.optim.AdamW(_parameter_groups(network, plan.weight_decay), lr=plan.learning_rate, fused=True)
    steps = math.ceil(math.ceil(len(training) / plan.batch_size) / plan.accumulate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, plan.epochs * steps)
    scaler = torch.amp.GradScaler(enabled=_autocast_type(device, plan.precision) == torch.float16)
    history: list[dict[str, float]] = []
    best, best_state, waited = math.inf, None, 0
    with progress_bar(Console(stderr=True, quiet=not plan.verbose)) as progress:
        for epoch in progress.track(range(plan.epochs), task_id=progress.add_task("training", unit="epochs")):
            rng = np.random.default_rng([plan.seed, epoch])
            groups = [
                training[group]
                for group in _epoch_groups(len(training), plan.batch_size, rng, _chances(targets, training))
            ]
            network.train()
            losses = []
            batches = read_batches(reader, groups, plan.sampling, (plan.seed, epoch))
            for place, batch in enumerate(batches, start=1):
                with _autocast(device, plan.precision):
                    loss = total_loss(network, batch, values[batch.bags], objective, device)
                scaler.scale(loss / plan.accumulate).backward()
                losses.append(loss.detach())
                if place % plan.accumulate == 0 or place == len(groups):
                    scaler.step(optimizer)
                    scaler.update()
                    optimizer.zero_grad(set_to_none=True)
                    schedule.step()
            history.append({"loss": float(torch.stack(losses).mean())})
            if not math.isfinite(history[-1]["loss"]):
                raise ConfigurationError(
                    f"training diverged: the loss of epoch {epoch + 1} is {history[-1]['loss']}",
                    cure="Lower learning_rate, or leave standardize on",
                )
            if len(validation):
                logits = predict_logits(network, reader, validation, plan.batch_size, device, plan.precision).to(device)
                score = float(objective(logits, values[validation], logits.new_ones(len(validation))))
                history[-1]["validation_loss"] = score
                waited = 0 if score < best else waited + 1
                if score < best:
                    best, best_state = score, copy.deepcopy(network.state_dict())
                if waited > plan.patience:
                    break
    if best_state is not None:
        network.load_state_dict(best_state)
    network.eval()
    return history


def total_loss(network: Network, batch: Batch, targets: Tensor, objective: Objective, device: torch.device) -> Tensor:
    """The objective on the predictions of a batch, plus what branches add: further predictions, losses on instances.

    Args:
        network: the network.
        batch: B bags.
        targets: of these bags, in their order, on ``device``.
        objective: what training minimises.
        device: to run on.
    """
    parts = [part.to(device) for part in batch.parts]
    outputs = [network(part.features, part.masks) for part in parts]
    logits = torch.cat([output.logits for output in outputs])
    loss = objective(logits, targets, logits.new_ones(len(targets)))
    targets_of_parts = targets.split([len(output.logits) for output in outputs])
    for place, head in enumerate(network.heads):
        branches = [output.branches[place] for output in outputs]
        further = [(branch.side_logits, branch.side_weights) for branch in branches]
        loss = loss + _side_loss(further, targets, objective)
        if isinstance(objective, CrossEntropy):
            for part, branch, mine in zip(parts, branches, targets_of_parts, strict=True):
                extra = head.instance_loss(branch, part.masks[place], mine)
                loss = loss if extra is None else loss + extra * len(mine) / len(targets)
    return loss


def _side_loss(
    further: list[tuple[Tensor | None, Tensor | None]], targets: Tensor, objective: Objective
) -> Tensor | float:
    """The objective on further predictions (B, K, C) of the same targets, with weights (B, K); 0 without any."""
    found = [(logits, weights) for logits, weights in further if logits is not None and weights is not None]
    if not found:
        return 0.0
    logits = torch.cat([each for each, _ in found])
    weights = torch.cat([each for _, each in found])
    return objective(logits.flatten(0, 1), targets.repeat_interleave(logits.shape[1], dim=0), weights.flatten())


@torch.inference_mode()
def predict_logits(
    network: Network,
    reader: BagReader,
    bags: NDArray[np.intp],
    batch_size: int,
    device: torch.device,
    precision: str,
    *,
    check: bool = False,
) -> Tensor:
    """(M, C) float32 logits of some distinct bags of a reader, on the CPU; a CPU always predicts in float32.

    Raises:
        BagInvalidError: a bag is damaged or, with ``check``, its features are not finite.
    """
    network.eval()
    groups = [bags[start : start + batch_size] for start in range(0, len(bags), batch_size)]
    found, logits = [], []
    for batch in read_batches(reader, groups, check=check):
        for part in batch.parts:
            part = part.to(device)
            with _autocast(device, precision if device.type == "cuda" else "float32"):
                logits.append(network(part.features, part.masks).logits.float().cpu())
        found.append(batch.bags)
    order = {int(bag): place for place, bag in enumerate(np.concatenate(found))}
    return torch.cat(logits)[[order[int(bag)] for bag in bags]]


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """PyTorch's random numbers follow the seed within the block; the caller's own state is as before after it."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


def choose_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is a GPU where there is one.

    Raises:
        ConfigurationError: no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigurationError(f"no device {name!r}", cure="Use one of auto, cpu, cuda, cuda:1") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("device='cuda', and PyTorch finds no GPU", cure="Use device='cpu' or 'auto'")
    return device


def _epoch_groups(
    count: int, batch_size: int, rng: np.random.Generator, chances: NDArray[np.float64] | None
) -> list[NDArray[np.intp]]:
    """The batches of an epoch as places in the training bags: each once, or drawn by chance."""
    order = rng.permutation(count) if chances is None else rng.choice(count, count, p=chances)
    return [order[start : start + batch_size] for start in range(0, count, batch_size)]


def _chances(targets: Targets, training: NDArray[np.intp]) -> NDArray[np.float64] | None:
    if targets.draw is None:
        return None
    chances = targets.draw[training]
    return chances / chances.sum()


def _parameter_groups(network: Network, weight_decay: float) -> list[dict]:
    """Decay on matrices only: on biases and norms it only shifts the prediction."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in parameters if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "weight_decay": 0.0},
    ]


def _autocast_type(device: torch.device, precision: str) -> torch.dtype | None:
    if precision == "float32" or (precision == "auto" and device.type != "cuda"):
        return None
    return torch.float16 if device.type == "cuda" and not torch.cuda.is_bf16_supported() else torch.bfloat16


def _autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Mixed precision: on a GPU unless told otherwise, on a CPU where asked for."""
    dtype = _autocast_type(device, precision)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)

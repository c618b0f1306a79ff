"""What all heads have in common: the interface, the embedding of instances, the registry."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoomfeat.errors import ConfigurationError


@dataclass
class HeadOutput:
    """What a head says of B bags of at most N instances.

    Attributes:
        logits: (B, C), one column an output.
        attention: (B, N), at least 0, 1 in sum over the instances of a bag, 0 at padding.
        vector: (B, V), the bag as one vector, before the last linear layer.
        instances: (B, N, W), the embedded instances.
        side_logits: (B, K, C), further predictions of the same label that training scores too; None where the
            head makes none.
        side_weights: (B, K), the weight of each in the loss; 0 where there is none.
    """

    logits: Tensor
    attention: Tensor
    vector: Tensor
    instances: Tensor
    side_logits: Tensor | None = None
    side_weights: Tensor | None = None


class Embedding(nn.Module):
    """Standardisation, a linear layer, ReLU and dropout on each instance: the first stage of every head.

    Features are taken as they are until ``standardize`` tells their mean and deviation.

    Args:
        input_dim: length D of an instance.
        width: length of an embedded instance.
        dropout: share of embedded values set to zero in training.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, input_dim: int, width: int, dropout: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(input_dim))
        self.register_buffer("deviation", torch.ones(input_dim))
        self.linear = nn.Linear(input_dim, width)
        self.dropout = nn.Dropout(dropout)

    def standardize(self, mean: Tensor, deviation: Tensor) -> None:
        """Takes the mean and the deviation of each feature, (D,) each."""
        self.mean.copy_(mean)
        self.deviation.copy_(deviation)

    def forward(self, features: Tensor) -> Tensor:
        """(B, N, D) to (B, N, W)."""
        if self._means_are_small(features):
            # Within the weights, which spares a copy of the bag: a good part of a step on a CPU.
            weight = self.linear.weight / self.deviation
            embedded = nn.functional.linear(features, weight, self.linear.bias - weight @ self.mean)
        else:
            embedded = self.linear((features - self.mean) / self.deviation)
        return self.dropout(embedded.relu_())

    def _means_are_small(self, features: Tensor) -> bool:
        """Whether means may still be there in the product, where they take digits from what differs."""
        if features.is_cuda:  # where a copy costs little, and looking at a value halts everything
            return False
        most = 8 if torch.is_autocast_enabled("cpu") else 1000
        return bool(((self.mean / self.deviation).abs() < most).all())


class Head(nn.Module):
    """A bag of instance features in, logits and attention out.

    Attributes:
        vector_width: length V of the bag vector.
        embed: the first stage.
    """

    vector_width: int
    embed: Embedding

    def forward(self, features: Tensor, mask: Tensor) -> HeadOutput:
        """Runs the head.

        Args:
            features: (B, N, D) float; padding may hold any finite number.
            mask: (B, N) bool, True for instances and False for padding; at least one True a bag.
        """
        raise NotImplementedError

    def instance_loss(self, output: HeadOutput, mask: Tensor, labels: Tensor) -> Tensor | None:
        """A loss on instances that training of a classifier adds; None for most heads.

        Args:
            output: of ``forward``, for B bags.
            mask: (B, N) bool.
            labels: (B,) class of each bag.

        Returns:
            A scalar, already weighted.
        """
        return None


HeadBuilder = Callable[..., Head]
_BUILDERS: dict[str, HeadBuilder] = {}


def register(name: str) -> Callable[[HeadBuilder], HeadBuilder]:
    """Enters a head, mostly a class, under a name: ``builder(input_dim, num_outputs, **options) -> Head``."""

    def enter(builder: HeadBuilder) -> HeadBuilder:
        if name in _BUILDERS:
            raise ValueError(f"two heads are called {name}")
        _BUILDERS[name] = builder
        return builder

    return enter


def head_names() -> tuple[str, ...]:
    """The names of all heads."""
    return tuple(_BUILDERS)


def build_head(name: str, input_dim: int, num_outputs: int, **options: Any) -> Head:
    """A fresh head.

    Args:
        name: one of ``head_names()``.
        input_dim: length D of an instance.
        num_outputs: number C of logits.
        **options: of that head: ``width``, ``dropout`` and what its class lists.

    Raises:
        ConfigurationError: an unknown name, or an option that the head does not take.
    """
    if name not in _BUILDERS:
        near = difflib.get_close_matches(str(name), _BUILDERS, n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise ConfigurationError(f"no head {name!r}", cure=f"{hint}Known are {', '.join(head_names())}")
    try:
        return _BUILDERS[name](input_dim, num_outputs, **options)
    except TypeError as error:
        reason = str(error).split("()")[-1].strip()
        raise ConfigurationError(
            f"options {options} do not fit the head {name!r} ({reason})", cure="See docs/mil-heads.md"
        ) from error


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """(B, W) mean of (B, N, W) over the instances that (B, N) marks."""
    return torch.einsum("bnw,bn->bw", values, uniform(mask, values.dtype))


def uniform(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, N) equal weights over the instances of each bag, 1 in sum."""
    weights = mask.to(dtype)
    return weights / weights.sum(dim=1, keepdim=True)

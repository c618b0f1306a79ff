"""A head on the magnifications of a bag: fused before it, or one branch for each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mil.heads.base import Head, HeadOutput, build_head
from zoomfeat.errors import ConfigurationError

FUSIONS = ("early", "late")
"""How magnifications become one prediction."""


@dataclass
class NetworkOutput:
    """What the network says of B bags.

    Attributes:
        logits: (B, C).
        branches: the output of each branch; one where features were fused early.
    """

    logits: Tensor
    branches: list[HeadOutput]


class Network(nn.Module):
    """One head, or one for each magnification.

    With several branches the bag vectors are concatenated and classified by one linear layer (late fusion).

    Args:
        head: name of the head.
        input_dims: feature length of each branch.
        num_outputs: number C of logits.
        **options: of the head.
    """

    def __init__(self, head: str, input_dims: Sequence[int], num_outputs: int, **options: Any) -> None:
        super().__init__()
        heads = [build_head(head, dim, num_outputs, **options) for dim in input_dims]
        self.branches = nn.ModuleList(heads)
        self.classifier: nn.Linear | None = None
        if len(input_dims) > 1:
            self.classifier = nn.Linear(sum(branch.vector_width for branch in heads), num_outputs)

    def forward(self, features: Sequence[Tensor], masks: Sequence[Tensor]) -> NetworkOutput:
        """Runs the network.

        Args:
            features: (B, N_i, D_i) for each branch.
            masks: (B, N_i) bool for each branch.
        """
        outputs = [head(values, mask) for head, values, mask in zip(self.heads, features, masks, strict=True)]
        if self.classifier is None:
            return NetworkOutput(outputs[0].logits, outputs)
        return NetworkOutput(self.classifier(torch.cat([output.vector for output in outputs], dim=1)), outputs)

    @property
    def heads(self) -> list[Head]:
        """The head of each branch."""
        return [branch for branch in self.branches if isinstance(branch, Head)]

    def standardize(self, means: Sequence[NDArray[np.float32]], deviations: Sequence[NDArray[np.float32]]) -> None:
        """Takes the mean and deviation of each feature, (D_i,) for each branch."""
        for head, mean, deviation in zip(self.heads, means, deviations, strict=True):
            head.embed.standardize(torch.from_numpy(mean), torch.from_numpy(deviation))


def check_fusion(fusion: str) -> None:
    """Refuses an unknown way of fusion.

    Raises:
        ConfigurationError: naming the known ones.
    """
    if fusion not in FUSIONS:
        raise ConfigurationError(f"fusion {fusion!r}", cure=f"Use one of {', '.join(FUSIONS)}")

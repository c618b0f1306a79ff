"""What training minimises: cross-entropy, squared error, or the Cox partial likelihood."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from torch import Tensor, nn

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(logits (M, C), targets (M, ...), weights (M,)) -> scalar``, the weighted mean over M predictions."""


class CrossEntropy(nn.Module):
    """Cross-entropy of class logits.

    Args:
        class_weights: (C,) weight of each class; None for equal weights.
    """

    class_weights: Tensor | None

    def __init__(self, class_weights: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("class_weights", class_weights)

    def forward(self, logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Scalar; ``targets`` are (M,) class numbers."""
        if self.class_weights is not None:
            weights = weights * self.class_weights[targets]
        losses = nn.functional.cross_entropy(logits.float(), targets, reduction="none")
        return (losses * weights).sum() / weights.sum()


def squared_error(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Mean squared error; ``logits`` and ``targets`` are (M, C)."""
    return ((logits.float() - targets).square().mean(dim=1) * weights).sum() / weights.sum()


def cox_partial_likelihood(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Negative log partial likelihood a bag with an event, ties after Efron (Cox 1972; Efron 1977).

    The risk sets are those of the batch. A batch without an event, or with one bag, has none and gives 0.

    Args:
        logits: (M, 1) log hazard.
        targets: (M, 2) time, and 1 for an event or 0 for censoring.
        weights: (M,); predictions of weight 0 are left out, others count alike.
    """
    from torchsurv.loss.cox import neg_partial_log_likelihood

    used = weights > 0
    hazard, time, event = logits[used, 0].float(), targets[used, 0], targets[used, 1] > 0
    if len(hazard) < 2 or not event.any():
        return logits.sum() * 0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Ties in `time`")  # once a batch, and what Efron's method is for
        return neg_partial_log_likelihood(hazard, event, time, ties_method="efron")

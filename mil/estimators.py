"""Estimators with scikit-learn's habits: bags and targets in, a trained network and predictions out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClassifierMixin, RegressorMixin

from mil import checkpoints
from mil.base import MILEstimator
from mil.dataset import BagSource
from mil.objectives import CrossEntropy, Objective, cox_partial_likelihood, squared_error
from mil.targets import as_numbers, as_survival, as_targets
from mil.trainer import Targets
from zoomfeat.errors import ConfigurationError


class MILClassifier(ClassifierMixin, MILEstimator):
    """Classifies bags.

        model = MILClassifier(head="abmil-gated").fit(paths, labels, groups=patients)
        model.predict_proba(others)          # (bags, classes)
        model.attention(others[0])["20x"]    # (N,), one weight an instance

    Takes the parameters of ``MILEstimator`` and ``balance``.

    Args:
        balance: ``"none"``; ``"weights"`` weighs the loss of each class by its rarity; ``"sampling"`` draws bags
            so that classes are equally frequent in an epoch.
        head: see ``MILEstimator``, as for all that follow.

    Attributes:
        classes_: (C,) the labels, sorted.
    """

    def __init__(
        self,
        head: str = "abmil-gated",
        scales: Sequence[str] | None = None,
        fusion: str = "early",
        width: int = 128,
        dropout: float = 0.25,
        head_options: Mapping[str, Any] | None = None,
        epochs: int = 50,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-2,
        batch_size: int = 16,
        accumulate: int = 1,
        max_instances: int | None = None,
        instance_dropout: float = 0.0,
        balance: str = "none",
        validation: float = 0.0,
        patience: int = 10,
        standardize: bool = True,
        precision: str = "auto",
        seed: int = 0,
        device: str = "auto",
        verbose: bool = False,
    ) -> None:
        super().__init__(
            head, scales, fusion, width, dropout, head_options, epochs, learning_rate, weight_decay, batch_size,
            accumulate, max_instances, instance_dropout, validation, patience, standardize, precision, seed, device,
            verbose,
        )  # fmt: skip
        self.balance = balance

    def decision_function(self, bags: Sequence[BagSource]) -> NDArray[np.float64]:
        """(bags,) log odds of ``classes_[1]`` where there are two classes, else (bags, C) logits."""
        logits = self._predict_logits(bags)
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_proba(self, bags: Sequence[BagSource]) -> NDArray[np.float64]:
        """(bags, C) probability of each class, in the order of ``classes_``."""
        return torch.from_numpy(self._predict_logits(bags)).softmax(dim=1).numpy()

    def predict(self, bags: Sequence[BagSource]) -> NDArray:
        """(bags,) the most probable class."""
        winners = self._predict_logits(bags).argmax(axis=1)
        return self.classes_[winners]

    def _targets(self, y: ArrayLike, count: int) -> Targets:
        if self.balance not in ("none", "weights", "sampling"):
            raise ConfigurationError(f"balance={self.balance!r}", cure="Use one of none, weights, sampling")
        labels = as_targets(y, count)
        if labels.dtype.kind == "f" and (labels != np.floor(labels)).any():
            raise ConfigurationError("labels are not whole numbers", cure="Use MILRegressor for numeric targets")
        self.classes_, numbers, sizes = np.unique(labels, return_inverse=True, return_counts=True)
        if len(self.classes_) < 2:
            raise ConfigurationError(
                f"all {count} bags have the label {self.classes_[0]!s}, expected at least two classes",
                cure="Check the label column",
            )
        rarity = count / (len(sizes) * sizes)
        objective: Objective = CrossEntropy(
            torch.tensor(rarity, dtype=torch.float32) if self.balance == "weights" else None
        )
        return Targets(
            torch.from_numpy(numbers), objective, draw=rarity[numbers] if self.balance == "sampling" else None
        )

    def _num_outputs(self) -> int:
        return len(self.classes_)

    def _strata(self, y: ArrayLike) -> NDArray:
        return np.asarray(y)

    def _fitted_state(self) -> dict[str, Any]:
        return {"classes": self.classes_.tolist(), "classes_type": self.classes_.dtype.str}

    def _restore(self, state: dict[str, Any]) -> None:
        self.classes_ = np.array(state["classes"], dtype=state["classes_type"])


class MILRegressor(RegressorMixin, MILEstimator):
    """Predicts a number for each bag by squared error; ``score`` is R2.

    Targets are brought to mean 0 and deviation 1 for training.
    """

    def predict(self, bags: Sequence[BagSource]) -> NDArray[np.float64]:
        """(bags,) in the unit of the targets."""
        scaled = self._predict_logits(bags)[:, 0]
        return scaled * self.target_deviation_ + self.target_mean_

    def _targets(self, y: ArrayLike, count: int) -> Targets:
        numbers = as_numbers(y, count)
        self.target_mean_ = float(numbers.mean())
        self.target_deviation_ = float(numbers.std())
        if self.target_deviation_ == 0:
            raise ConfigurationError(f"all {count} targets are {self.target_mean_:g}", cure="Check the label column")
        scaled = (numbers - self.target_mean_) / self.target_deviation_
        return Targets(torch.from_numpy(scaled[:, None]).float(), squared_error)

    def _num_outputs(self) -> int:
        return 1

    def _fitted_state(self) -> dict[str, Any]:
        return {"target_mean": self.target_mean_, "target_deviation": self.target_deviation_}

    def _restore(self, state: dict[str, Any]) -> None:
        self.target_mean_, self.target_deviation_ = state["target_mean"], state["target_deviation"]


class MILSurvival(MILEstimator):
    """Predicts the log hazard of each bag by the Cox partial likelihood; ``score`` is Harrell's concordance.

    Risk sets are those of a batch, so ``batch_size`` should be large enough to hold several events. Targets are
    (bags, 2): time, and 1 for an event or 0 for censoring.
    """

    def predict(self, bags: Sequence[BagSource]) -> NDArray[np.float64]:
        """(bags,) log hazard up to a constant: the higher, the earlier the event."""
        return self._predict_logits(bags)[:, 0]

    def score(self, bags: Sequence[BagSource], y: ArrayLike) -> float:
        """Harrell's concordance index on bags: 0.5 for chance, 1 for a perfect order."""
        from torchsurv.metrics.cindex import ConcordanceIndex

        risk = torch.from_numpy(self.predict(bags)).float()
        values = torch.from_numpy(as_survival(y, len(risk)))
        return float(ConcordanceIndex()(risk, values[:, 1] > 0, values[:, 0]))

    def _targets(self, y: ArrayLike, count: int) -> Targets:
        return Targets(torch.from_numpy(as_survival(y, count)), cox_partial_likelihood)

    def _num_outputs(self) -> int:
        return 1

    def _strata(self, y: ArrayLike) -> NDArray:
        return np.asarray(y)[:, 1]


def load_model(path: str | PathLike) -> MILEstimator:
    """The fitted estimator in a file, of whichever class it is.

    Raises:
        CheckpointMismatchError: not such a file.
    """
    return checkpoints.load(path, MILEstimator)  # type: ignore[type-abstract]

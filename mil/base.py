"""What all estimators share: fitting on bags, attention, files."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator
from sklearn.model_selection import GroupShuffleSplit, StratifiedGroupKFold
from sklearn.utils.validation import check_is_fitted

from mil import checkpoints
from mil.batches import BagReader, Sampling, make_batch
from mil.dataset import BagFacts, BagSource, Instances, check_same_encoder, load_instances, probe
from mil.heads.network import Network, check_fusion
from mil.moments import feature_moments
from mil.targets import as_groups, as_list
from mil.trainer import Plan, Targets, choose_device, predict_logits, seeded, train
from zoomfeat.errors import ConfigurationError, MagnificationError


class MILEstimator(BaseEstimator):
    """What the three estimators share.

    Args:
        head: name of the head, see ``mil.heads.head_names()``.
        scales: magnifications to use; None for all that the first training bag holds.
        fusion: ``"early"`` concatenates each finest instance with its parents at the coarser magnifications;
            ``"late"`` trains one branch a magnification and concatenates the bag vectors.
        width: length of an embedded instance.
        dropout: on embedded instances, 0 to 1.
        head_options: further options of the head, by name.
        epochs: passes over the training bags.
        learning_rate: of AdamW at its highest; a cosine takes it to 0.
        weight_decay: of AdamW.
        batch_size: bags in memory at once; with ``accumulate``, bags a step of the optimizer.
        accumulate: batches a step.
        max_instances: most instances of a bag and magnification that a training step sees, drawn anew each
            epoch; None for all.
        instance_dropout: share of instances that a training step leaves out.
        validation: share of the training patients (``groups``) that early stopping watches; 0 trains all epochs
            on all bags.
        patience: epochs without a better validation loss before training stops.
        standardize: bring each feature to mean 0 and deviation 1 over the training instances; the model stores both.
        precision: of training: ``"auto"`` is mixed (bfloat16) on a GPU and float32 on a CPU; ``"float32"``; ``"mixed"``
            on a CPU as well, which is faster on processors with AVX512-BF16 or AMX.
        seed: two runs with the same seed are equal to the bit on a CPU.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``.
        verbose: show a progress bar.

    Attributes:
        scales_: magnifications used, finest first; ``("",)`` where bags state none.
        widths_: feature length of each.
        encoder_: identity of the encoder that made the features; None where the bags do not state it.
        n_features_in_: sum of the lengths.
        history_: one row an epoch, ``loss`` and ``validation_loss``.
        network_: the trained network.
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
        validation: float = 0.0,
        patience: int = 10,
        standardize: bool = True,
        precision: str = "auto",
        seed: int = 0,
        device: str = "auto",
        verbose: bool = False,
    ) -> None:
        self.head = head
        self.scales = scales
        self.fusion = fusion
        self.width = width
        self.dropout = dropout
        self.head_options = head_options
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.accumulate = accumulate
        self.max_instances = max_instances
        self.instance_dropout = instance_dropout
        self.validation = validation
        self.patience = patience
        self.standardize = standardize
        self.precision = precision
        self.seed = seed
        self.device = device
        self.verbose = verbose

    def fit(self, bags: Sequence[BagSource], y: ArrayLike, groups: ArrayLike | None = None) -> Self:
        """Trains on bags.

        Args:
            bags: paths, arrays (N, D), ``Bag`` or ``Instances``.
            y: one target a bag.
            groups: patient of each bag, so that early stopping never watches bags of a patient it trains on;
                None for a patient a bag.

        Raises:
            ConfigurationError: a parameter, the targets or the bags do not fit; nothing has been trained then.
            BagInvalidError: a bag is damaged, empty or holds features that are not finite; nothing has been trained.
        """
        sources = as_list(bags)
        self._check_parameters()
        targets = self._targets(y, len(sources))
        patients = as_groups(groups, len(sources))
        facts = probe(sources, self.scales)
        device = choose_device(self.device)

        self.scales_ = tuple(facts.widths)
        self.widths_ = dict(facts.widths)
        self.encoder_ = facts.encoder
        self.n_features_in_ = sum(facts.widths.values())
        in_memory = [
            load_instances(source, self.scales_) if isinstance(source, np.ndarray) else source for source in sources
        ]
        reader = BagReader(in_memory, self.scales_, self.fusion)
        training, validation = self._inner_split(y, patients)
        means, deviations = feature_moments(reader, training, validation)  # reads every bag, so checks every value

        with seeded(self.seed, device):
            network = self._build_network()
            if self.standardize:
                network.standardize(means, deviations)
            network.to(device)
            self.history_ = train(network, reader, targets, self._plan(), training, validation, device)
        self.network_ = network.cpu()
        return self

    def attention(self, bag: BagSource) -> dict[str, NDArray[np.float32]]:
        """How much the prediction of a bag rests on each instance.

        Returns:
            Magnification name to (N_m,), at least 0 and 1 in sum. With early fusion a coarser instance has the
            sum over the finest instances it contains.

        Raises:
            ConfigurationError: the bag's features are of another encoder or length.
        """
        check_is_fitted(self, "network_")
        facts = self._check_bags([bag])
        reader = BagReader([bag], self.scales_, self.fusion)
        instances = load_instances(bag, self.scales_)
        (part,) = make_batch(np.zeros(1, dtype=np.intp), [reader.branches(instances)]).parts
        with torch.inference_mode():
            output = self.network_.eval()(part.features, part.masks)
        weights = [branch.attention[0].float().numpy() for branch in output.branches]
        if self.fusion == "late":
            return dict(zip(facts.widths, weights, strict=True))
        return _spread(weights[0], instances)

    def save(self, path: str | PathLike) -> None:
        """Writes the fitted estimator as one ``.safetensors`` file, whole or not at all.

        Raises:
            ZoomfeatError: the file cannot be written.
        """
        check_is_fitted(self, "network_")
        checkpoints.save(self, path)

    @classmethod
    def load(cls, path: str | PathLike) -> Self:
        """The estimator that ``save`` wrote; no code from the file is run.

        Raises:
            CheckpointMismatchError: not such a file, or one of another estimator.
        """
        return checkpoints.load(path, cls)

    @abstractmethod
    def _targets(self, y: ArrayLike, count: int) -> Targets:
        """The targets of all bags, checked."""

    @abstractmethod
    def _num_outputs(self) -> int:
        """Number of logits of the fitted estimator."""

    def _strata(self, y: ArrayLike) -> NDArray | None:
        """Class of each bag, which the inner split keeps in proportion; None without classes."""
        return None

    def _fitted_state(self) -> dict[str, Any]:
        """What a file must hold beside parameters and weights, as JSON."""
        return {}

    def _restore(self, state: dict[str, Any]) -> None:
        """The inverse of ``_fitted_state``."""

    def _predict_logits(self, bags: Sequence[BagSource]) -> NDArray[np.float64]:
        check_is_fitted(self, "network_")
        sources = as_list(bags)
        self._check_bags(sources)
        reader = BagReader(sources, self.scales_, self.fusion)
        device = choose_device(self.device)
        network = self.network_.to(device)
        logits = predict_logits(
            network, reader, np.arange(len(sources)), self.batch_size, device, self.precision, check=True
        )
        self.network_.cpu()
        return logits.double().numpy()

    def _check_bags(self, sources: Sequence[BagSource]) -> BagFacts:
        """Refuses bags that the fitted network cannot take."""
        named = None if self.scales_ == ("",) else self.scales_
        facts = probe(sources, named)
        if tuple(facts.widths) != self.scales_:
            raise MagnificationError(
                f"bags with magnifications {', '.join(facts.widths)}, and the model was trained on bags without",
                cure="Predict on arrays or files of the kind it was trained on",
            )
        if facts.widths != self.widths_:
            raise ConfigurationError(
                f"features of length {list(facts.widths.values())}, expected {list(self.widths_.values())}",
                cure="Extract the slides with the encoder that the model was trained on",
            )
        check_same_encoder(facts.encoder, self.encoder_, sources[0])
        return facts

    def _build_network(self) -> Network:
        widths = list(self.widths_.values())
        dims = [sum(widths)] if self.fusion == "early" else widths
        options = {"width": self.width, "dropout": self.dropout, **(self.head_options or {})}
        return Network(self.head, dims, self._num_outputs(), **options)

    def _plan(self) -> Plan:
        return Plan(
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            batch_size=self.batch_size,
            accumulate=self.accumulate,
            sampling=Sampling(self.max_instances, self.instance_dropout),
            patience=self.patience,
            precision=self.precision,
            seed=self.seed,
            verbose=self.verbose,
        )

    def _inner_split(self, y: ArrayLike, patients: NDArray) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Training and validation bags, without a common patient."""
        everything = np.arange(len(patients))
        if not self.validation:
            return everything, everything[:0]
        strata = self._strata(y)
        splitter: Any
        if strata is None:
            splitter = GroupShuffleSplit(1, test_size=self.validation, random_state=self.seed)
        else:
            folds = max(2, round(1 / self.validation))
            splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=self.seed)
        try:
            training, validation = next(splitter.split(everything, strata, patients))
        except ValueError as error:
            raise ConfigurationError(
                f"validation={self.validation} of {len(set(patients))} patients cannot be split off ({error})",
                cure="Use validation=0, or more patients",
            ) from error
        if strata is not None and len(np.unique(strata[training])) < len(np.unique(strata)):
            raise ConfigurationError(
                f"validation={self.validation} leaves no patient of a class to train on",
                cure="Use validation=0, or more patients",
            )
        return training, validation

    def _check_parameters(self) -> None:
        check_fusion(self.fusion)
        if self.precision not in ("auto", "float32", "mixed"):
            raise ConfigurationError(f"precision={self.precision!r}", cure="Use one of auto, float32, mixed")
        at_least_one = {name: getattr(self, name) for name in ("epochs", "batch_size", "accumulate", "width")}
        shares = {name: getattr(self, name) for name in ("dropout", "instance_dropout", "validation")}
        if self.max_instances is not None:
            at_least_one["max_instances"] = self.max_instances
        for name, value in at_least_one.items():
            if value < 1:
                raise ConfigurationError(f"{name}={value}, expected at least 1", cure=f"Give another {name}")
        for name, value in shares.items():
            if not 0 <= value < 1:
                raise ConfigurationError(f"{name}={value}, expected 0 to below 1", cure=f"Give another {name}")


def _spread(weights: NDArray[np.float32], instances: Instances) -> dict[str, NDArray[np.float32]]:
    """Attention of the finest instances, and its sum over those that each coarser instance contains."""
    finest, *coarser = instances.features
    return {finest: weights} | {
        name: np.bincount(instances.parents[name], weights=weights, minlength=len(instances.features[name])).astype(
            np.float32
        )
        for name in coarser
    }

"""Saved models that predict together: files, folders, or the run of a cross-validation.

Of a cross-validation only those models speak on a slide that did not see it in training, as far as the run's
``splits.csv`` tells.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from mil.dataset import PLAIN, BagSource, Instances, load_instances
from mil.estimators import MILClassifier, MILEstimator, MILSurvival, load_model
from mil.labels import slide_name
from mil.prediction import Prediction, of_models, of_resamples
from mil.resampling import resample
from mil.tables import read_table
from mil.trainer import choose_device
from zoomfeat.bags import Bag
from zoomfeat.errors import ConfigurationError
from zoomfeat.files import file_sha256

Advance = Callable[[int, int], None]
"""Told how many resamples are done, and how many there are."""

_MODEL_OF_A_RUN = re.compile(r"seed-(\d+)-fold-(.+)\.safetensors")
_CHUNK = 20  # resamples of a bag in memory at once


@dataclass(frozen=True)
class FoldOfModel:
    """What a model of a cross-validation saw.

    Attributes:
        trained_on: slides that it was trained or stopped on.
        slides: all slides of the run.
    """

    trained_on: frozenset[str]
    slides: frozenset[str]

    def saw(self, slide_id: str) -> bool:
        """Whether it was trained on that slide; the name before the first dot is enough where it is unambiguous."""
        if slide_id not in self.slides:
            same = [name for name in self.slides if name.split(".")[0] == slide_id.split(".")[0]]
            slide_id = same[0] if len(same) == 1 else slide_id
        return slide_id in self.trained_on


@dataclass(frozen=True, eq=False)
class SavedModel:
    """One fitted estimator and its file.

    Attributes:
        path: the file.
        sha256: of the file.
        estimator: what it holds.
        fold: what the splits of its cross-validation say; None for a model of another origin.
    """

    path: Path
    sha256: str
    estimator: MILEstimator
    fold: FoldOfModel | None = None


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Models of one kind, classes and magnifications.

    Attributes:
        models: at least one.
        training: what is known of the slide in their training: ``"unknown"``, ``"unseen"`` or ``"seen"``.
    """

    models: tuple[SavedModel, ...]
    training: str = "unknown"

    @property
    def kind(self) -> str:
        """Of the outputs: ``probability``, ``score`` or ``risk``."""
        estimator = self.models[0].estimator
        if isinstance(estimator, MILClassifier):
            return "probability"
        return "risk" if isinstance(estimator, MILSurvival) else "score"

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs: the classes, or the kind."""
        estimator = self.models[0].estimator
        return tuple(map(str, estimator.classes_)) if isinstance(estimator, MILClassifier) else (self.kind,)

    @property
    def scales(self) -> tuple[str, ...]:
        """Magnifications that the models read, finest first; ``("",)`` where their bags stated none."""
        return self.models[0].estimator.scales_

    def for_slide(self, slide_id: str) -> Ensemble:
        """The models that did not see this slide in training; all where none is left, or nothing is known."""
        if any(model.fold is None for model in self.models):
            return self
        unseen = tuple(model for model in self.models if model.fold and not model.fold.saw(slide_id))
        return Ensemble(unseen, "unseen") if unseen else replace(self, training="seen")

    def predict(self, source: BagSource) -> Prediction:
        """The mean of the models, with their range where there are several.

        Raises:
            ZoomfeatError: the bag is damaged, or not of the encoder, length or magnifications of the models.
        """
        bag = self._readable(source)
        return of_models(self.kind, self.outputs, np.array([_values(model, [bag])[0] for model in self.models]))

    def predict_resampled(
        self, source: BagSource, count: int, seed: int = 0, advance: Advance | None = None
    ) -> Prediction:
        """The value of the one model, with an interval from bootstrap resamples of the bag.

        Args:
            source: the bag.
            count: resamples.
            seed: of the draws.
            advance: told of progress.

        Raises:
            ZoomfeatError: see `predict`.
        """
        (model,) = self.models
        bag = self._readable(source)
        value = _values(model, [bag])[0]  # of the bag itself first: that checks its encoder
        instances = load_instances(bag, None if self.scales == (PLAIN,) else self.scales)
        rng = np.random.default_rng(seed)
        chunks = []
        for start in range(0, count, _CHUNK):
            chunks.append(_values(model, [resample(instances, rng) for _ in range(min(_CHUNK, count - start))]))
            if advance:
                advance(start + len(chunks[-1]), count)
        coarsest = instances.scales[-1]
        unit = " ".join(f"{len(instances.features[coarsest])} {coarsest} patches".split())
        if len(instances.scales) > 1:
            unit += ", each with the finer ones in it"
        return of_resamples(self.kind, self.outputs, value, np.concatenate(chunks), unit)

    def attention(self, bag: Bag) -> dict[str, NDArray[np.float64]]:
        """The mean attention of the models, magnification name to (N_m,); 1 in sum at each magnification.

        Raises:
            ZoomfeatError: see `predict`.
        """
        source = self._readable(bag)
        each = [model.estimator.attention(source) for model in self.models]
        return {
            name or bag.magnifications[0]: np.stack([one[name] for one in each]).astype(np.float64).mean(axis=0)
            for name in each[0]
        }

    def _readable(self, source: BagSource) -> BagSource:
        """The bag as the models know bags: those trained on files without a magnification read its only one."""
        if self.scales != (PLAIN,) or not isinstance(source, Bag):
            return source
        if len(source.scales) > 1:
            raise ConfigurationError(
                f"the models were trained on bags of one unnamed magnification, this one holds "
                f"{', '.join(source.magnifications)}",
                cure="Give the folder of the one magnification that they were trained on",
                path=source.path,
            )
        return Instances({PLAIN: source.features}, {})


def load_ensemble(source: str | Path, device: str = "auto") -> Ensemble:
    """Loads saved models.

    Args:
        source: a model, a folder of models, the ``out`` folder of a cross-validation, or a pattern such as
            ``run/models/seed-0-*.safetensors``.
        device: where they predict.

    Raises:
        ConfigurationError: no model there, models of different kinds, classes or magnifications, or no such device.
        CheckpointMismatchError: a file that is no model.
    """
    files = _model_files(Path(source))
    folds = _folds(files)
    choose_device(device)
    models = []
    for path in files:
        estimator = load_model(path)
        estimator.set_params(device=device)
        digest = file_sha256(path)
        models.append(SavedModel(path, digest, estimator, folds.get(path)))
    ensemble = Ensemble(tuple(models))
    for model in models[1:]:
        other = Ensemble((model,))
        for what in ("kind", "outputs", "scales"):
            if getattr(other, what) != getattr(ensemble, what):
                raise ConfigurationError(
                    f"{what} {getattr(other, what)}, and {getattr(ensemble, what)} in {models[0].path}",
                    cure="Give models of one training, or one of them",
                    path=model.path,
                )
    return ensemble


def _values(model: SavedModel, bags: list[Any]) -> NDArray[np.float64]:
    """(bags, outputs)."""
    estimator: Any = model.estimator
    if isinstance(estimator, MILClassifier):
        return estimator.predict_proba(bags)
    return np.asarray(estimator.predict(bags), dtype=np.float64)[:, None]


def _model_files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if source.is_dir():
        folder = source / "models" if (source / "models").is_dir() else source
        found = sorted(folder.glob("*.safetensors"))
    else:
        found = sorted(Path(path) for path in glob.glob(str(source)))  # noqa: PTH207 (a pattern, perhaps absolute)
    if not found:
        raise ConfigurationError(
            "no model here (.safetensors)", cure="Give a model, a folder of models or the out= of crossval", path=source
        )
    return found


def _folds(files: list[Path]) -> dict[Path, FoldOfModel]:
    """The folds of those models that lie in the folder of a cross-validation."""
    known: dict[Path, FoldOfModel] = {}
    for folder in {path.parent for path in files}:
        table_path = folder.parent / "splits.csv"
        if not table_path.is_file():
            continue
        table = read_table(table_path)
        if not {"seed", "fold", "part", "slide_id"} <= set(table):
            continue
        slides = frozenset(map(slide_name, table.slide_id))
        for path in files:
            match = _MODEL_OF_A_RUN.fullmatch(path.name)
            if path.parent != folder or not match:
                continue
            seed, fold = match[1], unquote(match[2])
            mine = (table.seed.isna() | (table.seed == seed)) & (table.fold == fold)
            if mine.any():
                trained = table.slide_id[mine & (table.part != "test")]
                known[path] = FoldOfModel(frozenset(map(slide_name, trained)), slides)
    return known

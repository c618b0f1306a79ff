"""Cross-validation: a model a fold and seed, trained on patients that it is not tested on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape

from mil.cohort import Cohort, JoinReport, join
from mil.dataset import BagSource, load_instances, probe
from mil.estimators import MILClassifier, MILEstimator, MILRegressor, MILSurvival
from mil.held_out import PROBABILITY, HeldOutPredictions
from mil.labels import Columns, read_labels
from mil.runs import RunFolder
from mil.splits import (
    Fold,
    Splits,
    center_folds,
    check_leaks,
    check_trainable,
    column_folds,
    load_splits,
    stratified_folds,
)
from zoomfeat.conf.schema import CrossvalConfig
from zoomfeat.engines import Engine, open_engine
from zoomfeat.errors import ConfigurationError
from zoomfeat.progress import progress_bar

AGGREGATIONS = ("mean", "max", "merge")
"""How the slides of a patient become one prediction."""


@dataclass(frozen=True)
class Study:
    """Checked data of a cross-validation.

    Attributes:
        cohort: slides with label and bag.
        report: what did not match.
        splits: checked for leaks.
    """

    cohort: Cohort
    report: JoinReport
    splits: Splits

    @property
    def sha256(self) -> str:
        """Hash of slides, patients and labels."""
        cohort = self.cohort
        table = pd.DataFrame({"slide": cohort.slide_ids, "patient": cohort.patient_ids, "y": cohort.y})
        if cohort.event is not None:
            table["event"] = cohort.event
        return hashlib.sha256(table.sort_values("slide").to_csv(index=False).encode()).hexdigest()


@dataclass(frozen=True)
class Units:
    """What the model sees as one bag: a slide, or the slides of a patient.

    Attributes:
        sources: bags.
        patients: (n,) names.
        y: (n,) or, for survival, (n, 2) targets as the estimator takes them.
    """

    sources: list[BagSource]
    patients: NDArray[np.str_]
    y: NDArray[Any]


def open_study(config: CrossvalConfig) -> Study:
    """Reads labels, joins bags, makes or reads splits; refuses what cannot run before anything is trained.

    Raises:
        ConfigurationError: see `read_labels`, `join` and the functions of `mil.splits`.
    """
    if config.patient not in AGGREGATIONS:
        raise ConfigurationError(f"patient={config.patient!r}", cure=f"Use one of {', '.join(AGGREGATIONS)}")
    if not config.seeds or len(set(config.seeds)) < len(config.seeds) or min(config.seeds) < 0:
        raise ConfigurationError(
            f"seeds={config.seeds}", cure="Give different numbers from 0, for example seeds=[0,1,2]"
        )
    columns = Columns(
        label=config.label,
        slide=config.slide_column,
        patient=config.patient_column,
        time=config.time,
        event=config.event,
        center=config.center,
        fold=config.fold_column,
    )
    labels = read_labels(
        config.labels,
        columns,
        task=config.task,
        classes=config.classes,
        slide_table=config.slide_table,
        center_names=config.center_names,
    )
    cohort, report = join(labels, config.bags)
    splits = make_splits(config, cohort)
    check_leaks(splits, cohort)
    check_trainable(splits, cohort)
    return Study(cohort, report, splits)


def make_splits(config: CrossvalConfig, cohort: Cohort) -> Splits:
    """The splits that ``split=`` names.

    Raises:
        ConfigurationError: it names none, or they cannot be made.
    """
    if config.split == "stratified":
        return stratified_folds(cohort, config.folds, config.seeds)
    if config.split == "leave-one-center-out":
        return center_folds(cohort)
    if config.split == "column":
        return column_folds(cohort)
    if not Path(config.split).exists():
        raise ConfigurationError(
            f"split={config.split} is no file or folder",
            cure="Use stratified, leave-one-center-out, column, or the path of fixed splits",
        )
    splits = load_splits(config.split, cohort)
    lacking = [seed for seed in config.seeds if not splits.of_seed(seed)]
    if lacking:
        raise ConfigurationError(
            f"no folds for the seeds {lacking}", cure="Give seeds= as in its run", path=config.split
        )
    return splits


class TrainFold:
    """A callable for engines: trains on a fold of a seed, saves the model, gives the rows of the predictions.

    Args:
        config: the keys.
        cohort: slides with label and bag.
        watch: of this process, told which fold begins.
    """

    def __init__(
        self, config: CrossvalConfig, cohort: Cohort, watch: Callable[[int, Fold], None] | None = None
    ) -> None:
        self.config = config
        self.cohort = cohort
        self.watch = watch

    def __reduce__(self) -> tuple[type[TrainFold], tuple[CrossvalConfig, Cohort]]:
        """For workers, whose working folder is another one."""
        cohort = replace(self.cohort, paths=tuple(path.absolute() for path in self.cohort.paths))
        return TrainFold, (replace(self.config, out=str(Path(self.config.out).absolute())), cohort)

    def __call__(self, item: tuple[int, Fold]) -> pd.DataFrame:
        """See `train_fold`."""
        seed, fold = item
        if self.watch:
            self.watch(seed, fold)
        model, table = train_fold(self.config, self.cohort, fold, seed)
        model.save(RunFolder(Path(self.config.out)).model(seed, fold))
        return table


def cross_validate(
    config: CrossvalConfig, study: Study, console: Console, engine: Engine | None = None
) -> HeldOutPredictions:
    """Trains and tests every fold of every seed that is not done yet, and saves each as it is done.

    Args:
        config: the keys.
        study: from `open_study`.
        console: where progress is shown.
        engine: where folds are trained, already open; None: that of the keys.

    Returns:
        The test predictions of all folds.

    Raises:
        ConfigurationError: the folder holds another run, or the bags do not go together.
        BagInvalidError: a bag is damaged, empty or holds values that are not finite.
    """
    run = RunFolder(Path(config.out))
    facts = probe(study.cohort.paths, config.scales or None)
    run.claim(
        asdict(config),
        {"cohort_sha256": study.sha256, "splits_sha256": study.splits.sha256, "encoder": facts.encoder},
    )
    study.splits.save(run.folder / "splits.csv")
    done = run.done()
    if done is None:
        check_bags(study.cohort, config, console)
    tables = {} if done is None else dict(iter(done.table.groupby(["seed", "fold"], sort=False)))
    folds = list(_folds(config, study.splits))
    left = [(seed, fold) for seed, fold in folds if (seed, fold.name) not in tables]

    def predictions() -> HeldOutPredictions:
        """Of all folds so far, in their order, in whichever they ended."""
        keys = [(seed, fold.name) for seed, fold in folds]
        return HeldOutPredictions(pd.concat([tables[key] for key in keys if key in tables], ignore_index=True))

    if not left:
        return predictions()
    opened = nullcontext(engine) if engine else open_engine(config.engine, run.folder)
    with progress_bar(console) as progress, opened as workers:
        bar = progress.add_task(config.head, total=len(folds), completed=len(tables), unit="folds")

        def watch(seed: int, fold: Fold) -> None:
            progress.update(bar, description=escape(f"{config.head}, seed {seed}, fold {fold.name}"))

        for (seed, fold), result in workers.map(TrainFold(config, study.cohort, watch), left):
            if isinstance(result, Exception):
                raise result
            tables[seed, fold.name] = result
            predictions().save(run.predictions)
            progress.advance(bar)
    return predictions()


def train_fold(config: CrossvalConfig, cohort: Cohort, fold: Fold, seed: int) -> tuple[MILEstimator, pd.DataFrame]:
    """Trains on a fold's training (and validation) slides and predicts the patients of its test slides.

    Early stopping draws its own patients from the training slides, so a fixed split's validation part trains too.

    Returns:
        The model, and its rows of `HeldOutPredictions`.
    """
    training = _units(cohort, fold.train + fold.validation, config.patient == "merge")
    model = make_estimator(config, seed)
    model.fit(training.sources, training.y, groups=training.patients)
    return model, _tested(config, cohort, fold, seed, model)


def make_estimator(config: CrossvalConfig, seed: int) -> MILEstimator:
    """The estimator that the keys describe."""
    options: dict[str, Any] = {
        name: getattr(config, name)
        for name in (
            "head", "fusion", "width", "dropout", "epochs", "learning_rate", "weight_decay", "batch_size", "accumulate",
            "max_instances", "instance_dropout", "validation", "patience", "standardize", "device",
        )
    }  # fmt: skip
    options |= {"scales": config.scales or None, "seed": seed}
    if config.task == "classification":
        return MILClassifier(balance=config.balance, **options)
    return MILRegressor(**options) if config.task == "regression" else MILSurvival(**options)


def check_bags(cohort: Cohort, config: CrossvalConfig, console: Console) -> None:
    """Reads every bag once, so that a damaged one is found before hours of training.

    Raises:
        BagInvalidError: it is damaged, empty, or holds values that are not finite.
    """
    with progress_bar(console) as progress:
        task = progress.add_task("checking bags", total=len(cohort.paths), unit="bags")
        for path in cohort.paths:
            load_instances(path, config.scales or None)
            progress.advance(task)


def _folds(config: CrossvalConfig, splits: Splits) -> Iterator[tuple[int, Fold]]:
    for seed in config.seeds:
        yield from ((seed, fold) for fold in splits.of_seed(seed))


def _units(cohort: Cohort, slides: tuple[str, ...], merge: bool) -> Units:
    rows = np.flatnonzero(np.isin(cohort.slide_ids, slides))
    y = cohort.y if cohort.event is None else np.stack([cohort.y, cohort.event], axis=1)
    if not merge:
        return Units([cohort.paths[row] for row in rows], cohort.patient_ids[rows], y[rows])
    names, first = np.unique(cohort.patient_ids[rows], return_index=True)
    sources: list[BagSource] = []
    for name in names:
        paths = tuple(cohort.paths[row] for row in rows[cohort.patient_ids[rows] == name])
        sources.append(paths if len(paths) > 1 else paths[0])
    return Units(sources, names, y[rows[first]])


def _tested(config: CrossvalConfig, cohort: Cohort, fold: Fold, seed: int, model: MILEstimator) -> pd.DataFrame:
    units = _units(cohort, fold.test, config.patient == "merge")
    if isinstance(model, MILClassifier):
        order = [model.classes_.tolist().index(name) for name in cohort.classes]
        values = model.predict_proba(units.sources)[:, order]
        columns = [PROBABILITY + name for name in cohort.classes]
    else:
        assert isinstance(model, MILRegressor | MILSurvival)
        values = model.predict(units.sources)[:, None]
        columns = ["prediction"]
    names, first, of_unit = np.unique(units.patients, return_index=True, return_inverse=True)
    tested = np.isin(cohort.slide_ids, fold.test)
    table = pd.DataFrame(
        {
            "patient_id": names,
            "slide_ids": [";".join(cohort.slide_ids[tested & (cohort.patient_ids == name)].tolist()) for name in names],
            "seed": seed,
            "fold": fold.name,
            "y_true": units.y[first] if cohort.event is None else units.y[first, 0],
        }
    )
    if cohort.event is not None:
        table["event"] = units.y[first, 1].astype(bool)
    table[columns] = _by_patient(values, of_unit, config.patient)
    return table


def _by_patient(values: NDArray[np.float64], of_unit: NDArray[np.intp], how: str) -> NDArray[np.float64]:
    """(n, C) values of slides as (m, C) values of patients; probabilities still sum to one."""
    groups = [values[of_unit == patient] for patient in range(of_unit.max() + 1)]
    if how != "max":
        return np.array([group.mean(axis=0) for group in groups])
    largest = np.array([group.max(axis=0) for group in groups])
    if values.shape[1] == 2:  # the slide that looks most like the positive class decides
        return np.stack([1 - largest[:, 1], largest[:, 1]], axis=1)
    return largest / largest.sum(axis=1, keepdims=True) if values.shape[1] > 2 else largest

"""Bags, targets and groups as users give them, checked."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from mil.dataset import BagSource, Instances
from zoomfeat.errors import ConfigurationError


def as_list(bags: Sequence[BagSource]) -> list[BagSource]:
    """The bags as a list.

    Raises:
        ConfigurationError: a single bag.
    """
    if isinstance(bags, str | PathLike | Instances) or not hasattr(bags, "__iter__"):
        raise ConfigurationError(f"a single {type(bags).__name__}", cure="Give a list of bags")
    return list(bags)


def as_targets(y: ArrayLike, count: int) -> NDArray:
    """(count,) targets of any kind.

    Raises:
        ConfigurationError: another number of them, or missing ones.
    """
    values = np.asarray(y)
    if values.dtype == object and all(isinstance(value, str) for value in values.ravel()):
        values = values.astype(str)
    if values.ndim != 1 or len(values) != count:
        raise ConfigurationError(f"targets of shape {values.shape} for {count} bags", cure="Give one target a bag")
    if (missing := pd.isna(values)).any():
        raise ConfigurationError(
            f"{int(missing.sum())} targets are missing, the first is that of bag {int(missing.argmax())}",
            cure="Leave bags without a target out",
        )
    return values


def as_numbers(y: ArrayLike, count: int) -> NDArray[np.float64]:
    """(count,) numeric targets.

    Raises:
        ConfigurationError: another number of them, or targets that are no finite numbers.
    """
    values = as_targets(y, count)
    if values.dtype.kind not in "fiub" or not np.isfinite(values).all():
        raise ConfigurationError(f"targets of type {values.dtype}, expected finite numbers", cure="Check the column")
    return values.astype(np.float64)


def as_survival(y: ArrayLike, count: int) -> NDArray[np.float32]:
    """(count, 2) times, and 1 for an event or 0 for censoring.

    Raises:
        ConfigurationError: another shape, times that are not positive, or no event at all.
    """
    values = np.asarray(y, dtype=np.float64)
    if values.shape != (count, 2) or not np.isfinite(values).all():
        raise ConfigurationError(
            f"survival targets of shape {values.shape} for {count} bags, expected finite (bags, 2)",
            cure="Give time and event (1 for an event, 0 for censoring) of each bag",
        )
    if (values[:, 0] <= 0).any() or not np.isin(values[:, 1], (0, 1)).all():
        raise ConfigurationError("times must be positive and events 0 or 1", cure="Check the order: time, event")
    if not values[:, 1].any():
        raise ConfigurationError("no bag has an event", cure="Check the event column")
    return values.astype(np.float32)


def as_groups(groups: ArrayLike | None, count: int) -> NDArray:
    """(count,) patient of each bag; without groups each bag is a patient.

    Raises:
        ConfigurationError: another number of them.
    """
    if groups is None:
        return np.arange(count)
    values = np.asarray(groups)
    if values.shape != (count,):
        raise ConfigurationError(f"groups of shape {values.shape} for {count} bags", cure="Give one patient a bag")
    return values

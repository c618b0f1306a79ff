"""A bag as one vector: the baselines that every table of attention heads needs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from zoomfeat.bags import Bag
from zoomfeat.errors import ConfigurationError

POOLS: dict[str, Callable[..., np.ndarray]] = {"mean": np.mean, "max": np.max}
"""How instances become one vector."""


def pool_bag(bag: Bag, how: str = "mean", magnification: str | None = None) -> NDArray[np.float32]:
    """Pools the instances of a bag.

    Each magnification is pooled by itself and the results are concatenated, finest first, so that a coarse patch
    counts once and not once for every fine patch that it holds.

    Args:
        bag: the bag.
        how: ``mean`` or ``max``.
        magnification: only this one; all where not given.

    Returns:
        ``(D,)`` float32, or ``(S * D,)`` for S magnifications.

    Raises:
        ConfigurationError: an unknown way of pooling.
        MagnificationError: the bag lacks the magnification.
    """
    if how not in POOLS:
        raise ConfigurationError(f"no pooling {how!r}", cure=f"Use one of {', '.join(POOLS)}")
    scales = bag.scales if magnification is None else (bag.scale(magnification),)
    return np.concatenate([POOLS[how](scale.features, axis=0) for scale in scales]).astype(np.float32)

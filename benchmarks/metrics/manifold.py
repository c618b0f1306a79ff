"""How much of what is made is real, and how much of what is real is made: two pairs of shares.

Precision and recall are Kynkäänniemi et al.'s ("Improved precision and recall metric for assessing generative models",
2019, section 2), by torch-fidelity. Density and coverage are Naeem et al.'s ("Reliable fidelity and diversity
metrics for generative models", 2020, section 3), which one outlier among the real images hardly moves.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch_fidelity.metric_prc import (
    KEY_METRIC_PRECISION,
    KEY_METRIC_RECALL,
    calc_cdist_part,
    prc_features_to_metric,
)

from benchmarks.metrics.features import FeatureSet
from benchmarks.metrics.intervals import of_mean, of_share
from benchmarks.metrics.registry import Measurement, set_metric
from zoomfeat.errors import ConfigurationError

_ROWS = 1_000


@set_metric
def precision_recall(made: FeatureSet, real: FeatureSet, *, neighbours: int = 3) -> list[Measurement]:
    """The share of made images within reach of a real one, and of real images within reach of a made one.

    An image reaches as far as its k-th neighbour in its own set. Both grow with the number of images: compare only
    figures of equal numbers. Intervals are those of a share, with the set that reaches held fixed.

    Args:
        made: generated.
        real: what they should be like.
        neighbours: k.

    Raises:
        ConfigurationError: not more than k images in a set, or sets of different networks.
    """
    _check(made, real, neighbours)
    found = prc_features_to_metric(
        torch.from_numpy(made.sample),
        torch.from_numpy(real.sample),
        prc_neighborhood=neighbours,
        prc_batch_size=_ROWS,
        save_cpu_ram=True,
        verbose=False,
    )
    n, m = len(made.sample), len(real.sample)
    return [
        _share("precision", found[KEY_METRIC_PRECISION], n, made, real, "made"),
        _share("recall", found[KEY_METRIC_RECALL], m, made, real, "real"),
    ]


@set_metric
def density_coverage(made: FeatureSet, real: FeatureSet, *, neighbours: int = 5) -> list[Measurement]:
    """How many real images reach a made one, in units of k; and the share of real images that reach a made one.

    Of like sets the density is about 1 (it may be more), the coverage about ``1 - 2^-k`` where there are as many of
    both. Intervals are over the images that are counted, with the other set held fixed.

    Args:
        made: generated.
        real: what they should be like.
        neighbours: k, with the image itself not counted; the default is that of the paper's code.

    Raises:
        ConfigurationError: not more than k images in a set, or sets of different networks.
    """
    _check(made, real, neighbours)
    truth, drawn = torch.from_numpy(real.sample), torch.from_numpy(made.sample)
    reached = torch.zeros(len(drawn))
    covered = torch.zeros(len(truth), dtype=torch.bool)
    for start in range(0, len(truth), _ROWS):
        rows = truth[start : start + _ROWS]
        reach = calc_cdist_part(rows, truth, _ROWS).kthvalue(neighbours + 1).values
        within: Tensor = calc_cdist_part(rows, drawn, _ROWS) < reach[:, None]
        reached += within.sum(0)
        covered[start : start + _ROWS] = within.any(1)
    density = (reached / neighbours).numpy().astype(np.float64)
    low, high = of_mean(density)
    return [
        Measurement(
            f"density ({made.network.name})",
            float(density.mean()),
            low,
            high,
            _held("made"),
            True,
            len(made),
            len(real),
        ),
        _share("coverage", float(covered.double().mean()), len(truth), made, real, "real"),
    ]


def _check(made: FeatureSet, real: FeatureSet, neighbours: int) -> None:
    made.check_comparable(real)
    if neighbours < 1 or min(len(made.sample), len(real.sample)) <= neighbours:
        raise ConfigurationError(
            f"{neighbours} neighbours among {len(made)} and {len(real)} images",
            cure="Give at least one neighbour, and more images than neighbours",
        )


def _share(name: str, value: float, n: int, made: FeatureSet, real: FeatureSet, counted: str) -> Measurement:
    low, high = of_share(round(value * n), n)
    title = f"{name} ({made.network.name})"
    return Measurement(title, value, low, high, _held(counted), True, len(made), len(real))


def _held(counted: str) -> str:
    return f"{counted} images, the other set held fixed"

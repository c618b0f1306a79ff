"""Does attention lie on what was planted: the area under the ROC curve of attention against lesions, slide by slide."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.phantom import Truth, lesion_mask
from benchmarks.record import Interval
from mil.cohort import find_bags
from mil.ensemble import load_ensemble
from mil.metrics import Metric, Values, Weights, auroc, estimates
from mil.tables import read_table
from zoomfeat.bags import Bag

LOCALISATION = "localisation_auroc"
"""Its name among what a record holds beside its metrics."""

LESION = 0.5
"""Share of a patch from which on it counts as lesion."""

_SAME = 1e-6  # relative spread below which attention is that of a head that weighs all alike


def attention_auroc(run: Path, bags: Path, labels: Path, truth: Path) -> dict[str, Interval]:
    """How often attention ranks a lesion patch above another patch of its slide.

    On each slide with a lesion that makes its patient positive speak the models that did not see it in training, their
    attention averaged; of fused features that of the finest patches, each of which is seen with the coarse patch around
    it. Slides without patches of both kinds say nothing and are left out, as is a head that weighs all patches alike.
    The value is the mean over patients of the mean over their slides.

    Args:
        run: the folder of a cross-validation.
        bags: its bags.
        labels: table of slides and patients.
        truth: folder of what was planted.

    Returns:
        `LOCALISATION` with a bootstrap interval over patients; empty where no slide says anything.
    """
    patients = read_table(labels)
    patient_of = dict(zip(patients.slide_id, patients.patient_id, strict=True))
    ensemble = load_ensemble(run)
    areas: dict[str, list[float]] = {}
    for slide, path in find_bags(bags).items():
        planted = Truth.load(truth / f"{slide}.json")
        if not any(lesion.target for lesion in planted.lesions):
            continue
        bag = Bag.open(path)
        attention = ensemble.for_slide(slide).attention(bag)
        finest = bag.scale(min(attention, key=bag.magnifications.index))
        values = attention[finest.magnification]
        lesion = lesion_mask(planted, finest.coords, finest.patch_size_level0[0]) >= LESION
        if lesion.any() and not lesion.all() and np.ptp(values) > _SAME * values.max():
            area = auroc(np.ones((1, len(lesion))), lesion.astype(float), values)
            areas.setdefault(patient_of[slide], []).append(float(area[0]))
    if not areas:
        return {}
    means = np.array([np.mean(each) for each in areas.values()])
    return {LOCALISATION: Interval.of(estimates({"area": _mean_of(means)}, len(means))["area"])}


def _mean_of(values: Values) -> Metric:
    def mean(weights: Weights) -> Values:
        return (weights @ values) / weights.sum(axis=1)

    return mean

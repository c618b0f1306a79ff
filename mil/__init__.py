"""mil: multiple-instance learning on bags, with scikit-learn's habits.

The common names, imported when first used so that ``import mil`` stays instant::

    model = mil.MILClassifier(head="abmil-gated").fit(paths, labels, groups=patients)
    model.predict_proba(others)
    model.save("model.safetensors")
    mil.load_model("model.safetensors").attention(others[0])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mil.dataset import Instances as Instances
    from mil.dataset import load_instances as load_instances
    from mil.estimators import MILClassifier as MILClassifier
    from mil.estimators import MILRegressor as MILRegressor
    from mil.estimators import MILSurvival as MILSurvival
    from mil.estimators import load_model as load_model
    from mil.heads import build_head as build_head
    from mil.heads import head_names as head_names

_HOMES = {
    "Instances": "mil.dataset",
    "load_instances": "mil.dataset",
    "MILClassifier": "mil.estimators",
    "MILRegressor": "mil.estimators",
    "MILSurvival": "mil.estimators",
    "load_model": "mil.estimators",
    "build_head": "mil.heads",
    "head_names": "mil.heads",
}
__all__ = [
    "Instances",
    "MILClassifier",
    "MILRegressor",
    "MILSurvival",
    "build_head",
    "head_names",
    "load_instances",
    "load_model",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'mil' has no attribute {name!r}")

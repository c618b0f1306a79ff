"""A fitted estimator as one ``.safetensors`` file: weights, and all else as JSON in its header."""

from __future__ import annotations

import json
from importlib.metadata import version
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors

from zoomfeat.errors import CheckpointMismatchError, ZoomfeatError
from zoomfeat.files import replacing

if TYPE_CHECKING:
    from mil.base import MILEstimator

FORMAT = "zoomfeat-mil/1"
_CURE = "Give a file that `save` of an estimator, or `zoomfeat crossval`, wrote"

E = TypeVar("E", bound="MILEstimator")


def save(estimator: MILEstimator, path: str | PathLike) -> None:
    """Writes a fitted estimator, whole or not at all.

    Raises:
        ZoomfeatError: the file cannot be written.
    """
    header = {
        "format": FORMAT,
        "estimator": type(estimator).__name__,
        "parameters": estimator.get_params(deep=False),
        "widths": list(estimator.widths_.items()),
        "encoder": estimator.encoder_,
        "fitted": estimator._fitted_state(),
        "versions": {name: version(name) for name in ("zoomfeat", "torch", "torchmil")},
    }
    tensors = {name: tensor.contiguous() for name, tensor in estimator.network_.state_dict().items()}
    with replacing(Path(path)) as temporary:
        temporary.write_bytes(save_tensors(tensors, {"zoomfeat": json.dumps(header, default=_plain)}))


def load(path: str | PathLike, kind: type[E]) -> E:
    """The fitted estimator in a file.

    Args:
        path: the file.
        kind: the class it must be of.

    Raises:
        CheckpointMismatchError: no such file, another format, another class, or weights that do not fit.
    """
    from mil import estimators

    path = Path(path)
    header, tensors = _read(path)
    name = header["estimator"]
    found = getattr(estimators, str(name), None)
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise CheckpointMismatchError(
            f"holds a {name}, expected a {kind.__name__}", cure="Load it with mil.load_model", path=path
        )
    try:
        estimator = found(**header["parameters"])
        estimator.widths_ = {scale: int(width) for scale, width in header["widths"]}
        estimator.scales_ = tuple(estimator.widths_)
        estimator.n_features_in_ = sum(estimator.widths_.values())
        estimator.encoder_ = header["encoder"]
        estimator._restore(header["fitted"])
        network = estimator._build_network()
        network.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError, ZoomfeatError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointMismatchError(f"header and weights do not fit ({reason})", cure=_CURE, path=path) from error
    estimator.network_ = network.eval()
    return estimator


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("zoomfeat", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
    except FileNotFoundError:
        raise CheckpointMismatchError("no such file", cure="Check the path", path=path) from None
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointMismatchError("not a readable safetensors file", cure=_CURE, path=path) from error
    if header.get("format") != FORMAT:
        raise CheckpointMismatchError(f"format {header.get('format')!r}, expected {FORMAT!r}", cure=_CURE, path=path)
    return header, tensors


def _plain(value: Any) -> Any:
    """NumPy values and tuples of a grid search as JSON."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise ZoomfeatError(f"a parameter of type {type(value).__name__} cannot be saved", cure="Use plain values")

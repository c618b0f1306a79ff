"""The folder of a cross-validation: what belongs to it, and whether a run may go on in it."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml

from mil.held_out import HeldOutPredictions
from mil.splits import Fold
from zoomfeat.errors import ConfigurationError
from zoomfeat.files import make_folder, replacing

_PACKAGES = ("zoomfeat", "torch", "torchmil", "scikit-learn", "scipy", "numpy", "pandas")
_FREE = ("out", "device", "engine")  # keys that a run may change and go on


@dataclass(frozen=True)
class RunFolder:
    """A run on disk.

    Attributes:
        folder: its ``out=``.
    """

    folder: Path

    @property
    def predictions(self) -> Path:
        """Test predictions of the folds that are done; grows with every fold."""
        return self.folder / "predictions.parquet"

    @property
    def metrics(self) -> Path:
        """Written when all folds are done."""
        return self.folder / "metrics.json"

    def model(self, seed: int, fold: Fold) -> Path:
        """The model of a fold; what a file name cannot hold of the fold's name is written as in URLs."""
        return self.folder / "models" / f"seed-{seed}-fold-{quote(fold.name, safe='')}.safetensors"

    def done(self) -> HeldOutPredictions | None:
        """The predictions of an earlier, unfinished or finished, run."""
        return HeldOutPredictions.load(self.predictions) if self.predictions.exists() else None

    def finished(self) -> HeldOutPredictions:
        """The predictions of a finished run.

        Raises:
            ConfigurationError: there is none here, or it is not finished.
        """
        if not self.predictions.exists():
            raise ConfigurationError(
                "no predictions.parquet, expected the out= folder of a crossval run",
                cure="Run `zoomfeat crossval` first, or name its folder",
                path=self.folder,
            )
        if not self.metrics.exists():
            raise ConfigurationError(
                "the run is not finished (no metrics.json)", cure="Finish it with the same command", path=self.folder
            )
        return HeldOutPredictions.load(self.predictions)

    def claim(self, settings: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Writes ``config.yaml`` and ``environment.json``, or checks that the run in the folder has the same.

        Args:
            settings: the keys of the command.
            facts: what else decides the result: hashes of splits and labels, the encoder.

        Raises:
            ConfigurationError: folds of a run with other keys, labels, bags or splits are there.
        """
        make_folder(self.folder / "models")
        if self.predictions.exists():
            self._compare(yaml.safe_load(self._read("config.yaml")), settings, "other keys")
            found = json.loads(self._read("environment.json"))
            self._compare({key: found.get(key) for key in facts}, facts, "other labels, bags or splits")
        with replacing(self.folder / "config.yaml") as path:
            path.write_text(yaml.safe_dump(dict(settings), sort_keys=False), encoding="utf-8")
        with replacing(self.folder / "environment.json") as path:
            path.write_text(json.dumps({**environment(), **facts}, indent=1), encoding="utf-8")

    def facts(self) -> dict[str, Any]:
        """What ``environment.json`` says."""
        return json.loads(self._read("environment.json"))

    def _read(self, name: str) -> str:
        try:
            return (self.folder / name).read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(
                f"not readable ({error.strerror}), so the run cannot go on",
                cure="Give another out= to start afresh",
                path=self.folder / name,
            ) from error

    def _compare(self, found: Mapping[str, Any], wanted: Mapping[str, Any], what: str) -> None:
        differing = [
            f"{key} (was {_short(found.get(key))}, is {_short(wanted.get(key))})"
            for key in sorted(found.keys() | wanted.keys())
            if found.get(key) != wanted.get(key) and key not in _FREE
        ]
        if differing:
            raise ConfigurationError(
                f"holds a run with {what}: {', '.join(differing)}",
                cure="Give the same to go on, or another out= to start afresh",
                path=self.folder,
            )


def environment() -> dict[str, Any]:
    """Python, platform and the versions of what a result may depend on."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # run from a checkout that is not installed
            versions[package] = "unknown"
    return {"python": platform.python_version(), "platform": platform.platform(), "versions": versions}


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

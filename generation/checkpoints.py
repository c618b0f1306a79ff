"""Checkpoints of a training run: a folder each, whole or absent, and only for the configuration that made them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors import SafetensorError

from zoomfeat.errors import CheckpointMismatchError, ConfigurationError, ZoomfeatError
from zoomfeat.files import make_folder, sync

_RECORD = "run.json"


@dataclass(frozen=True)
class Checkpoints:
    """The folder ``checkpoints`` of a run: ``step-00001000/`` with ``state/``, ``model/`` and ``run.json``.

    Attributes:
        folder: where they lie.
        settings: what decides the weights, JSON values only; a run of other settings is not resumed.
        keep: how many of the newest stay.
    """

    folder: Path
    settings: dict[str, Any]
    keep: int = 2

    def latest(self) -> Path | None:
        """The newest one, if any."""
        return max(self.folder.glob("step-*"), default=None)

    def save(self, accelerator: Accelerator, step: int, export: Callable[[Path], None]) -> Path:
        """Writes one beside the others, then takes its name; called by every process of the run.

        Args:
            accelerator: holds the weights, the optimisers and the random states.
            step: optimiser steps done.
            export: writes the trained model, as its users load it, into the folder that it gets.

        Returns:
            Its folder.

        Raises:
            ZoomfeatError: the disk is full or not writable; the earlier ones are as they were.
        """
        final = self.folder / f"step-{step:08d}"
        temporary = self.folder / f".{final.name}.tmp"  # one name, since every process writes into it
        try:
            if accelerator.is_main_process:
                shutil.rmtree(temporary, ignore_errors=True)
                make_folder(temporary / "state")
            accelerator.wait_for_everyone()
            accelerator.save_state(str(temporary / "state"))
            if accelerator.is_main_process:
                export(make_folder(temporary / "model"))
                record = {"step": step, "settings": self.settings}
                (temporary / _RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                _sync_tree(temporary)
                temporary.rename(final)
                sync(self.folder)
                for old in sorted(self.folder.glob("step-*"))[: -self.keep]:
                    shutil.rmtree(old)
        except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have errors of their own
            shutil.rmtree(temporary, ignore_errors=True)
            raise ZoomfeatError(
                f"the checkpoint cannot be written ({' '.join(str(error).split())})",
                path=final,
                cure="The earlier ones are whole: free some space, then the same command goes on from the newest",
            ) from error
        accelerator.wait_for_everyone()
        return final

    def resume(self, accelerator: Accelerator) -> tuple[int, Path | None]:
        """Puts the newest one's state into the accelerator.

        Returns:
            Optimiser steps done and the folder; 0 and None where there is none.

        Raises:
            ConfigurationError: it belongs to a run with other settings; the differing keys are named.
            CheckpointMismatchError: it does not load.
        """
        latest = self.latest()
        if latest is None:
            return 0, None
        try:
            record = json.loads((latest / _RECORD).read_text(encoding="utf-8"))
            self._compare(record["settings"], latest)
            accelerator.load_state(str(latest / "state"))
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise CheckpointMismatchError(
                f"does not load ({' '.join(str(error).split())})",
                path=latest,
                cure="Delete this folder to go on from the one before it",
            ) from error
        return int(record["step"]), latest

    def _compare(self, found: dict[str, Any], path: Path) -> None:
        differing = [
            f"{key} (was {found.get(key)}, is {self.settings.get(key)})"
            for key in sorted(found.keys() | self.settings.keys())
            if found.get(key) != self.settings.get(key)
        ]
        if differing:
            raise ConfigurationError(
                f"the run has another configuration: {', '.join(differing)}",
                path=path,
                cure="Give the same keys to go on, or another out= to start afresh",
            )


def _sync_tree(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        sync(path)

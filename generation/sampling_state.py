"""The state of a long sampling run on disk, so that a killed run goes on where it was."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from zoomfeat.errors import ConfigurationError
from zoomfeat.files import replacing


class SamplingState:
    """How far sampling has come: what a file holds, so that a killed run goes on.

    Args:
        path: the file; None keeps nothing.
        identity: what the run's result depends on; a file of another run is refused.
    """

    def __init__(self, path: Path | None, identity: str) -> None:
        self.path, self._identity = path, identity

    def load(self) -> tuple[int, dict[str, Tensor]]:
        """Steps done and the tensors after them; none and nothing where there is no file.

        Raises:
            ConfigurationError: the file belongs to another run, or is none of this kind.
        """
        if self.path is None or not self.path.exists():
            return 0, {}
        cure = "Delete it to start anew, or give the arguments that it was made with"
        try:
            with safe_open(self.path, framework="pt") as file:
                facts = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except Exception as error:  # safetensors raises its own kind for whatever is wrong with a file
            raise ConfigurationError(f"not a sampling state ({error})", path=self.path, cure=cure) from error
        if facts.get("identity") != self._identity:
            raise ConfigurationError("the state of another run", path=self.path, cure=cure)
        return int(facts["done"]), tensors

    def save(self, done: int, tensors: dict[str, Tensor]) -> None:
        """Writes the file, whole or not at all."""
        if self.path is not None:
            with replacing(self.path) as temporary:
                facts = {"identity": self._identity, "done": str(done)}
                save_file({name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, temporary, facts)

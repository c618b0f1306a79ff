"""Files of weights: fetched only when asked for, read without running code from them, known by their content."""

from __future__ import annotations

import hashlib
import pickle
import re
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import ModelMixin
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import safe_open
from torch import Tensor, nn

from zoomfeat.errors import CheckpointMismatchError

M = TypeVar("M", bound=ModelMixin)

# What PyTorch raises for damaged files depends on where the damage lies; the fuzzing of tests/ found these.
_DAMAGE = (
    OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError,
    AssertionError, MemoryError, struct.error,
)  # fmt: skip


def hash_weights(modules: Mapping[str, nn.Module]) -> str:
    """SHA-256 over every weight's name, type, shape and bytes: equal for equal weights, however they were stored."""
    digest = hashlib.sha256()
    for part, module in sorted(modules.items()):
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{part}.{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_checkpoint(path: str | Path, allow: Sequence[type] = (), *, mapped: bool = False) -> Any:
    """What a PyTorch checkpoint holds, on the CPU; never runs code from the file.

    Args:
        path: the file.
        allow: classes that may stand beside tensors; only such as hold data.
        mapped: leave tensors on disk until they are used.

    Raises:
        CheckpointMismatchError: no such file, not a checkpoint, one that would expand beyond its own size, or a pickle
            that holds other objects.
    """
    _check_expansion(Path(path))
    try:
        with torch.serialization.safe_globals(list(allow)):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except FileNotFoundError:
        raise CheckpointMismatchError("no such file", path=path, cure="Give the path of the checkpoint") from None
    except (pickle.UnpicklingError, *_DAMAGE) as error:
        # torch's own message advises to load it all the same; only the name of the offending object is of use.
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if named or isinstance(error, pickle.UnpicklingError):
            problem = f"its pickle calls {named[1]}" if named else "its pickle is damaged or holds more than tensors"
            raise CheckpointMismatchError(
                f"not a safe checkpoint: {problem}",
                path=path,
                cure="Only tensors are loaded and code is never run; get the file from its original source",
            ) from error
        raise CheckpointMismatchError(
            f"not readable as a checkpoint ({type(error).__name__})",
            path=path,
            cure="Is the download complete? Compare its size with the source",
        ) from error


def _check_expansion(path: Path) -> None:
    """Refuses an archive whose parts are together larger than the file: PyTorch does not compress.

    Raises:
        CheckpointMismatchError: so it is.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, *_DAMAGE):  # not such an archive; reading it says what it is
        return
    if size > path.stat().st_size:
        raise CheckpointMismatchError(
            f"not a safe checkpoint: its archive of {path.stat().st_size} bytes would expand to {size}",
            path=path,
            cure="PyTorch does not compress; get the file from its original source",
        )


def check_finite(state: Mapping[str, Tensor], path: str | Path) -> None:
    """Refuses weights that are no numbers: every feature computed with them would be none.

    Args:
        state: the weights by name.
        path: where they are from.

    Raises:
        CheckpointMismatchError: the first weight with NaN or infinity is named.
    """
    damaged = [name for name, tensor in state.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if damaged:
        raise CheckpointMismatchError(
            f"{len(damaged)} of {len(state)} weights hold NaN or infinity, first {damaged[0]}",
            path=path,
            cure="Get the file again from its source, or take an earlier checkpoint of the training run",
        )


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """A flat state dict, also from below a ``state_dict`` wrapper.

    Raises:
        CheckpointMismatchError: as :func:`read_checkpoint`, or the file holds something else.
    """
    state = read_checkpoint(path)
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointMismatchError(
            "holds no flat state dict of tensors", path=path, cure="Give the release's weights.ckpt"
        )
    return state


def load_module(kind: type[M], folder: Path, cure: str) -> M:
    """A diffusers module from the folder that its ``save_pretrained`` wrote, in evaluation mode.

    Args:
        kind: its class.
        folder: where it is.
        cure: what helps where it is not there.

    Raises:
        CheckpointMismatchError: no such module there, or an incomplete one.
    """
    try:
        module = kind.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointMismatchError(
            f"not a {kind.__name__} folder ({str(error).splitlines()[0]})", path=folder, cure=cure
        ) from error
    check_complete(module, folder)
    check_finite(module.state_dict(), folder)
    align(module)
    return module.eval()


_ALIGNMENT = 64  # bytes: PyTorch's own, and a vector register of AVX-512


def align(module: nn.Module) -> None:
    """Copies weights that lie at odd addresses, as they do where a file is mapped into memory.

    Kernels add up in another order there, so that the last bits of a result would depend on the file's layout.
    """
    with torch.no_grad():
        for weight in (*module.parameters(), *module.buffers()):
            if weight.data_ptr() % _ALIGNMENT:
                weight.data = weight.data.clone()


def check_complete(module: nn.Module, folder: Path) -> None:
    """Holds a module against the safetensors it was loaded from.

    diffusers fills what a file lacks with fresh random weights, and says so only in its log.

    Raises:
        CheckpointMismatchError: keys are missing or extra.
    """
    found: set[str] = set()
    for file in folder.glob("diffusion_pytorch_model*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            found.update(tensors.keys())
    if wrong := module.state_dict().keys() ^ found:
        raise CheckpointMismatchError(
            f"{len(wrong)} keys are missing or extra, first {min(wrong)}",
            path=folder,
            cure="Copy the folder again from its source",
        )


def fetch(repository: str, filename: str, revision: str | None = None) -> Path:
    """A file of a hub repository: from the local cache, else downloaded; ``HF_HUB_OFFLINE=1`` forbids the latter.

    Args:
        repository: for example ``MahmoodLab/UNI``.
        filename: within it.
        revision: a commit or branch; None for the newest.

    Raises:
        CheckpointMismatchError: not cached and not to be had: no network, offline, gated, or no such file.
    """
    try:
        return Path(hf_hub_download(repository, filename, revision=revision))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise CheckpointMismatchError(
            f"hub file {repository}/{filename} could not be had ({type(error).__name__})",
            cure="Offline? Copy it from elsewhere and name it: encoder.weights=path, or model=path to draw. Gated? "
            "Accept its terms on the model page and log in with `hf auth login`",
        ) from error

"""Networks through PyTorch's compiler: fewer passes over memory, after minutes of compiling; equal but for rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

import torch
from torch import Tensor

from zoomfeat.errors import ConfigurationError

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """The same function, compiled when it is first called, and once more for batches of any other size."""
    return cast(F, torch.compile(function))


def check_compiler(device: torch.device) -> None:
    """Compiles one line for the device, so that what is missing is known before slides are opened.

    Raises:
        ConfigurationError: this machine or this PyTorch cannot compile for it.
    """
    try:
        torch.compile(_line)(torch.ones(2, device=device))
    except (RuntimeError, ImportError) as error:  # PyTorch's own kinds are all of the first
        raise ConfigurationError(
            f"PyTorch cannot compile for {device.type} here ({str(error).strip().splitlines()[0]})",
            cure="Leave out encoder.compile=, or install what is missing: a C++ compiler for a CPU (and CXX=, where it "
            "has another name), Triton for a GPU",
        ) from error


def _line(values: Tensor) -> Tensor:
    return values * 2 + 1

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

from zoomfeat.models.zoomldm import ZoomLDM


def relative_error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).norm() / expected.norm())


@pytest.fixture(scope="session")
def error():
    return relative_error


@pytest.fixture(scope="session")
def golden_folder(shared: Path) -> Path:
    return shared / "zoomldm-golden"


@pytest.fixture(scope="session")
def golden(golden_folder: Path) -> dict[str, Tensor]:
    """Inputs and outputs of the reference implementation."""
    return load_file(golden_folder / "golden.safetensors")


@pytest.fixture(scope="session")
def averaged(golden_folder: Path) -> ZoomLDM:
    return ZoomLDM.from_checkpoint(golden_folder / "weights.ckpt")


@pytest.fixture(scope="session")
def raw(golden_folder: Path) -> ZoomLDM:
    return ZoomLDM.from_checkpoint(golden_folder / "weights.ckpt", ema=False)

"""What all tests share: the folder of real data, and the rule for tests that need it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before PyTorch is imported

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real slides and golden numbers; the test skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("no ../shared/data beside the checkout: real slides and golden numbers are not here")
    return SHARED

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.phantom import write_cohort


@pytest.fixture(scope="session")
def cohort(tmp_path_factory) -> Path:
    """Four slides: two positive patients and two negative ones."""
    return write_cohort(tmp_path_factory.mktemp("phantom"), slides=4, seed=3, workers=1)

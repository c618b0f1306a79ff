from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from zoomfeat.conf.compose import compose_config
from zoomfeat.conf.schema import ExtractConfig
from zoomfeat.slides.synthetic import make_slide


@pytest.fixture(scope="session")
def cohort(tmp_path_factory) -> Path:
    """Three small synthetic slides of 20x, 40x and 0.2639 um/px."""
    folder = tmp_path_factory.mktemp("cohort")
    for seed, mpp in enumerate((0.5, 0.25, 0.2639)):
        side = int(1280 * 0.5 / mpp)
        make_slide(folder / f"slide-{mpp}.tiff", seed=seed, size=(side, side), mpp=mpp)
    return folder


@pytest.fixture
def extract_config(tmp_path) -> Callable[..., ExtractConfig]:
    """A configuration of ``extract`` as the command line composes it."""

    def make(slides: Path, *words: str, out: str = "bags", encoder: str = "color-stats") -> ExtractConfig:
        (tmp_path / out).mkdir(exist_ok=True)
        return compose_config("extract", [f"slides={slides}", f"out={tmp_path / out}", f"encoder={encoder}", *words])

    return make

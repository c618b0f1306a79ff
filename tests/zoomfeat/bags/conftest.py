"""Synthetic bags with plausible geometry, and the questions that several tests ask about bags."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from zoomfeat.bags import Bag, BagMetadata, ScaleFeatures

MAGNIFICATIONS = ("20x", "5x")


def _make_bag(
    magnifications: tuple[str, ...] = MAGNIFICATIONS,
    *,
    slide_id: str = "TCGA-A2-A0CM-01Z-00-DX1",
    mpp_level0: tuple[float, float] | None = (0.2528, 0.2528),
    dim: int = 32,
    tiles: tuple[int, int] = (3, 2),
    seed: int = 0,
    **metadata: object,
) -> Bag:
    """A bag on the aligned grid: ``tiles`` coarsest patches, some finest patches left out, shuffled parents."""
    rng = np.random.default_rng(seed)
    numbers = [float(name.removesuffix("x")) for name in magnifications]
    ratios = [round(numbers[0] / number) for number in numbers]
    finest_mpp = 10 / numbers[0]
    unit = np.rint(256 * finest_mpp / np.array(mpp_level0 or (0.25, 0.25))).astype(np.int64)

    cells = np.stack(np.meshgrid(*(np.arange(count * ratios[-1]) for count in tiles)), axis=-1).reshape(-1, 2)
    kept = cells[np.sort(rng.choice(len(cells), max(1, len(cells) * 2 // 3), replace=False))]
    scales, parents = [], {}
    for name, ratio, number in zip(magnifications, ratios, numbers, strict=True):
        coarse, rows = np.unique(kept // ratio, axis=0, return_inverse=True)
        if ratio == 1:
            coarse = kept
        else:
            parents[name] = rows.reshape(-1).astype(np.int32)
        scales.append(
            ScaleFeatures(
                magnification=name,
                features=rng.normal(1, 2, (len(coarse), dim)).astype(np.float32),
                coords=coarse * unit * ratio,
                patch_size_level0=(int(unit[0] * ratio), int(unit[1] * ratio)),
                mpp=10 / number,
            )
        )
    width, height = (np.array(tiles) * ratios[-1] * unit - 7).tolist()
    described = {
        "encoder": "zoomldm",
        "weights_hash": "sha256:0123abcd",
        "encoder_settings": {"taps": ["mid", "up_blocks.0"], "timestep": 100, "seed": 0, "draws": 2},
        "reader": "openslide 4.0.0",
        "mpp_source": "openslide" if mpp_level0 else "unknown",
        "level0_width": width,
        "level0_height": height,
        "tissue_method": "otsu",
        "dropped": {"too little tissue": 33},
        "configuration": {"magnifications": list(magnifications), "tissue": {"min_tissue": 0.5}},
        "config_hash": "beef",
        "versions": {"zoomfeat": "0.1.0", "torch": "2.6.0"},
    }
    described.update(metadata)
    return Bag(tuple(scales), parents, metadata=BagMetadata(slide_id=slide_id, mpp_level0=mpp_level0, **described))


@pytest.fixture(scope="session")
def make_bag() -> Callable[..., Bag]:
    return _make_bag


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Saves a synthetic bag and returns its path."""

    def save(bag: Bag | None = None, **options: object) -> Path:
        bag = bag or _make_bag()
        folder = tmp_path / "bags"
        folder.mkdir(exist_ok=True)
        path = folder / f"{bag.metadata.slide_id}.h5"
        bag.save(path, **options)
        return path

    return save


@pytest.fixture(scope="session")
def assert_same_scales() -> Callable[..., None]:
    def check(found: Bag, expected: Bag, *, exact: bool = True) -> None:
        assert found.magnifications == expected.magnifications
        for one, other in zip(found.scales, expected.scales, strict=True):
            np.testing.assert_array_equal(one.coords, other.coords)
            assert one.coords.dtype == np.int64
            assert one.features.dtype == np.float32
            np.testing.assert_allclose(
                one.features, other.features, rtol=0 if exact else 1e-3, atol=0 if exact else 1e-3
            )
            assert one.patch_size_level0 == other.patch_size_level0
            assert (one.mpp, one.patch_size) == (other.mpp, other.patch_size)
        assert found.parents.keys() == expected.parents.keys()
        for name, rows in expected.parents.items():
            np.testing.assert_array_equal(found.parents[name], rows)

    return check

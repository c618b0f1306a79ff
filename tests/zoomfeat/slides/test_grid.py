from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import openslide
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoomfeat.errors import ConfigurationError, MagnificationError, NoTissueError
from zoomfeat.magnification import parse
from zoomfeat.slides.grid import Grid, make_grid, read_region, regions
from zoomfeat.slides.reader import Slide
from zoomfeat.slides.tissue import TissueMask, find_tissue


def blank(width: int, height: int, mpp: tuple[float, float] = (0.5, 0.5)) -> Slide:
    """A slide of any size without pixels: enough to lay a grid over."""
    return Slide(Path("blank.svs"), mpp, "metadata", mpp, "none", "none", SimpleNamespace(dimensions=(width, height)))


def all_tissue(slide: Slide) -> TissueMask:
    return TissueMask(np.ones((8, 8), bool), (slide.width / 8, slide.height / 8))


def check(slide: Slide, grid: Grid) -> None:
    """What holds of every grid."""
    finest = grid.scales[0]
    for scale in grid.scales:
        assert scale.coords.dtype == np.int64
        assert scale.tissue.dtype == np.float32
        assert scale.coords.shape == (len(scale.tissue), 2)
        assert (scale.coords % scale.size == 0).all()
        assert (scale.coords < (slide.width, slide.height)).all()
        order = scale.coords[:, 1] * 10**7 + scale.coords[:, 0]
        assert (np.diff(order) > 0).all()  # sorted by row, then column, none twice
    assert list(grid.parents) == [scale.magnification.name for scale in grid.scales[1:]]
    for scale in grid.scales[1:]:
        parent = grid.parents[scale.magnification.name]
        assert parent.dtype == np.int32
        corner = scale.coords[parent]
        assert (corner <= finest.coords).all()
        assert (finest.coords + finest.size <= corner + scale.size).all()
        assert np.array_equal(np.unique(parent), np.arange(len(scale.coords)))  # no coarse patch without a fine one


def check_regions(grid: Grid) -> None:
    """Each row of each scale occurs once, at its place, in a region of bounded size."""
    seen: list[list[np.ndarray]] = [[] for _ in grid.scales]
    for region in regions(grid):
        assert [part.scale for part in region.parts] == sorted(part.scale for part in region.parts)
        assert region.parts[0].per_side <= 8
        for part in region.parts:
            scale = grid.scales[part.scale]
            assert len(part.rows) > 0
            assert part.per_side * scale.size[0] == region.width
            assert part.per_side * scale.size[1] == region.height
            assert np.array_equal((region.x, region.y) + part.cells * scale.size, scale.coords[part.rows])
            assert part.cells.min() >= 0
            assert part.cells.max() < part.per_side
            seen[part.scale].append(part.rows)
    for rows, scale in zip(seen, grid.scales, strict=True):
        assert np.array_equal(np.sort(np.concatenate(rows)), np.arange(len(scale.coords)))


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 20000), st.integers(1, 20000)),
    mpp=st.floats(0.11, 0.55),
    aspect=st.sampled_from([1.0, 0.5]),
    names=st.sets(st.sampled_from(["20x", "10x", "5x", "2.5x", "1.25x", "0.15625x"]), min_size=1),
    seed=st.integers(0, 100),
    min_tissue=st.floats(0, 0.5),
)
def test_properties(
    size: tuple[int, int], mpp: float, aspect: float, names: set[str], seed: int, min_tissue: float
) -> None:
    slide = blank(*size, (mpp, mpp * aspect))
    mask = TissueMask(np.random.default_rng(seed).random((16, 16)) < 0.6, (size[0] / 16, size[1] / 16))
    try:
        grid = make_grid(slide, mask, parse(tuple(names)), min_tissue)
    except NoTissueError:
        return
    check(slide, grid)
    check_regions(grid)
    assert (grid.scales[0].tissue >= np.float32(min_tissue)).all()
    for scale in grid.scales:
        for length, step in zip(scale.size, slide.mpp, strict=True):
            assert length * step / (256 * scale.magnification.mpp) == pytest.approx(1, abs=0.0025)


def test_all_of_the_slide_is_covered() -> None:
    slide = blank(1000, 700)
    grid = make_grid(slide, all_tissue(slide), parse(["20x", "5x"]), 0.0)
    fine, coarse = grid.scales
    assert (fine.size, coarse.size) == ((256, 256), (1024, 1024))
    assert fine.coords.tolist() == [[x, y] for y in (0, 256, 512) for x in (0, 256, 512, 768)]
    assert coarse.coords.tolist() == [[0, 0]]
    assert grid.dropped == {"tissue": 0}
    assert fine.tissue[0] == 1
    assert fine.tissue[-1] == pytest.approx(232 * 188 / 256**2, abs=1e-5)  # what overhangs is no tissue
    assert coarse.tissue[0] == pytest.approx(1000 * 700 / 1024**2, abs=1e-5)


@pytest.mark.parametrize(
    ("mpp", "name", "size"),
    [
        ((0.2639, 0.2639), "20x", (485, 485)),
        ((0.25, 0.5), "20x", (512, 256)),
        ((0.499, 0.499), "5x", (1028, 1028)),  # four times 257, what 20x would be, not 1026
        ((0.55, 0.55), "20x", (233, 233)),
        ((0.56, 0.56), "10x", (457, 457)),
        ((1.1, 1.1), "5x", (466, 466)),
        ((0.11, 0.11), "20x", (1164, 1164)),
    ],
)
def test_patch_sizes(mpp: tuple[float, float], name: str, size: tuple[int, int]) -> None:
    slide = blank(5000, 5000, mpp)
    assert make_grid(slide, all_tissue(slide), parse([name])).scales[0].size == size


def test_5x_patches_are_the_same_with_or_without_20x() -> None:
    slide = blank(9000, 7000, (0.3127, 0.3127))
    alone = make_grid(slide, all_tissue(slide), parse(["5x"]), 0.0).scales[0]
    beside = make_grid(slide, all_tissue(slide), parse(["20x", "5x"]), 0.0).scales[1]
    assert alone.size == beside.size
    assert np.array_equal(alone.coords, beside.coords)
    assert np.array_equal(alone.tissue, beside.tissue)


@pytest.mark.parametrize("mpp", [(0.56, 0.56), (0.5, 0.56), (1.0, 1.0)])
def test_too_coarse_a_slide_is_refused(mpp: tuple[float, float]) -> None:
    slide = blank(5000, 5000, mpp)
    with pytest.raises(MagnificationError, match=r"blank\.svs: .*from the metadata.*20x.*0\.55.*coarser magnification"):
        make_grid(slide, all_tissue(slide), parse(["20x", "5x"]))


def test_no_tissue() -> None:
    slide = blank(5000, 5000)
    mask = TissueMask(np.zeros((8, 8), bool), (625.0, 625.0))
    with pytest.raises(
        NoTissueError, match=r"blank\.svs: no 20x patch is at least 0\.5 tissue, the best of 400 is 0\."
    ):
        make_grid(slide, mask, parse(["20x"]))
    with pytest.raises(ConfigurationError, match="min_tissue"):
        make_grid(slide, mask, parse(["20x"]), 50)


def test_a_large_slide() -> None:
    slide = blank(100_000, 100_000, (0.25, 0.25))
    grid = make_grid(slide, all_tissue(slide), parse(["20x", "10x", "5x", "0.15625x"]))
    plan = regions(grid)
    assert len(grid.scales[0].coords) == 195**2  # a 196th patch would hang over the edge by most of its width
    assert len(plan) > 2000


# --- pixels


def test_patches_of_all_scales_from_one_decode(write_slide: Callable, ruler: Callable) -> None:
    """20x, 5x, 2.5x together and 0.625x apart, from a slide of 0.2639 um/px with an odd pyramid."""
    whole = (0.0, 0.0, 3000.0, 2500.0)
    path = write_slide([ruler(whole, (3000, 2500), 200.0), ruler(whole, (751, 626), 200.0)], mpp=(0.2639, 0.2639))
    with Slide.open(path) as slide:
        grid = make_grid(slide, all_tissue(slide), parse(["20x", "5x", "2.5x", "0.625x"]), 0.0)
        plan = regions(grid)
        assert [part.scale for part in plan[0].parts] == [0, 1, 2]
        assert [part.scale for part in plan[-1].parts] == [3]
        for region in plan:
            for index, rows, patches in read_region(slide, region):
                scale = grid.scales[index]
                assert patches.shape == (len(rows), 256, 256, 3)
                assert patches.dtype == np.uint8
                for (x, y), patch in zip(scale.coords[rows].tolist(), patches, strict=True):
                    inside = np.array([slide.width - x, slide.height - y]) * 256 // scale.size
                    columns, height = np.minimum(inside, 256)
                    expected = ruler((x, y, x + scale.size[0], y + scale.size[1]), (256, 256), 200.0)
                    error = np.abs(patch[:height, :columns].astype(int) - expected[:height, :columns])
                    assert error.max() <= 3
                    assert (patch[height + 1 :] == 255).all()
                    assert (patch[:, columns + 1 :] == 255).all()


@pytest.mark.parametrize("mpp", [(0.2639, 0.2639), (0.25, 0.5), (0.55, 0.55)])
def test_field_of_view(write_slide: Callable, ruler: Callable, mpp: tuple[float, float]) -> None:
    """Waves of 16 um along both axes have 32 px at 20x, to half a percent."""
    size = (2000, 1500)
    image = np.full((size[1], size[0], 3), 90, np.uint8)
    image[..., 0] = ruler((0, 0, *size), size, 16 / mpp[0])[..., 0]
    image[..., 1] = ruler((0, 0, *size), size, 16 / mpp[1])[..., 1]
    with Slide.open(write_slide([image], mpp=mpp)) as slide:
        grid = make_grid(slide, all_tissue(slide), parse(["20x"]), 1.0)
        _, _, patches = read_region(slide, regions(grid)[-1])[0]
    for wave in (patches[0, ..., 0].mean(axis=0), patches[0, ..., 1].mean(axis=1)):
        frequencies = np.linspace(0.9 / 32, 1.1 / 32, 4001)
        centred = (wave - wave.mean()) * np.hanning(256)
        power = np.abs(np.exp(-2j * np.pi * np.outer(frequencies, np.arange(256))) @ centred)
        assert frequencies[power.argmax()] * 32 == pytest.approx(1, abs=0.005)


@pytest.mark.shared_data
def test_real_slide(cmu: Path) -> None:
    with Slide.open(cmu) as slide, openslide.OpenSlide(cmu) as independent:
        tissue = find_tissue(slide)
        grid = make_grid(slide, tissue, parse(["20x", "5x"]), 0.5)
        check(slide, grid)
        check_regions(grid)
        # A plain saturation Otsu on whole 256 px tiles finds 27 and 49 of 88. Here tiles have 257 px and may overhang
        # (108 of them), tissue is closed over its small holes, and pale tissue counts.
        assert len(grid.scales[0].coords) == 37
        assert grid.dropped == {"tissue": 71}
        assert len(grid.scales[1].coords) == 6
        assert len(make_grid(slide, tissue, parse(["20x", "5x"]), 0.1).scales[0].coords) == 54

        count = 0
        for region in regions(grid):
            for index, rows, patches in read_region(slide, region):
                size = grid.scales[index].size
                for (x, y), patch in zip(grid.scales[index].coords[rows].tolist(), patches, strict=True):
                    pixels = np.array(independent.read_region((x, y), 0, size))
                    pixels[pixels[..., 3] == 0] = 255
                    assert np.array_equal(
                        patch, cv2.resize(pixels[..., :3].copy(), (256, 256), interpolation=cv2.INTER_AREA)
                    )
                    count += 1
        assert count == 43


@pytest.mark.shared_data
def test_a_slide_smaller_than_any_patch(shared_data: Path) -> None:
    with Slide.open(shared_data / "slides_odd" / "sm_image.dcm") as slide:
        tissue = find_tissue(slide)
        with pytest.raises(NoTissueError, match="min_tissue"):
            make_grid(slide, tissue, parse(["20x", "5x"]))
        grid = make_grid(slide, tissue, parse(["20x", "5x"]), 0.0)
        ((_, _, fine), (_, _, coarse)) = read_region(slide, regions(grid)[0])
    assert fine.shape == coarse.shape == (1, 256, 256, 3)
    assert (fine[0, 51:] == 255).all()

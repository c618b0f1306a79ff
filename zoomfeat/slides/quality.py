"""Optional filters of patch quality: pen, blur, dark. None runs unless it is asked for.

Tissue is found on an overview, where pen and missing tiles are left out already; these filters look at the patches
themselves, once more and at full size. They judge the patches of the finest magnification. The coarser ones stay while
they hold a good one.

- ``pen``: the share of the patch that has the colour of ink, by the rule of `zoomfeat.slides.tissue`, at 8 um/px.
- ``blur``: the variance of the Laplacian of the patch's luminance, a measure of focus (Pech-Pacheco et al., Diatom
  autofocusing in brightfield microscopy, ICPR 2000; LAPV in Pertuz et al., Analysis of focus measure operators for
  shape-from-focus, Pattern Recognition 46, 2013, which HistoQC's blur detection goes by as well).
- ``dark``: the mean luminance of the patch. HistoQC's "darktissue" takes single pixels below 0.15 of white (38 of 255).

docs/tissue.md says on what images the thresholds were chosen, and what they miss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from zoomfeat.errors import ConfigurationError, NoTissueError
from zoomfeat.magnification import PATCH_SIZE
from zoomfeat.slides.grid import Grid, read_region, regions
from zoomfeat.slides.reader import Slide
from zoomfeat.slides.tissue import INK_MPP, ink_coloured


@dataclass(frozen=True)
class QualityFilter:
    """What is measured of a patch, and from where on it is bad.

    Attributes:
        measure: of a patch, uint8 RGB (256, 256, 3), and its um/px.
        threshold: where bad begins.
        above: whether larger values are bad; else smaller ones.
    """

    measure: Callable[[NDArray[np.uint8], float], float]
    threshold: float
    above: bool

    def refuses(self, patch: NDArray[np.uint8], mpp: float) -> bool:
        """Whether a patch is bad."""
        value = self.measure(patch, mpp)
        return value > self.threshold if self.above else value < self.threshold


def ink_share(patch: NDArray[np.uint8], mpp: float) -> float:
    """The share of a patch that has the colour of ink, 0 to 1."""
    side = max(1, min(PATCH_SIZE, round(PATCH_SIZE * mpp / INK_MPP)))
    small = cv2.resize(patch, (side, side), interpolation=cv2.INTER_AREA)
    return float(ink_coloured(small).mean())


def sharpness(patch: NDArray[np.uint8], mpp: float) -> float:
    """The variance of the Laplacian of a patch's luminance (0 to 255), whatever its um/px."""
    return float(cv2.Laplacian(cv2.cvtColor(patch, cv2.COLOR_RGB2GRAY), cv2.CV_32F).var())


def luminance(patch: NDArray[np.uint8], mpp: float) -> float:
    """The mean luminance of a patch, 0 to 255."""
    return float(cv2.cvtColor(patch, cv2.COLOR_RGB2GRAY).mean())


QUALITY_FILTERS = {
    "pen": QualityFilter(ink_share, 0.25, above=True),
    "blur": QualityFilter(sharpness, 30.0, above=False),
    "dark": QualityFilter(luminance, 50.0, above=False),
}
"""By name, what may be asked for."""


def check_filters(names: Sequence[str]) -> None:
    """Refuses names of no filter.

    Raises:
        ConfigurationError: an unknown one, or one twice.
    """
    for name in names:
        if name not in QUALITY_FILTERS:
            raise ConfigurationError(f"no quality filter {name!r}", cure=f"Use any of {', '.join(QUALITY_FILTERS)}")
    if len(set(names)) < len(names):
        raise ConfigurationError(f"a quality filter is asked for twice in {list(names)}", cure="Name each once")


def filter_settings(names: Sequence[str]) -> dict[str, Any]:
    """What decides which patches the filters keep, for the configuration that a bag records; in any order the same."""
    return {name: QUALITY_FILTERS[name].threshold for name in sorted(names)}


def drop_faulty(slide: Slide, grid: Grid, names: Sequence[str]) -> Grid:
    """The grid without the patches of the finest magnification that a filter refuses, and their lone parents.

    Args:
        slide: where the pixels are; every patch is read once.
        grid: which patches.
        names: of filters. A patch that several refuse counts for the first in the order of `QUALITY_FILTERS`.

    Returns:
        A grid whose ``dropped`` counts the patches that each filter refused, 0 included.

    Raises:
        NoTissueError: no patch is left.
        SlideUnreadableError: part of the slide does not decode.
    """
    finest = grid.scales[0]
    reasons = np.zeros(len(finest.coords), np.int64)
    chosen = [name for name in QUALITY_FILTERS if name in names]
    for region in regions(replace(grid, scales=grid.scales[:1], parents={})):
        for _, rows, patches in read_region(slide, region):
            for row, patch in zip(rows, patches, strict=True):
                refusing = (QUALITY_FILTERS[name].refuses(patch, finest.magnification.mpp) for name in chosen)
                reasons[row] = next((place for place, refused in enumerate(refusing, start=1) if refused), 0)
    counts = {name: int(np.count_nonzero(reasons == place)) for place, name in enumerate(chosen, start=1)}
    good = reasons == 0
    if not good.any():
        found = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise NoTissueError(
            f"of {len(good)} {finest.magnification} patches with tissue none passes the quality filters ({found})",
            cure="Look at the slide's preview without quality=, or leave out the filter that refuses them",
            path=slide.path,
        )
    scales = [replace(finest, coords=finest.coords[good], tissue=finest.tissue[good])]
    parents = {}
    for scale in grid.scales[1:]:
        name = scale.magnification.name
        left, rows = np.unique(grid.parents[name][good], return_inverse=True)
        scales.append(replace(scale, coords=scale.coords[left], tissue=scale.tissue[left]))
        parents[name] = rows.reshape(-1).astype(np.int32)
    return Grid(tuple(scales), parents, grid.dropped | counts)

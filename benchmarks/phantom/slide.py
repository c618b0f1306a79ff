"""A plan in, a picture out."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.phantom import stain
from benchmarks.phantom.fields import Field, resampled, smooth_noise, tile_noise
from benchmarks.phantom.nuclei import paint
from benchmarks.phantom.plan import SlidePlan
from benchmarks.phantom.tissue import Layout, lay_out

WORDS = "SYNTHETIC  drawn by zoomfeat, not a scan of tissue"
"""Stands below the tissue in every picture."""

_STRIP = 1024  # rows that are mixed at once, so that memory is bounded
_OPTICS_UM = 0.32  # deviation of the Gaussian that stands for the objective
_NOISE = 1.6  # of the sensor, in grey levels


def draw_slide(plan: SlidePlan) -> tuple[NDArray[np.uint8], Layout]:
    """The picture of a slide at its scanner's um/px, and what was planted.

    Args:
        plan: what decides it.

    Returns:
        ``(height, width, 3)`` uint8 RGB, sides multiples of 16 so that the levels of a pyramid are exact, and the
        layout.
    """
    rng = np.random.default_rng(plan.seed)
    layout = lay_out(rng, plan)
    width, height = (round(side / plan.mpp / 16) * 16 for side in plan.size_um)
    cover, density = np.zeros((height, width), np.float32), np.zeros((height, width), np.float32)
    for nuclei in layout.nuclei:
        paint(rng, nuclei, plan.nuclear_scale, plan.mpp, cover, density)
    density *= plan.chromasia
    image = _mixed(rng, plan, layout, cover, density)
    if plan.pen:
        _mark(rng, image, plan, layout)
    if plan.blur_um:
        _defocus(rng, image, plan)
    _write_words(image, plan.mpp)
    return image, layout


def _mixed(
    rng: np.random.Generator, plan: SlidePlan, layout: Layout, cover: Field, density: Field
) -> NDArray[np.uint8]:
    height, width = cover.shape
    image = np.empty((height, width, 3), np.uint8)
    haematoxylin, eosin = _ground(rng, plan, layout)
    grain = tile_noise(rng, 1024, (1.1, 1.1))  # of cytoplasm and matrix, at 0.5 um/px
    noise = tile_noise(rng, 1024, (0.4, 0.4))
    for top in range(0, height, _STRIP):
        shape = (min(_STRIP, height - top), width)
        rows = slice(top, top + shape[0])
        texture = 1 + 0.10 * resampled(grain, 2 * plan.mpp, top, shape, wrap=True)
        clear = 1 - cover[rows]
        h = resampled(haematoxylin, plan.mpp, top, shape) * texture * clear + density[rows]
        e = resampled(eosin, plan.mpp, top, shape) * texture * (0.35 + 0.65 * clear)
        rgb = stain.to_rgb(h * plan.thickness, e * plan.thickness, plan.stain)
        rgb = np.asarray(cv2.GaussianBlur(rgb, (0, 0), _OPTICS_UM / plan.mpp), np.float32)
        rgb += _NOISE * resampled(noise, 1.0, top, shape, wrap=True)[..., None]
        image[rows] = np.clip(np.rint(rgb), 0, 255)
    return image


def _ground(rng: np.random.Generator, plan: SlidePlan, layout: Layout) -> tuple[Field, Field]:
    """Densities of haematoxylin and eosin of all but nuclei, at 1 um/px."""
    shape = layout.tissue.shape
    stroma = layout.tissue * (1 - layout.epithelium) * (1 - layout.lumen) * (1 - layout.fat)
    slow = 1 + plan.unevenness * smooth_noise(rng, shape, 200)
    cytoplasm = layout.epithelium * (1 + plan.granularity * smooth_noise(rng, shape, 12))
    cytoplasm = cytoplasm * cv2.exp(plan.cord_contrast * layout.cords)
    eosin = stroma * (0.62 * layout.fibres + 0.10) + 0.40 * cytoplasm + 0.17 * layout.secretion
    brush = np.clip(cv2.GaussianBlur(layout.lumen, (0, 0), 1.8) - layout.lumen, 0, 1)  # the cells' free edge
    eosin += 0.16 * layout.wall * stroma + 0.5 * brush * layout.epithelium
    haematoxylin = 0.05 * stroma + 0.23 * cytoplasm + 0.03 * layout.secretion
    return (haematoxylin * slow).astype(np.float32), (eosin * slow).astype(np.float32)


def _mark(rng: np.random.Generator, image: NDArray[np.uint8], plan: SlidePlan, layout: Layout) -> None:
    """A stroke of a pen across one end of the tissue, in place."""
    width, height = plan.size_um
    columns = np.flatnonzero(layout.tissue.max(0) > 0.5)
    side = rng.choice([columns[0] + 50, columns[-1] - 50])
    y = np.linspace(rng.uniform(0.2, 0.4), rng.uniform(0.65, 0.9), 24) * height
    x = side + 45 * np.sin(np.linspace(0, rng.uniform(2, 5), 24) + rng.uniform(0, 6)) + rng.normal(0, 2, 24)
    ink = np.zeros((round(height), round(width)), np.uint8)
    points = np.round(np.stack([x, y], axis=1) * 16).astype(np.int32)
    cv2.polylines(ink, [points], False, 255, round(rng.uniform(45, 75)), cv2.LINE_AA, 4)
    soft = np.asarray(cv2.GaussianBlur(ink.astype(np.float32) / 255, (0, 0), 3), np.float32)
    soft = soft * (1 + 0.12 * smooth_noise(rng, soft.shape, 25))
    for top in range(0, image.shape[0], _STRIP):
        rows = image[top : top + _STRIP]
        amount = resampled(soft, plan.mpp, top, rows.shape[:2])
        rows[:] = rows * cv2.exp(-amount[..., None] * stain.PENS[plan.pen])


def _defocus(rng: np.random.Generator, image: NDArray[np.uint8], plan: SlidePlan) -> None:
    """A round region out of focus, in place."""
    width, height = plan.size_um
    x, y, radius = rng.uniform(0.2, 0.8) * width, rng.uniform(0.3, 0.8) * height, rng.uniform(180, 320)
    left, top = (max(0, int((at - 1.3 * radius) / plan.mpp)) for at in (x, y))
    box = image[top : int((y + 1.3 * radius) / plan.mpp), left : int((x + 1.3 * radius) / plan.mpp)]
    blurred = cv2.GaussianBlur(box, (0, 0), plan.blur_um / plan.mpp)
    rows, columns = np.mgrid[: box.shape[0], : box.shape[1]].astype(np.float32)
    distance = np.hypot((columns + left) * plan.mpp - x, (rows + top) * plan.mpp - y)
    share = np.clip((1.15 * radius - distance) / (0.3 * radius), 0, 1)[..., None]
    box[:] = np.rint(box * (1 - share) + blurred * share)


def _write_words(image: NDArray[np.uint8], mpp: float) -> None:
    scale = 42 / 22 / mpp  # capitals of this font are 22 px high
    place = (round(40 / mpp), image.shape[0] - round(24 / mpp))
    thickness = round(5 / mpp)
    cv2.putText(image, WORDS, place, cv2.FONT_HERSHEY_SIMPLEX, scale, (120, 120, 120), thickness, cv2.LINE_AA)

"""What was planted in a slide: the truth that attention is held against."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from zoomfeat.errors import ConfigurationError
from zoomfeat.files import replacing
from zoomfeat.slides.synthetic import MARK
from zoomfeat.slides.tissue import TissueMask

_LONGEST_SIDE = 2048  # px of the mask that shares of patches are measured on


@dataclass(frozen=True)
class PlantedLesion:
    """One lesion.

    Attributes:
        vesicular_nuclei: what it looks like at 20x.
        broad_cords: what it looks like at 5x.
        target: whether it makes the patient positive: both at once.
        box: left, top, right and bottom in level-0 pixels.
        polygon: its outline, x and y in level-0 pixels.
    """

    vesicular_nuclei: bool
    broad_cords: bool
    target: bool
    box: tuple[float, float, float, float]
    polygon: list[tuple[float, float]]


@dataclass(frozen=True)
class Truth:
    """One slide.

    Attributes:
        slide_id: name of the slide.
        width: of level 0 in px.
        height: of level 0 in px.
        mpp: um/px of level 0.
        label: of its patient.
        group: a key of ``benchmarks.phantom.plan.GROUPS``.
        lesions: what was planted; lesions that make no patient positive are listed too.
    """

    slide_id: str
    width: int
    height: int
    mpp: float
    label: int
    group: str
    lesions: list[PlantedLesion]

    def save(self, path: Path) -> None:
        """Writes JSON, which says that it is of a synthetic slide."""
        with replacing(path) as temporary:
            temporary.write_text(json.dumps({"note": MARK, **asdict(self)}, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Truth:
        """Reads what ``save`` wrote.

        Raises:
            ConfigurationError: no such file, or another kind of file.
        """
        try:
            content = json.loads(path.read_text())
            content.pop("note")
            lesions = [
                PlantedLesion(
                    **{**lesion, "box": tuple(lesion["box"]), "polygon": [(x, y) for x, y in lesion["polygon"]]}
                )
                for lesion in content.pop("lesions")
            ]
            return cls(lesions=lesions, **content)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ConfigurationError(
                f"no truth of a phantom slide ({error})", cure="Give truth/<slide>.json of a phantom cohort", path=path
            ) from error


def lesion_mask(
    truth: Truth, coords: NDArray[np.int64], patch_size_level0: int, *, targets_only: bool = True
) -> NDArray[np.float64]:
    """Share of each patch that is lesion.

    Args:
        truth: of the slide.
        coords: ``(N, 2)`` upper left corners in level-0 pixels, as a bag holds them.
        patch_size_level0: side of the patches in level-0 pixels.
        targets_only: whether only lesions count that make a patient positive; so in a negative slide all is 0.

    Returns:
        ``(N,)`` between 0 and 1.
    """
    scale = max(1.0, max(truth.width, truth.height) / _LONGEST_SIDE)
    canvas = np.zeros((int(np.ceil(truth.height / scale)), int(np.ceil(truth.width / scale))), np.uint8)
    for lesion in truth.lesions:
        if lesion.target or not targets_only:
            points = np.round((np.array(lesion.polygon) / scale - 0.5) * 16).astype(np.int32)
            cv2.fillPoly(canvas, [points], 1, cv2.LINE_8, 4)
    coords = np.asarray(coords)
    return TissueMask(canvas > 0, (scale, scale)).fraction(
        coords[:, 0], coords[:, 1], patch_size_level0, patch_size_level0
    )

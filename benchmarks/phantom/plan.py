"""Who is in the cohort, what is planted in each slide, and how it was cut, stained and scanned.

A slide holds one lesion. It has vesicular nuclei or smooth ones (seen at 20x) and broad cords of cells or narrow ones
(seen at 5x). A patient is positive where it has vesicular nuclei and broad cords; every negative patient has one of
the two, so neither factor decides alone. All else is drawn without a look at the label.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from zoomfeat.errors import ConfigurationError

SIZE_UM = (1536.0, 640.0)
"""Width and height of a slide in microns: about 42 patches of 20x and three of 5x hold tissue."""

# group: vesicular nuclei, broad cords
GROUPS: dict[str, tuple[bool, bool]] = {
    "both": (True, True),
    "nuclei": (True, False),
    "architecture": (False, True),
    "neither": (False, False),
}
"""What is planted; only the first is positive, and cohorts hold none of the last."""

_NEGATIVE = ("nuclei", "architecture")  # in turn
_TWO_SLIDES = 0.1  # of the patients: 40 slides are 36 patients

_SCANNERS = (0.5, 0.5025, 0.4601, 0.2633)  # um/px
_SCANNER_SHARES = (0.35, 0.3, 0.2, 0.15)
_NUCLEAR_SCALE, _CHROMASIA = 0.06, 0.10  # deviations of their logarithms between patients
_CORD_CONTRAST = (0.42, 0.84)
_GRANULARITY = (0.05, 0.16)
_UNEVENNESS = (0.05, 0.20)
_STAINS = ("A", "B", "C")
_PENS = ("green", "blue", "black")


@dataclass(frozen=True)
class SlidePlan:
    """All that decides the picture of one slide.

    Attributes:
        slide_id: name of the file without its ending.
        patient_id: whose slide it is.
        group: a key of ``GROUPS``; the same for all slides of a patient.
        seed: entropy of the slide's random numbers.
        mpp: the scanner's microns per pixel.
        stain: the laboratory whose stain it has, A, B or C.
        thickness: factor on every optical density.
        unevenness: deviation of the stain from one 200 um to the next, a share of it.
        pen: colour of a pen mark, or an empty string.
        blur_um: deviation of the Gaussian in a region out of focus, in um; 0: all is sharp.
        nuclear_scale: factor on every nuclear radius of the patient.
        chromasia: factor on the haematoxylin of every nucleus of the patient.
        cord_contrast: logarithm of the factor between the mean stain of a lesion's cells and its darkest ones.
        granularity: deviation of the stain of cytoplasm from one organelle to the next, a share of it.
        size_um: width and height.
    """

    slide_id: str
    patient_id: str
    group: str
    seed: tuple[int, ...]
    mpp: float = 0.5
    stain: str = "A"
    thickness: float = 1.0
    unevenness: float = 0.12
    pen: str = ""
    blur_um: float = 0.0
    nuclear_scale: float = 1.0
    chromasia: float = 1.0
    cord_contrast: float = 0.6
    granularity: float = 0.1
    size_um: tuple[float, float] = SIZE_UM

    @property
    def label(self) -> int:
        """1 where the lesion has vesicular nuclei and broad cords."""
        return int(all(GROUPS[self.group]))


def plan_cohort(slides: int = 40, seed: int = 0) -> list[SlidePlan]:
    """The slides of a cohort: half of the patients positive, a tenth of them with two slides.

    Args:
        slides: how many; at least 4.
        seed: decides everything.

    Raises:
        ConfigurationError: fewer than 4 slides.
    """
    if slides < 4:
        raise ConfigurationError(f"a cohort of {slides} slides; expected at least 4", cure="Ask for 40")
    rng = np.random.default_rng([seed, 0])
    patients = round(slides / (1 + _TWO_SLIDES))
    positive = patients // 2
    negative = [_NEGATIVE[i % len(_NEGATIVE)] for i in range(patients - positive)]
    # Positive and negative in turn, so that the second slides, which the first patients get, are shared out alike.
    groups = ["both"] * positive
    rng.shuffle(negative)
    ranked = [group for pair in zip(negative, groups, strict=False) for group in pair] + negative[positive:]
    counts = [2 if i < slides - patients else 1 for i in range(patients)]
    plans: list[SlidePlan] = []
    for number, patient in enumerate(rng.permutation(patients)):
        scale, chromasia = (float(np.exp(rng.normal(0, spread))) for spread in (_NUCLEAR_SCALE, _CHROMASIA))
        contrast, granularity = (float(rng.uniform(*between)) for between in (_CORD_CONTRAST, _GRANULARITY))
        plans.extend(
            SlidePlan(
                slide_id=f"phantom-{number:03d}{'ab'[part]}",
                patient_id=f"patient-{number:03d}",
                group=ranked[patient],
                seed=(seed, 1, number, part),
                mpp=float(rng.choice(_SCANNERS, p=_SCANNER_SHARES)),
                stain=str(rng.choice(_STAINS)),
                thickness=round(float(np.exp(rng.normal(0, 0.06))), 3),
                pen=str(rng.choice(_PENS)) if rng.random() < 0.2 else "",
                unevenness=round(float(rng.uniform(*_UNEVENNESS)), 3),
                blur_um=round(float(rng.uniform(1.0, 2.0)), 2) if rng.random() < 0.2 else 0.0,
                nuclear_scale=round(scale, 3),
                chromasia=round(chromasia, 3),
                cord_contrast=round(contrast, 3),
                granularity=round(granularity, 3),
            )
            for part in range(counts[patient])
        )
    return plans

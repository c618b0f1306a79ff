"""Who is in the cohort, what is planted in each slide, and how it was cut, stained and scanned.

A slide holds one lesion. It has large nuclei or small ones (seen at 20x) and nested glands or even ones (seen at 5x). A
patient is positive where it has large nuclei and nested glands; every negative patient has one of the two, so neither
factor decides alone. Stain, scanner, thickness, pen and blur are drawn without a look at the label.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from zoomfeat.errors import ConfigurationError

SIZE_UM = (1536.0, 592.0)
"""Width and height of a slide in microns: about 42 patches of 20x and three of 5x hold tissue."""

# group: large nuclei, nested glands
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
_NUCLEAR_SCALE = 0.06  # deviation of its logarithm between patients
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
        pen: colour of a pen mark, or an empty string.
        blur_um: deviation of the Gaussian in a region out of focus, in um; 0: all is sharp.
        nuclear_scale: factor on every nuclear radius of the patient.
        size_um: width and height.
    """

    slide_id: str
    patient_id: str
    group: str
    seed: tuple[int, ...]
    mpp: float = 0.5
    stain: str = "A"
    thickness: float = 1.0
    pen: str = ""
    blur_um: float = 0.0
    nuclear_scale: float = 1.0
    size_um: tuple[float, float] = SIZE_UM

    @property
    def label(self) -> int:
        """1 where the lesion has large nuclei and nested glands."""
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
        scale = float(np.exp(rng.normal(0, _NUCLEAR_SCALE)))
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
                blur_um=round(float(rng.uniform(1.0, 2.0)), 2) if rng.random() < 0.2 else 0.0,
                nuclear_scale=round(scale, 3),
            )
            for part in range(counts[patient])
        )
    return plans

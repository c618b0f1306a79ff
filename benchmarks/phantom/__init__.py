"""A synthetic cohort with known truth: H&E-like slides whose label needs two magnifications."""

from benchmarks.phantom.cohort import write_cohort, write_slide
from benchmarks.phantom.plan import SlidePlan, plan_cohort
from benchmarks.phantom.truth import Truth, lesion_mask

__all__ = ["SlidePlan", "Truth", "lesion_mask", "plan_cohort", "write_cohort", "write_slide"]

"""The ways of super-resolution that are compared."""

from __future__ import annotations

from typing import Literal

from generation.pipelines.superres import Condition

METHODS: tuple[Literal["bicubic"] | Condition, ...] = ("bicubic", "uncond", "given", "inferred")
"""A baseline, and the conditions of `SuperResolutionPipeline`."""

"""diffusers' samplers by the names that users know, over the noise schedule that a model was trained under."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    PNDMScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)

from zoomfeat.errors import ConfigurationError

SCHEDULERS: dict[str, tuple[type[SchedulerMixin], dict[str, Any]]] = {
    "ddim": (DDIMScheduler, {}),
    "plms": (PNDMScheduler, {"skip_prk_steps": True}),  # the release's PLMS has no Runge-Kutta steps
    "ddpm": (DDPMScheduler, {}),
    # Evenly spaced timesteps, as the model's own scheduler has them, end these two with one long step to a clean image,
    # which smooths it: evenly spaced in the logarithm of the signal-to-noise ratio, as the authors of DPM-Solver take
    # them, or as Karras et al. do (2022, equation 5), ten steps do what fifty do not.
    "dpm-solver++": (
        DPMSolverMultistepScheduler,
        {"algorithm_type": "dpmsolver++", "solver_order": 2, "use_lu_lambdas": True, "use_karras_sigmas": False},
    ),
    "unipc": (UniPCMultistepScheduler, {"use_karras_sigmas": True}),
}
"""Class and options of each sampler. `ddim` and `plms` equal the release's where the step count divides 1000."""


def make_scheduler(name: str, config: Mapping[str, Any]) -> SchedulerMixin:
    """A sampler over a model's own noise schedule.

    Args:
        name: a key of :data:`SCHEDULERS`.
        config: the configuration of the model's scheduler, ``pipe.scheduler.config``.

    Raises:
        ConfigurationError: an unknown name; the nearest known one is named.
    """
    if name not in SCHEDULERS:
        near = difflib.get_close_matches(name, SCHEDULERS, n=1)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise ConfigurationError(f"no scheduler {name!r}", cure=f"{hint}Known are {', '.join(SCHEDULERS)}")
    kind, options = SCHEDULERS[name]
    return kind.from_config(config, **options)

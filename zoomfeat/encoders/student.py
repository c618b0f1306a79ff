"""A network that was taught a ZoomLDM's features, as a patch encoder of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zoomfeat.conf.schema import StudentConfig
from zoomfeat.domains import load_domain
from zoomfeat.encoders.base import PatchEncoder
from zoomfeat.encoders.registry import register
from zoomfeat.errors import ConfigurationError, MagnificationError
from zoomfeat.magnification import Magnification
from zoomfeat.models.denoiser import check_distinct
from zoomfeat.models.distilled import FeatureStudent, load_distilled
from zoomfeat.models.zoomldm import as_input


class StudentEncoder(PatchEncoder):
    """Features like a ZoomLDM's, by a small network, at the magnifications that it was taught.

    Args:
        network: with its record.
        options: its name in the registry, and the taps.
        magnification: what patches are seen at.
        device: where it runs.

    Raises:
        ConfigurationError: a tap that it was not taught, or one twice.
        MagnificationError: a magnification that it was not taught.
    """

    def __init__(
        self, network: FeatureStudent, options: StudentConfig, magnification: str | Magnification | None, device: str
    ) -> None:
        self.record = network.record
        self.ladder = load_domain(self.record.domain).ladder
        super().__init__(magnification or self.record.magnifications[0], device)
        self.name = options.name
        taps = options.taps or self.record.taps
        self._columns = self._columns_of(taps)
        self.dim = len(self._columns)
        self.weights_hash = network.weights_hash()
        self.note = f"a student of {self.record.teacher}: {self.record.describe_fidelity()}"
        self.settings = {
            **self.record.settings,
            "taps": list(taps),
            "teacher": self.record.teacher,
            "teacher_weights_hash": self.record.weights_hash,
        }
        self._network = network.requires_grad_(False).to(self.device)

    def _columns_of(self, taps: list[str]) -> Tensor:
        """Which features of the network are those of the taps."""
        ends = np.cumsum(self.record.tap_dims).tolist()
        known = {
            tap: range(end - dim, end)
            for tap, end, dim in zip(self.record.taps, ends, self.record.tap_dims, strict=True)
        }
        if wrong := [tap for tap in taps if tap not in known]:
            raise ConfigurationError(
                f"the student was not taught {', '.join(wrong)}",
                cure=f"It knows {', '.join(known)}; others need a `zoomfeat distill` of their own",
            )
        check_distinct(taps, taps)
        timestep = self.record.settings["timestep"]
        starts = [at * ends[-1] for at in range(len(timestep) if isinstance(timestep, list) else 1)]
        return torch.tensor([start + column for start in starts for tap in taps for column in known[tap]])

    def _step(self, magnification: str | Magnification | None) -> Magnification:
        step = super()._step(magnification)
        if str(step) not in self.record.magnifications:
            raise MagnificationError(
                f"the student was not taught {step}",
                cure=f"It knows {', '.join(self.record.magnifications)}; use those, or the ZoomLDM itself",
            )
        return step

    def transform(self, images: NDArray[np.uint8] | Tensor) -> Tensor:
        """Channels first, in [-1, 1]."""
        return as_input(images)

    def embed(self, inputs: Tensor, context: Tensor | None) -> Tensor:
        """The features of the chosen taps, one after the other."""
        index = torch.full((len(inputs),), self.magnification.index, device=inputs.device)
        return self._network.features(inputs, index)[:, self._columns]


@register(
    dim=384,
    input_size=256,
    mean=(0.5,) * 3,
    std=(0.5,) * 3,
    feature="taps",
    licence="its teacher's",
)
def zoomldm_student(options: StudentConfig, magnification: str | Magnification | None, device: str) -> PatchEncoder:
    """A small network taught a ZoomLDM's features by `zoomfeat distill` (of zoomldm-tiny: 384); weights= names it."""
    if options.weights is None:
        raise ConfigurationError(
            "encoder=zoomldm-student has no weights of its own",
            cure="Give the model folder of a `zoomfeat distill mode=student` checkpoint as encoder.weights=folder",
        )
    return StudentEncoder(load_distilled(FeatureStudent, Path(options.weights)), options, magnification, device)

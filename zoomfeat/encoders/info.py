"""What is known of an encoder without building it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EncoderInfo:
    """Facts of one encoder; None where one does not apply or is not stated.

    Attributes:
        name: its name in the registry.
        summary: what it is, one line.
        dim: length of a feature vector, with the options at their defaults.
        input_size: side of the network's input in pixels; the whole patch is resized to it.
        mean: subtracted from red, green and blue, which lie in [0, 1].
        std: what they are divided by afterwards.
        interpolation: how patches are resized, ``bilinear`` or ``bicubic``, both antialiased.
        feature: what of the network is the feature: ``cls`` (class token), ``mean`` (average over space),
            ``cls+mean`` (class token beside the average of the patch tokens), ``taps`` (ZoomLDM), ``pixels``.
        magnification: what its training patches were seen at.
        licence: of the weights.
        gated: whether the hub hands them out only after its terms were accepted.
        hub: repository on the Hugging Face hub.
        revision: commit of that repository; ``main`` where no commit could be cited.
        file: which file of it holds the weights.
        parameters: how many the network has that makes the features.
    """

    name: str
    summary: str
    dim: int
    input_size: int | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    interpolation: str | None = None
    feature: str | None = None
    magnification: str | None = None
    licence: str | None = None
    gated: bool = False
    hub: str | None = None
    revision: str | None = None
    file: str | None = None
    parameters: int | None = None

"""What a bag says about its origin: slide, encoder, um/px, configuration."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from zoomfeat.errors import BagInvalidError
from zoomfeat.georeference import Georeference

UNKNOWN = "unknown"
"""Stands for what the source of a bag does not say."""

_JSON = ("encoder_settings", "dropped", "configuration", "versions")
_LENGTHS = ("level0_width", "level0_height")
_LEADS_ELSEWHERE = re.compile(r"[/\\\x00-\x1f]")
_BESIDE = ("georeference",)  # not a root attribute: it lies with the coordinates


@dataclass(frozen=True, kw_only=True)
class BagMetadata:
    """The provenance of a bag, stored as root attributes under the same names; dictionaries as JSON.

    Attributes:
        slide_id: name of the slide without its suffix, and of the bag's file.
        encoder: name of the patch encoder.
        weights_hash: of the encoder's weights.
        encoder_settings: what else fixes the features: taps, timestep, seed, draws, conditioning.
        reader: slide reader and its version.
        mpp_level0: um/px of level 0 in x and y; None where unknown.
        mpp_source: where that value comes from, for example ``"openslide"`` or ``"user"``.
        level0_width: width of level 0 in px; None where unknown.
        level0_height: height of level 0 in px; None where unknown.
        tissue_method: how tissue was told from background.
        dropped: number of patches left out by reason.
        configuration: the full configuration of the extraction.
        config_hash: of the part of the configuration that determines the features.
        versions: package name to version.
        note: what a user must know before using the features, for example
            ``"random weights, for demonstration only"``.
        georeference: where level 0 lies on the map; None for what does not. Stored with the coordinates, as the
            attributes ``crs`` and ``transform``.
    """

    slide_id: str
    encoder: str
    weights_hash: str = UNKNOWN
    encoder_settings: dict[str, Any] = field(default_factory=dict)
    reader: str = UNKNOWN
    mpp_level0: tuple[float, float] | None = None
    mpp_source: str = UNKNOWN
    level0_width: int | None = None
    level0_height: int | None = None
    tissue_method: str = UNKNOWN
    dropped: dict[str, int] = field(default_factory=dict)
    configuration: dict[str, Any] = field(default_factory=dict)
    config_hash: str = UNKNOWN
    versions: dict[str, str] = field(default_factory=dict)
    note: str = ""
    georeference: Georeference | None = None

    def __post_init__(self) -> None:
        # The name becomes a file name when the bag is converted, so it must not lead elsewhere.
        if _LEADS_ELSEWHERE.search(self.slide_id) or self.slide_id[:1] in ("", "."):
            raise BagInvalidError(f"slide_id {self.slide_id!r}, expected a plain file name")
        if self.mpp_level0 is not None and not all(0 < value < math.inf for value in self.mpp_level0):
            raise BagInvalidError(f"mpp_level0 {self.mpp_level0}, expected two positive um/px")

    @property
    def level0_size(self) -> tuple[int, int] | None:
        """Width and height of level 0 in px; None where unknown."""
        if self.level0_width is None or self.level0_height is None:
            return None
        return self.level0_width, self.level0_height

    @property
    def slide_reader(self) -> str:
        """What opens the slide, for `zoomfeat.slides.Slide.open`; the usual one where the bag names no domain."""
        domain = self.configuration.get("domain")
        return str(domain.get("reader", "openslide")) if isinstance(domain, dict) else "openslide"

    def to_attributes(self) -> dict[str, Any]:
        """The fields as values that HDF5 attributes hold."""
        return {name: _encode(getattr(self, name)) for name in self._attribute_names()}

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> BagMetadata:
        """The inverse of ``to_attributes``; other attributes are ignored.

        Raises:
            BagInvalidError: an attribute is missing or of another kind.
        """
        return cls(**{name: _decode(name, attributes) for name in cls._attribute_names()})

    @classmethod
    def _attribute_names(cls) -> list[str]:
        return [entry.name for entry in fields(cls) if entry.name not in _BESIDE]


def _encode(value: Any) -> Any:
    if value is None:
        return UNKNOWN
    if isinstance(value, dict):
        return json.dumps(value, sort_keys=True)
    return np.array(value, dtype=np.float64) if isinstance(value, tuple) else value


def _decode(name: str, attributes: Mapping[str, Any]) -> Any:
    if name not in attributes:
        raise BagInvalidError(f"no root attribute {name!r}")
    value = attributes[name]
    if name == "mpp_level0":
        return decode_mpp(value)
    if name in _LENGTHS and isinstance(value, np.integer):
        return int(value)
    if not isinstance(value, str):
        raise BagInvalidError(f"root attribute {name!r} is {value!r}, expected text")
    if name in _LENGTHS:
        return None
    return decode_json(name, value, dict) if name in _JSON else value


def encode_georeference(where: Georeference | None) -> dict[str, Any]:
    """A georeference as attributes of the coordinates; none for None."""
    return {} if where is None else {"crs": where.crs, "transform": np.array(where.transform, dtype=np.float64)}


def decode_georeference(attributes: Mapping[str, Any]) -> Georeference | None:
    """The inverse of `encode_georeference`.

    Raises:
        BagInvalidError: one of the two attributes, or values of another kind.
    """
    if "crs" not in attributes and "transform" not in attributes:
        return None
    crs, transform = attributes.get("crs"), np.asarray(attributes.get("transform", ()))
    if not isinstance(crs, str) or transform.shape != (6,) or transform.dtype.kind not in "fiu":
        raise BagInvalidError(f"crs {crs!r} and transform {transform.tolist()}, expected a text and six numbers")
    return Georeference(crs, tuple(transform.astype(float).tolist()))


def decode_json(name: str, text: Any, kind: type) -> Any:
    """The JSON value of an attribute.

    Args:
        name: of the attribute, for messages.
        text: its value.
        kind: the type that the JSON value must have.

    Raises:
        BagInvalidError: not JSON, or JSON of another type.
    """
    try:
        value = json.loads(text)
    except (TypeError, json.JSONDecodeError) as error:
        raise BagInvalidError(f"root attribute {name!r} is not JSON") from error
    if not isinstance(value, kind):
        raise BagInvalidError(f"root attribute {name!r} holds a JSON {type(value).__name__}, expected {kind.__name__}")
    return value


def encode_mpp(mpp: tuple[float, float] | None) -> Any:
    """um/px of level 0 as an attribute: two numbers, or ``"unknown"``."""
    return _encode(mpp)


def decode_mpp(value: Any) -> tuple[float, float] | None:
    """The inverse of ``encode_mpp``.

    Raises:
        BagInvalidError: neither two numbers nor ``"unknown"``.
    """
    if isinstance(value, str) and value == UNKNOWN:
        return None
    if np.shape(value) != (2,) or not np.issubdtype(np.asarray(value).dtype, np.number):
        raise BagInvalidError(f"mpp_level0 is {value!r}, expected two numbers or {UNKNOWN!r}")
    return float(value[0]), float(value[1])

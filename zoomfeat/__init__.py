"""zoomfeat: whole-slide images in, multi-scale multiple-instance-learning bags out.

The common names, imported when first used so that ``import zoomfeat`` stays instant::

    encoder = zoomfeat.load_encoder("zoomldm-brca", magnification="5x")
    features = encoder(images)                # (B, 256, 256, 3) uint8 -> (B, 960) float32
    bag = zoomfeat.Bag.open("slide.h5")
    bag.fused()                               # (N, 1920): each 20x patch beside its 5x parent
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoomfeat.bags import Bag as Bag
    from zoomfeat.encoders import PatchEncoder as PatchEncoder
    from zoomfeat.encoders import encoder_names as encoder_names
    from zoomfeat.encoders import load_encoder as load_encoder
    from zoomfeat.models.zoomldm import ZoomLDM as ZoomLDM
    from zoomfeat.slides import Slide as Slide

__version__ = "0.1.0"

_HOMES = {
    "Bag": "zoomfeat.bags",
    "PatchEncoder": "zoomfeat.encoders",
    "encoder_names": "zoomfeat.encoders",
    "load_encoder": "zoomfeat.encoders",
    "ZoomLDM": "zoomfeat.models.zoomldm",
    "Slide": "zoomfeat.slides",
}
__all__ = ["Bag", "PatchEncoder", "Slide", "ZoomLDM", "__version__", "encoder_names", "load_encoder"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'zoomfeat' has no attribute {name!r}")

"""From densities of two stains to a picture, and what laboratory, scanner and pen add."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.phantom.fields import Field

# Absorbance of red, green and blue by haematoxylin and eosin. A: "H&E 2" of Landini's Colour Deconvolution for ImageJ;
# B: the reference of the usual implementations of Macenko et al., "A method for normalizing histology slides" (2009);
# C: halfway from B to Ruifrok and Johnston, "Quantification of histochemical staining by color deconvolution" (2001).
_MACENKO = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]], np.float32)
_RUIFROK = np.array([[0.650, 0.704, 0.286], [0.072, 0.990, 0.105]], np.float32)
STAINS: dict[str, NDArray[np.float32]] = {
    "A": np.array([[0.490, 0.769, 0.410], [0.046, 0.842, 0.537]], np.float32),
    "B": _MACENKO,
    "C": np.mean([_MACENKO, _RUIFROK], axis=0, dtype=np.float32),
}
GLASS = np.array([243.0, 242.0, 244.0], np.float32)

# Absorbance of ink; strong, as pens are.
PENS: dict[str, NDArray[np.float32]] = {
    "green": np.array([1.9, 0.55, 1.3], np.float32),
    "blue": np.array([2.0, 1.3, 0.35], np.float32),
    "black": np.array([1.9, 1.9, 1.8], np.float32),
}


def to_rgb(haematoxylin: Field, eosin: Field, stain: str) -> NDArray[np.float32]:
    """Beer and Lambert: light falls off exponentially with the density of each stain.

    Args:
        haematoxylin: ``(h, w)`` density, 0 to about 3.
        eosin: the same of eosin.
        stain: a key of ``STAINS``.

    Returns:
        ``(h, w, 3)`` float32, 0 to 255.
    """
    absorbed = np.stack([haematoxylin, eosin], axis=-1) @ STAINS[stain]
    return cv2.exp(-absorbed) * GLASS

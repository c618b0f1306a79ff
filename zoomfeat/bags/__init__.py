"""Bags: the HDF5 file that one slide becomes; write, read, check, inspect, convert.

    bag = Bag.open("bags/TCGA-A2-A0CM.h5")
    bag.features        # (N, D) float32 at the finest magnification, read when asked for
    bag.coords          # (N, 2) int64, level-0 px
    bag.fused()         # (N, sum of D): each patch with its parents at the coarser magnifications

docs/bag-format.md specifies the file.
"""

from zoomfeat.bags.bag import Bag, validate
from zoomfeat.bags.convert import Conversion, StoredBag, convert, stored_bags
from zoomfeat.bags.hdf5 import SCHEMA
from zoomfeat.bags.inspect import inspect_table
from zoomfeat.bags.metadata import UNKNOWN, BagMetadata
from zoomfeat.bags.scales import Scale, ScaleFeatures, StoredScale, find_parents

__all__ = [
    "SCHEMA",
    "UNKNOWN",
    "Bag",
    "BagMetadata",
    "Conversion",
    "Scale",
    "ScaleFeatures",
    "StoredBag",
    "StoredScale",
    "convert",
    "find_parents",
    "inspect_table",
    "stored_bags",
    "validate",
]

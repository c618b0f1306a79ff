"""Slides: which there are, their pixels at any size, their tissue, and their aligned multi-scale patches."""

from zoomfeat.slides.cohort import SlideEntry, check_apart, find_slides, read_manifest, slides
from zoomfeat.slides.foreground import find_foreground
from zoomfeat.slides.grid import Grid, Region, RegionPart, Scale, make_grid, patch_size, read_region, regions
from zoomfeat.slides.preview import draw_preview
from zoomfeat.slides.quality import QUALITY_FILTERS, check_filters, drop_faulty, filter_settings
from zoomfeat.slides.reader import Slide
from zoomfeat.slides.tissue import TissueMask, find_tissue, tissue_mask

__all__ = [
    "QUALITY_FILTERS",
    "Grid",
    "Region",
    "RegionPart",
    "Scale",
    "Slide",
    "SlideEntry",
    "TissueMask",
    "check_apart",
    "check_filters",
    "draw_preview",
    "drop_faulty",
    "filter_settings",
    "find_foreground",
    "find_slides",
    "find_tissue",
    "make_grid",
    "patch_size",
    "read_manifest",
    "read_region",
    "regions",
    "slides",
    "tissue_mask",
]

"""What is left of an explained slide: a page for people, GeoJSON for QuPath."""

from mil.report.gallery import Gallery, GalleryPatch, read_gallery
from mil.report.geojson import write_geojson
from mil.report.geotiff import write_geotiff
from mil.report.page import write_page

__all__ = ["Gallery", "GalleryPatch", "read_gallery", "write_geojson", "write_geotiff", "write_page"]

"""GeoTIFF and whatever else of one file GDAL opens, with the face of an OpenSlide object.

The size of a pixel on the ground follows from the geotransform and the coordinate reference system. What the file marks
as absent (nodata, a mask, an alpha band) is transparent, and so background. Overviews that are means of the image serve
as pyramid levels.
"""

from __future__ import annotations

import math
import threading
import warnings
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import openslide
from numpy.typing import NDArray
from PIL import Image

from zoomfeat.errors import MagnificationError, SlideUnreadableError
from zoomfeat.georeference import Georeference, need_rasterio
from zoomfeat.slides.overviews import true_overviews

_EQUATOR, _FLATNESS = 6378137.0, 0.00669437999014  # WGS 84: semi-major axis in m, squared eccentricity
_TRUE_ENOUGH = 0.02  # projections made for measuring are true to about a hundredth; Web Mercator is not
_EVEN_ENOUGH = 1.1  # largest over smallest size of a pixel within one image: as far as a slide may be off
_LOCATE_CURE = (
    "Locate it with gdal_translate -a_srs EPSG:26914 -a_ullr LEFT TOP RIGHT BOTTOM in.tif out.tif, or with gdalwarp "
    "where it has control points; or give um/px as mpp, and its bag will have no place on the map"
)
_COLOURS = ("red", "green", "blue")
# Files that hold their pixels. GDAL takes others by content whatever they are called, VRT among them, which may name
# any file of this machine, or an address on the network.
_DRIVERS = ["GTiff", "COG", "JPEG", "PNG", "BMP", "JP2OpenJPEG", "HFA", "NITF"]


class GeoTiff(openslide.AbstractSlide):
    """An image on the map as OpenSlide would show it: RGBA regions of levels that are downsampled by whole numbers.

    Attributes:
        georeference: where it lies; None where the file does not say.
        unlocated: why the size of its pixels is unknown, one line, and what helps; None where it is known.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._rasterio = need_rasterio()
        self._local = threading.local()  # a GDAL data set may be used by one thread at a time
        self._opened: list[Any] = []
        self._lock = threading.Lock()
        try:
            dataset = self._dataset(0)
        except self._rasterio.errors.RasterioError as error:
            raise SlideUnreadableError(
                f"GDAL does not open it ({_one_line(error)})",
                cure="Copy the file again from its source, or check it with gdalinfo",
                path=path,
            ) from error
        try:
            self._bands = _colour_bands(dataset, path)
            self._alpha = _alpha_band(dataset)
            self.georeference, size, self.unlocated = _located(dataset, path)
            self._overviews: list[int] = true_overviews(dataset, self._overview, self._bands)
        except Exception:
            self.close()
            raise
        self._properties = {openslide.PROPERTY_NAME_VENDOR: str(dataset.driver).lower()}
        if size is not None:
            self._properties[openslide.PROPERTY_NAME_MPP_X] = repr(size[0] * 1e6)
            self._properties[openslide.PROPERTY_NAME_MPP_Y] = repr(size[1] * 1e6)

    @property
    def reader(self) -> str:
        """Libraries and versions that decode it."""
        return f"rasterio {self._rasterio.__version__} (GDAL {self._rasterio.__gdal_version__})"

    @classmethod
    def detect_format(cls, filename: Any) -> str | None:
        """Nothing is detected: whether a file is read as a map is the domain's to say."""
        return None

    def get_best_level_for_downsample(self, downsample: float) -> int:
        """The coarsest level that is no coarser."""
        return max(level for level, factor in enumerate(self.level_downsamples) if factor <= max(downsample, 1.0))

    @property
    def level_count(self) -> int:
        """One more than the overviews that are used."""
        return 1 + len(self._overviews)

    @cached_property
    def level_dimensions(self) -> tuple[tuple[int, int], ...]:
        """Width and height of each level."""
        sets = [self._dataset(level) for level in range(self.level_count)]
        return tuple((dataset.width, dataset.height) for dataset in sets)

    @property
    def level_downsamples(self) -> tuple[float, ...]:
        """Whole numbers, so that a whole pixel of a level has a whole level-0 position."""
        return (1.0, *map(float, self._overviews))

    @property
    def properties(self) -> dict[str, str]:
        """The format, and um/px where they are known, under OpenSlide's names."""
        return self._properties

    @property
    def associated_images(self) -> dict[str, Image.Image]:
        """None."""
        return {}

    def read_region(self, location: tuple[int, int], level: int, size: tuple[int, int]) -> Image.Image:
        """RGBA pixels of a level from a level-0 position; absent ones, and those beyond the image, are transparent.

        Raises:
            OSError: GDAL does not decode them.
        """
        divisor = int(self.level_downsamples[level])
        left, top = (position // divisor for position in location)
        width, height = self.level_dimensions[level]
        columns = slice(max(left, 0), max(min(left + size[0], width), 0))
        rows = slice(max(top, 0), max(min(top + size[1], height), 0))
        canvas = np.zeros((size[1], size[0], 4), np.uint8)
        if columns.start < columns.stop and rows.start < rows.stop:
            window = ((rows.start, rows.stop), (columns.start, columns.stop))
            dataset = self._dataset(level)
            inside = canvas[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
            try:
                inside[..., :3] = np.moveaxis(dataset.read(self._bands, window=window), 0, -1)
                inside[..., 3] = self._present(dataset, window)
            except self._rasterio.errors.RasterioError as error:
                raise OSError(_one_line(error)) from error
        return Image.fromarray(canvas)

    def close(self) -> None:
        """Let go of the file, for all threads."""
        with self._lock:
            while self._opened:
                self._opened.pop().close()
        self._local = threading.local()

    def _present(self, dataset: Any, window: Any) -> NDArray[np.uint8]:
        """255 where the file holds data and 0 where it holds none."""
        if self._alpha:
            return np.where(dataset.read(self._alpha, window=window) > 0, 255, 0).astype(np.uint8)
        flags = self._rasterio.enums.MaskFlags
        if all(flags.all_valid in dataset.mask_flag_enums[band - 1] for band in self._bands):
            return np.full([stop - start for start, stop in window], 255, np.uint8)
        if flags.alpha in dataset.mask_flag_enums[self._bands[0] - 1]:  # of a band that is none, see _alpha_band
            return np.full([stop - start for start, stop in window], 255, np.uint8)
        masks = dataset.read_masks(self._bands, window=window)
        return np.where(masks.any(axis=0), 255, 0).astype(np.uint8)  # black is a colour; absent is absent in all

    def _dataset(self, level: int) -> Any:
        """This thread's handle of a level."""
        handles = self._local.__dict__.setdefault("handles", {})
        if level not in handles:
            overview = {} if level == 0 else {"overview_level": level - 1}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", self._rasterio.errors.NotGeoreferencedWarning)  # `unlocated` says it
                handles[level] = self._rasterio.io.DatasetReader(str(self._path), driver=_DRIVERS, **overview)
            with self._lock:
                self._opened.append(handles[level])
        return handles[level]

    def _overview(self, index: int) -> Any:
        return self._dataset(index + 1)


def _one_line(error: Exception) -> str:
    return " ".join(str(error.__cause__ or error).split())


def _colour_bands(dataset: Any, path: Path) -> list[int]:
    """The bands that are red, green and blue: those that say so, else the first three; one band is all three."""
    names = [colour.name for colour in dataset.colorinterp]
    if dataset.count == 2 or "palette" in names:
        what = "a table of colours, so its values are classes" if "palette" in names else "2 bands"
        raise SlideUnreadableError(
            f"it has {what}; expected red, green and blue, or one grey band",
            cure="Expand a table of colours with gdal_translate -expand rgb",
            path=path,
        )
    bands = [names.index(colour) + 1 for colour in _COLOURS] if set(_COLOURS) <= set(names) else [1, 2, 3]
    bands = bands if dataset.count > 1 else [1, 1, 1]
    kinds = {dataset.dtypes[band - 1] for band in bands}
    if kinds != {"uint8"}:
        raise SlideUnreadableError(
            f"its bands are {', '.join(sorted(kinds))}, not 8 bits a colour",
            cure="How it is scaled changes every feature, so scale it as you need: gdal_translate -ot Byte "
            "-scale MIN MAX 0 255 in.tif out.tif",
            path=path,
        )
    return bands


def _alpha_band(dataset: Any) -> int:
    """The number of the alpha band, 0 where there is none.

    Software that knows no fourth colour calls the near-infrared band of NAIP alpha. A mask is 0 or 255 and blends at
    edges only; a picture is mostly in between.
    """
    names = [colour.name for colour in dataset.colorinterp]
    if "alpha" not in names:
        return 0
    band = names.index("alpha") + 1
    top, left = max(dataset.height // 2 - 128, 0), max(dataset.width // 2 - 128, 0)
    window = ((top, min(top + 256, dataset.height)), (left, min(left + 256, dataset.width)))
    try:
        values = dataset.read(band, window=window)
    except OSError:  # a damaged middle: reading patches will say so
        return band
    between = (values > 0) & (values < 255)
    return 0 if between.mean() > 0.5 else band


_Where = tuple[Georeference | None, tuple[float, float] | None, tuple[str, str] | None]


def _located(dataset: Any, path: Path) -> _Where:
    """Where an image lies, the size of a pixel in m along x and y, and else why that is unknown and what helps.

    Raises:
        MagnificationError: a map on which the size of a pixel has no one answer.
    """
    if dataset.crs is None or dataset.transform.is_identity:
        kind = "only ground control points" if dataset.gcps[0] else "no georeference"
        missing = "no coordinate reference system" if not dataset.transform.is_identity else kind
        return None, None, (f"the file has {missing}, so the size of its pixels is unknown", _LOCATE_CURE)
    if not (dataset.crs.is_projected or dataset.crs.is_geographic):
        name = dataset.crs.to_wkt().split('"')[1]
        return None, None, (f"its coordinate system {name!r} has no place on the Earth", _LOCATE_CURE)
    code = dataset.crs.to_epsg()
    crs = f"EPSG:{code}" if code else dataset.crs.to_wkt()
    a, b, c, d, e, f = (float(number) for number in dataset.transform[:6])
    where = Georeference(crs, (a, b, c, d, e, f))
    centre = where.to_lonlat(np.array([[dataset.width / 2, dataset.height / 2]]))[0]
    cure = f"Reproject it, here for example with gdalwarp -t_srs {_utm(*centre)} -r average in.tif out.tif"
    if not dataset.crs.is_projected:
        raise MagnificationError(
            f"its coordinates are degrees ({crs}), in which a pixel has no one size in metres", cure=cure, path=path
        )
    sizes = _ground_sizes(where, dataset.width, dataset.height)
    if not np.isfinite(sizes).all() or (sizes.max(axis=0) > _EVEN_ENOUGH * sizes.min(axis=0)).any():
        raise MagnificationError(
            f"its pixels are {sizes.min():.4g} to {sizes.max():.4g} m on the ground, since {crs} stretches so large an "
            "area unevenly",
            cure=cure,
            path=path,
        )
    factor = dataset.crs.linear_units_factor[1]  # of feet, 0.3048
    nominal = np.array([math.hypot(a, d), math.hypot(b, e)]) * factor
    ground = sizes[0]
    size = nominal if (np.abs(nominal / ground - 1) <= _TRUE_ENOUGH).all() else ground
    return where, (float(size[0]), float(size[1])), None


def _ground_sizes(where: Georeference, width: int, height: int) -> NDArray[np.float64]:
    """Metres on the ground of a pixel along x and y, at the centre and the four corners, ``(5, 2)``.

    A step of a pixel is taken on the ellipsoid by its radii of curvature along the meridian and across it
    (Snyder, Map projections: a working manual, USGS Professional Paper 1395, 1987, section 4).
    """
    places = np.array([[0.5, 0.5], [0, 0], [1, 0], [0, 1], [1, 1]]) * (width, height)
    start, along_x, along_y = (where.to_lonlat(places + step) for step in ([0, 0], [1, 0], [0, 1]))
    latitude = np.radians(start[:, 1])
    across = _EQUATOR / np.sqrt(1 - _FLATNESS * np.sin(latitude) ** 2)
    meridian = across * (1 - _FLATNESS) / (1 - _FLATNESS * np.sin(latitude) ** 2)
    metres = np.stack([across * np.cos(latitude), meridian], axis=1)
    steps = (np.radians(end - start) * metres for end in (along_x, along_y))
    return np.stack([np.linalg.norm(step, axis=1) for step in steps], axis=1)


def _utm(longitude: float, latitude: float) -> str:
    """The UTM zone of a place, as an EPSG code; "a projection in metres" where the place is none."""
    if not (math.isfinite(longitude) and abs(latitude) <= 84):
        return "a projection in metres"
    return f"EPSG:{(32600 if latitude >= 0 else 32700) + int((longitude + 180) // 6) % 60 + 1}"

"""The GeoTIFF reader, on files that the test writes and on real ones, against rasterio itself."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from tests.geotiffs import AT, UTM, make_geotiff, picture, rasterio
from zoomfeat.errors import ConfigurationError, MagnificationError, SlideUnreadableError
from zoomfeat.georeference import Georeference
from zoomfeat.magnification import NAIP
from zoomfeat.slides import Slide, find_foreground, make_grid
from zoomfeat.slides import geotiff as module


def opened(path: Path, **options: object) -> Slide:
    return Slide.open(path, reader="geotiff", **options)


def read(slide: Slide, x: int, y: int, width: int, height: int) -> np.ndarray:
    return slide.read(x, y, width, height, [(width, height)])[0]


@pytest.fixture(scope="module")
def aerial(tmp_path_factory) -> Path:
    """700 x 600 px of 0.6 m."""
    return make_geotiff(tmp_path_factory.mktemp("aerial") / "aerial.tif", picture(600, 700, 4), metres=0.6)


def test_pixels_are_those_of_the_file_and_white_beyond(aerial):
    pixels = rasterio.open(aerial).read([1, 2, 3]).transpose(1, 2, 0)
    with opened(aerial) as slide:
        np.testing.assert_array_equal(read(slide, 130, 77, 200, 150), pixels[77:227, 130:330])
        over = read(slide, 600, -50, 200, 100)
        np.testing.assert_array_equal(over[50:, :100], pixels[:50, 600:])
        assert (over[:50] == 255).all()
        assert (over[:, 100:] == 255).all()
        assert slide.reader.startswith("rasterio ")
        assert slide.vendor == "gtiff"


def test_several_threads_read_from_one_slide(aerial):
    pixels = rasterio.open(aerial).read([1, 2, 3]).transpose(1, 2, 0)
    wrong = []
    with opened(aerial) as slide:

        def work(seed: int) -> None:
            for x, y in np.random.default_rng(seed).integers(0, 400, (40, 2)):
                if not np.array_equal(read(slide, x, y, 150, 150), pixels[y : y + 150, x : x + 150]):
                    wrong.append((x, y))

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    assert not wrong


@pytest.mark.parametrize(
    ("metres", "crs", "at", "expected"),
    [
        (0.6, UTM, AT, (0.6, 0.6)),
        ((1.0, 2.0), UTM, AT, (1.0, 2.0)),
        # Illinois East in US survey feet; Washington in Web Mercator, whose metres are shorter on the ground.
        (2.0, "EPSG:3435", (1_176_000.0, 1_900_000.0), (0.6096012, 0.6096012)),
        (1.0, "EPSG:3857", (-8_575_600.0, 4_707_000.0), (0.7793, 0.7761)),
        (30.0, "EPSG:5070", (1_600_000.0, 1_900_000.0), (30.0, 30.0)),
    ],
)
def test_the_size_of_a_pixel_is_metres_on_the_ground(tmp_path, metres, crs, at, expected):
    path = make_geotiff(tmp_path / "a.tif", picture(40, 60), metres=metres, crs=crs, at=at)
    with opened(path) as slide:
        assert slide.mpp == pytest.approx([1e6 * size for size in expected], rel=1e-3)
        assert slide.mpp_source == "metadata"


def test_a_turned_image_has_the_size_and_place_of_its_pixels(tmp_path):
    path = tmp_path / "turned.tif"
    transform = rasterio.Affine.translation(*AT) @ rasterio.Affine.rotation(30) @ rasterio.Affine.scale(2, -2)
    with rasterio.open(
        path, "w", driver="GTiff", width=60, height=40, count=3, dtype="uint8", crs=UTM, transform=transform
    ) as file:
        file.write(picture(40, 60))
    with opened(path) as slide:
        assert slide.mpp == pytest.approx((2e6, 2e6))
        points = np.array([[0, 0], [60, 40], [12.5, 3.25]])
        expected = [transform @ tuple(point) for point in points.tolist()]
        np.testing.assert_allclose(slide.georeference.to_map(points), expected)
        np.testing.assert_allclose(slide.georeference.to_pixels(slide.georeference.to_map(points)), points, atol=1e-6)


def test_degrees_are_refused_with_the_projection_that_fits(tmp_path):
    path = make_geotiff(tmp_path / "a.tif", picture(40, 60), metres=1e-5, crs="EPSG:4326", at=(151.2, -33.8))
    with pytest.raises(MagnificationError, match=r"a\.tif: its coordinates are degrees \(EPSG:4326\)") as caught:
        opened(path)
    assert "gdalwarp -t_srs EPSG:32756" in str(caught.value)


def test_a_map_that_stretches_one_image_unevenly_is_refused(tmp_path):
    path = make_geotiff(tmp_path / "a.tif", picture(40, 60), metres=50_000, crs="EPSG:3857", at=(0, 8_000_000))
    with pytest.raises(MagnificationError, match="m on the ground, since EPSG:3857 stretches so large an area"):
        opened(path)


def test_no_georeference_is_told_and_um_per_px_helps(tmp_path):
    path = make_geotiff(tmp_path / "bare.tif", picture(300, 300), crs=None)
    with pytest.raises(MagnificationError, match=r"bare\.tif: the file has no georeference.*gdal_translate") as caught:
        opened(path)
    assert "\n" not in str(caught.value)
    with opened(path, mpp=1e6) as slide:
        assert slide.georeference is None
        assert slide.mpp == (1e6, 1e6)


def test_control_points_alone_are_told(tmp_path):
    points = [rasterio.control.GroundControlPoint(r, c, AT[0] + c, AT[1] - r) for r, c in ((0, 0), (0, 60), (40, 0))]
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", width=60, height=40, count=3, dtype="uint8", gcps=points, crs=UTM
    ) as file:
        file.write(picture(40, 60))
    with pytest.raises(MagnificationError, match="only ground control points"):
        opened(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (picture(30, 30).astype(np.uint16), "its bands are uint16, not 8 bits a colour.*gdal_translate -ot Byte"),
        (picture(30, 30).astype(np.float32), "its bands are float32"),
        (picture(30, 30, 2), "it has 2 bands"),
    ],
)
def test_pixels_that_are_no_colours_are_refused(tmp_path, pixels, message):
    with pytest.raises(SlideUnreadableError, match=message):
        opened(make_geotiff(tmp_path / "a.tif", pixels))


def test_a_table_of_colours_is_refused(tmp_path):
    path = tmp_path / "classes.tif"
    with rasterio.open(path, "w", driver="GTiff", width=9, height=9, count=1, dtype="uint8", crs=UTM) as file:
        file.write_colormap(1, {0: (0, 0, 0), 1: (255, 0, 0)})
    with pytest.raises(SlideUnreadableError, match=r"a table of colours, so its values are classes.*-expand rgb"):
        opened(path)


def test_one_band_is_grey_and_colours_may_be_in_any_order(tmp_path):
    grey = picture(30, 40, 1)
    with opened(make_geotiff(tmp_path / "grey.tif", grey)) as slide:
        np.testing.assert_array_equal(read(slide, 0, 0, 40, 30), np.repeat(grey[0][..., None], 3, 2))
    bands = picture(30, 40, 4)
    path = make_geotiff(tmp_path / "bgr.tif", bands, photometric="MINISBLACK")
    with rasterio.open(path, "r+") as file:
        names = ("blue", "green", "red", "undefined")
        file.colorinterp = [rasterio.enums.ColorInterp[name] for name in names]
    with opened(path) as slide:
        np.testing.assert_array_equal(read(slide, 0, 0, 40, 30), bands[[2, 1, 0]].transpose(1, 2, 0))


@pytest.mark.parametrize("marked", ["nodata", "mask", "alpha"])
def test_what_is_marked_absent_is_background(tmp_path, marked):
    pixels = picture(600, 700, 4 if marked == "alpha" else 3)
    inside = np.zeros((600, 700), bool)
    inside[100:560, 150:690] = True
    if marked == "alpha":
        pixels[3] = 255
        pixels[:, ~inside] = 0
        path = make_geotiff(tmp_path / "a.tif", pixels, photometric="RGB", alpha="YES")
    elif marked == "nodata":
        pixels[:, ~inside] = 0
        path = make_geotiff(tmp_path / "a.tif", pixels, nodata=0)
    else:
        path = make_geotiff(tmp_path / "a.tif", pixels, mask=inside)
    with opened(path) as slide:
        found = read(slide, 0, 0, 700, 600)
        assert (found[~inside] == 255).all()
        np.testing.assert_array_equal(found[inside], pixels[:3, inside].T)
        mask = find_foreground(slide, "data")
        np.testing.assert_array_equal(mask.mask, inside)
        assert (mask.kind, mask.method) == ("data", "data")
        grid = make_grid(slide, mask, NAIP.steps[:2], min_tissue=1.0)
        for x, y in grid.scales[0].coords:
            assert inside[y : y + 256, x : x + 256].all()
        assert (len(grid.scales[0].coords), grid.dropped) == (1, {"data": 8})


def test_black_within_an_image_is_a_colour(tmp_path):
    pixels = picture(300, 300)
    pixels[0, 50:60] = 0  # not black: the others are there
    with opened(make_geotiff(tmp_path / "a.tif", pixels, nodata=0)) as slide:
        np.testing.assert_array_equal(read(slide, 0, 0, 300, 300), pixels.transpose(1, 2, 0))


def test_near_infrared_that_is_called_alpha_hides_nothing(tmp_path):
    pixels = picture(300, 300, 4)
    pixels[3, 10:20] = 0  # water
    path = make_geotiff(tmp_path / "a.tif", pixels, photometric="RGB", alpha="YES")
    with opened(path) as slide:
        np.testing.assert_array_equal(read(slide, 0, 0, 300, 300), pixels[:3].transpose(1, 2, 0))
        assert find_foreground(slide, "data").mask.all()


@pytest.mark.parametrize(
    ("overviews", "levels"), [("average", 3), ("bilinear", 3), ("cubic", 3), ("nearest", 1), (None, 1)]
)
def test_overviews_serve_where_they_are_means(tmp_path, overviews, levels):
    pixels = picture(513, 770)  # sizes that overviews do not divide
    plain = make_geotiff(tmp_path / "plain.tif", pixels)
    path = make_geotiff(tmp_path / "overviews.tif", pixels, overviews=overviews)
    with opened(path) as slide, opened(plain) as exact:
        assert slide.source.level_count == levels
        for box, size in (((0, 0, 512, 512), 256), ((256, 64, 256, 256), 64), ((3, 5, 400, 400), 100)):
            found, expected = (s.read(*box, [(size, size)])[0].astype(int) for s in (slide, exact))
            assert np.abs(found - expected).mean() < 3  # the noise has a deviation of 6, so of 8 between two pixels


def test_overviews_through_jpeg_are_recognised(tmp_path):
    options = {"compress": "jpeg", "photometric": "YCBCR", "interleave": "pixel"}
    noise = np.random.default_rng(0).normal(0, 25, (3, 600, 800))
    rough = np.clip(picture(600, 800) + noise, 0, 255).astype(np.uint8)
    for overviews, levels in (("average", 3), ("nearest", 1)):
        path = make_geotiff(tmp_path / f"{overviews}.tif", rough, overviews=overviews, **options)
        with opened(path) as slide:
            assert slide.source.level_count == levels


def test_a_file_that_is_no_image_and_an_unknown_reader(tmp_path, aerial):
    (tmp_path / "no.tif").write_bytes(b"II*\0 nothing")
    with pytest.raises(SlideUnreadableError, match=r"no\.tif: GDAL does not open it"):
        opened(tmp_path / "no.tif")
    with pytest.raises(SlideUnreadableError, match="no such file"):
        opened(tmp_path / "absent.tif")
    with pytest.raises(ConfigurationError, match=r"no reader 'geo'\. Use one of openslide, geotiff"):
        Slide.open(aerial, reader="geo")


def test_a_file_that_names_other_files_is_not_followed(tmp_path, aerial):
    """A VRT may lead anywhere, and GDAL recognises it under any name."""
    with rasterio.open(aerial) as source:
        width, height, transform = source.width, source.height, ",".join(map(str, source.transform.to_gdal()))
    path = tmp_path / "a.tif"
    path.write_text(
        f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}"><GeoTransform>{transform}</GeoTransform>'
        f'<VRTRasterBand dataType="Byte" band="1"><SimpleSource><SourceFilename>{aerial}</SourceFilename>'
        "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    with rasterio.open(path) as followed:
        assert followed.read(1).any()  # GDAL itself does
    with pytest.raises(SlideUnreadableError, match="GDAL does not open it"):
        Slide.open(path, mpp=0.5, reader="geotiff")


def test_without_rasterio_the_extra_is_named(aerial, monkeypatch):
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(ConfigurationError, match=r"pip install 'zoomfeat\[satellite\]'"):
        opened(aerial)


def test_places_on_the_map_are_rasterios(aerial):
    with opened(aerial) as slide, rasterio.open(aerial) as file:
        where = slide.georeference
        assert where == Georeference(UTM, tuple(file.transform[:6]))
        corners = np.array([[0, 0], [700, 600], [256, 512]])
        expected = [file.transform @ (x, y) for x, y in corners.tolist()]
        np.testing.assert_allclose(where.to_map(corners), expected, rtol=0, atol=1e-9)
        longitude, latitude = rasterio.warp.transform(file.crs, "EPSG:4326", *np.transpose(expected))
        np.testing.assert_allclose(where.to_lonlat(corners), np.column_stack([longitude, latitude]), atol=1e-12)
        smaller = where.scaled(2, 4)
        np.testing.assert_allclose(smaller.to_map([[350, 150]]), where.to_map([[700, 600]]))


def test_ground_sizes_are_those_of_the_sphere_of_geodesy():
    """A degree on WGS 84: 110,574 m of latitude and 111,320 m of longitude at the equator, 111,412 m at 60 degrees."""
    degree = Georeference("EPSG:4326", (1.0, 0, 0, 0, -1.0, 0.5))
    (east, south), *_ = module._ground_sizes(degree, 1, 1)
    assert (east, south) == pytest.approx((111_320, 110_574), rel=1e-4)
    north = Georeference("EPSG:4326", (1.0, 0, 0, 0, -1.0, 60.5))
    assert module._ground_sizes(north, 1, 1)[0] == pytest.approx((55_800, 111_412), rel=1e-4)


@pytest.mark.shared_data
@pytest.mark.parametrize("year", ["20140720", "20170827"])
def test_real_naip(shared, year):
    path = shared / "satellite" / f"m_4709963_se_14_1_{year}.tif"
    with opened(path) as slide, rasterio.open(path) as file:
        assert slide.mpp == (5e6, 5e6)
        assert slide.source.level_count == 1, "its overview is every other pixel"
        np.testing.assert_array_equal(
            read(slide, 0, 0, slide.width, slide.height), file.read([1, 2, 3]).transpose(1, 2, 0)
        )
        np.testing.assert_allclose(slide.georeference.to_map([[0, 0]]), [file.transform @ (0, 0)])


@pytest.mark.shared_data
def test_real_naip_whose_near_infrared_is_called_alpha(shared):
    path = shared / "satellite" / "m_3907833_nw_17_1_naip-new.tif"
    with opened(path) as slide:
        assert slide.mpp == pytest.approx((23_592_307.7, 29_461_538.5))
        expected = rasterio.open(path).read([1, 2, 3]).transpose(1, 2, 0)
        np.testing.assert_array_equal(read(slide, 0, 0, 260, 260), expected)


@pytest.mark.shared_data
def test_the_nodata_border_of_a_real_landsat_scene(shared):
    path = shared / "satellite" / "RGB.byte.tif"
    with opened(path) as slide:
        mask = find_foreground(slide, "data")
        np.testing.assert_array_equal(mask.mask, rasterio.open(path).dataset_mask() > 0)


@pytest.mark.shared_data
def test_a_real_file_that_opens_and_does_not_decode(shared):
    with opened(shared / "satellite" / "corrupt.tif") as slide:
        with pytest.raises(
            SlideUnreadableError, match=r"corrupt\.tif: the region .* does not decode \(.*TIFFReadEncoded"
        ):
            find_foreground(slide, "data")
        with pytest.raises(
            SlideUnreadableError, match=r"corrupt\.tif: the region .* does not decode \(.*TIFFReadEncoded"
        ):
            slide.read(0, 0, 1024, 1024, [(256, 256)])

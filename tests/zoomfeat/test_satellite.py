"""Images on the map to bags: patches that lie where the map says, at two scales, in a domain from a file."""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import yaml

from tests.geotiffs import DOMAIN, make_geotiff, picture, rasterio
from zoomfeat.bags import Bag, convert, inspect_table, validate
from zoomfeat.cli import main
from zoomfeat.domains import load_domain
from zoomfeat.encoders import load_encoder
from zoomfeat.georeference import WGS84
from zoomfeat.magnification import NAIP
from zoomfeat.slides import Slide
from zoomfeat.slides.synthetic import make_slide

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "satellite.md"


@pytest.fixture
def third(tmp_path) -> str:
    path = tmp_path / "aerial-5m.yaml"
    path.write_text(DOMAIN)
    return str(path)


def extract(*words: object) -> int:
    return main(["extract", *map(str, words), "encoder=color-stats", "preview=false"])


def report(out: Path) -> pd.Series:
    return pd.read_csv(out / "report.csv", keep_default_na=False).iloc[0]


def check_bag(path: Path, image: Path) -> None:
    """Every patch's corners go through the CRS to longitude and latitude and back to the pixels of the file."""
    validate(path)
    bag = Bag.open(path)
    where = bag.metadata.georeference
    with rasterio.open(image) as file, Slide.open(image, reader=bag.metadata.slide_reader) as slide:
        assert rasterio.CRS.from_user_input(where.crs) == file.crs
        for scale in bag.scales:
            corners = np.concatenate([scale.coords, scale.coords + scale.patch_size_level0])
            x, y = rasterio.warp.transform(WGS84, file.crs, *where.to_lonlat(corners).T)
            back = np.array([~file.transform @ point for point in zip(x, y, strict=True)])
            assert np.abs(back - corners).max() < 0.5
            metres = np.array(scale.patch_size_level0) * np.abs([file.transform.a, file.transform.e])
            np.testing.assert_allclose(metres, 256 * scale.mpp / 1e6, rtol=0.0025)
            row = len(scale) // 2
            (patch,) = slide.read(*scale.coords[row].tolist(), *scale.patch_size_level0, [(256, 256)])
            np.testing.assert_allclose(
                scale.features[row], load_encoder("color-stats", device="cpu")(patch[None])[0], rtol=1e-5
            )


def test_aerial_images_of_0_6_m_at_two_scales(tmp_path):
    image = make_geotiff(tmp_path / "aerial.tif", picture(1800, 2200, 4), metres=0.6)
    assert extract(f"slides={image}", f"out={tmp_path / 'bags'}", "domain=naip") == 0
    bag = Bag.open(tmp_path / "bags" / "aerial.h5")
    assert bag.magnifications == ("1x", "3x")
    assert [scale.patch_size_level0 for scale in bag.scales] == [(427, 427), (1708, 1708)]
    assert bag.metadata.tissue_method == "data"
    assert bag.metadata.configuration["domain"] == {
        "name": "naip", "reader": "geotiff", "foreground": "data", "finest_mpp": 1e6
    }  # fmt: skip
    assert inspect_table(tmp_path / "bags" / "aerial.h5")
    check_bag(tmp_path / "bags" / "aerial.h5", image)


def test_crs_and_transform_lie_with_the_coordinates(tmp_path):
    image = make_geotiff(tmp_path / "a.tif", picture(600, 600))
    extract(f"slides={image}", f"out={tmp_path / 'bags'}", "domain=naip", "magnifications=[1x,2x]")
    with h5py.File(tmp_path / "bags" / "a.h5") as file:
        for name in ("coords", "coords_2x"):
            assert file[name].attrs["crs"] == "EPSG:26914"
            np.testing.assert_array_equal(file[name].attrs["transform"], [1, 0, 500_000, 0, -1, 5_200_000])
        assert file["coords"].attrs["target_magnification"] == 1
        assert file["coords"].attrs["level0_magnification"] == 1
    with h5py.File(tmp_path / "bags" / "a.h5", "r+") as file:
        file["coords"].attrs["transform"] = [1.0, 2.0]
    with pytest.raises(Exception, match=r"a\.h5: crs 'EPSG:26914' and transform \[1.0, 2.0\], expected a text and six"):
        Bag.open(tmp_path / "bags" / "a.h5")


def test_a_third_domain_is_a_file(tmp_path, third):
    image = make_geotiff(tmp_path / "coarse.tif", picture(700, 900), metres=5)
    assert extract(f"slides={image}", f"out={tmp_path / 'bags'}", f"domain={third}") == 0
    bag = Bag.open(tmp_path / "bags" / "coarse.h5")
    assert [(scale.magnification, scale.mpp, len(scale)) for scale in bag.scales] == [("1x", 5e6, 11), ("2x", 1e7, 4)]
    check_bag(tmp_path / "bags" / "coarse.h5", image)
    assert extract(f"slides={image}", f"out={tmp_path / 'bags'}", f"domain={third}") == 0
    assert report(tmp_path / "bags").status == "exists"


def test_coarser_pixels_than_asked_for_are_refused_with_their_size(tmp_path):
    image = make_geotiff(tmp_path / "coarse.tif", picture(700, 900), metres=5)
    assert extract(f"slides={image}", f"out={tmp_path / 'bags'}", "domain=naip") == 1
    assert (
        "its pixels are 5 m x 5 m (from the metadata), too coarse for 1x, which takes at most 1.1 m"
        in report(tmp_path / "bags").error
    )
    assert extract(f"slides={image}", f"out={tmp_path / 'bags'}", "domain=naip", "magnifications=[4x]") == 0
    assert Bag.open(tmp_path / "bags" / "coarse.h5").scales[0].patch_size_level0 == (410, 410)


def test_slides_of_histology_have_no_domain_in_their_bags(tmp_path):
    make_slide(tmp_path / "slide.tiff", seed=0, size=(600, 600), mpp=0.5)
    assert extract(f"slides={tmp_path / 'slide.tiff'}", f"out={tmp_path / 'bags'}", "min_tissue=0.1") == 0
    bag = Bag.open(tmp_path / "bags" / "slide.h5")
    assert bag.magnifications == ("20x", "5x")
    assert "domain" not in bag.metadata.configuration
    assert bag.metadata.georeference is None
    assert bag.metadata.slide_reader == "openslide"


@pytest.mark.parametrize("layout", ["trident", "clam", "stamp", "torchmil"])
def test_other_tools_files_mean_the_magnifications_of_the_domain(tmp_path, layout):
    image = make_geotiff(tmp_path / "a.tif", picture(600, 1100))
    extract(f"slides={image}", f"out={tmp_path / 'bags'}", "domain=naip", "magnifications=[1x,3x]")
    bag = Bag.open(tmp_path / "bags" / "a.h5")
    convert(tmp_path / "bags", tmp_path / layout, layout)
    words = ["mpp=1e6"] if layout == "stamp" else []
    words = ["convert", f"source={tmp_path / layout}", f"layout={layout}", f"out={tmp_path / 'back'}", *words]
    assert main([*words, "domain=naip"]) == 0
    back = Bag.open(tmp_path / "back" / "a.h5")
    assert [(scale.magnification, scale.mpp) for scale in back.scales] == [("1x", 1e6), ("3x", 4e6)]
    np.testing.assert_array_equal(back.coords, bag.coords)
    np.testing.assert_array_equal(back.parent("3x"), bag.parent("3x"))


def test_an_unknown_domain_ends_the_run_before_any_image_is_opened(tmp_path, capsys):
    assert extract("slides=absent", f"out={tmp_path / 'bags'}", "domain=mars") == 2
    assert "no domain 'mars'. Use one of brca, naip, or the path of a YAML file" in capsys.readouterr().err


def test_the_guides_domain_works_as_it_is_printed(tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert yaml.safe_load(text) == yaml.safe_load(DOMAIN)
    (tmp_path / "mine.yaml").write_text(text)
    assert load_domain(tmp_path / "mine.yaml").ladder["2x"].mpp == 1e7
    assert load_domain(tmp_path / "mine.yaml").ladder["2x"] != NAIP["2x"]


@pytest.mark.shared_data
@pytest.mark.parametrize("year", ["20140720", "20170827"])
def test_real_aerial_images_at_two_scales(shared, tmp_path, third, year):
    image = shared / "satellite" / f"m_4709963_se_14_1_{year}.tif"
    assert extract(f"slides={image}", f"out={tmp_path / 'bags'}", f"domain={third}") == 0
    bag = Bag.open(tmp_path / "bags" / f"{image.stem}.h5")
    assert [(scale.magnification, len(scale)) for scale in bag.scales] == [("1x", 12), ("2x", 4)]
    check_bag(tmp_path / "bags" / f"{image.stem}.h5", image)


@pytest.mark.shared_data
def test_the_nodata_border_of_a_real_scene_gives_no_patches(shared, tmp_path):
    image = shared / "satellite" / "RGB.byte.tif"
    finer = yaml.safe_load(DOMAIN) | {"ladder": {"names": ["1x", "2x"], "finest": "300 m"}}
    (tmp_path / "landsat.yaml").write_text(yaml.safe_dump(finer))
    words = f"slides={image}", f"out={tmp_path / 'bags'}", f"domain={tmp_path / 'landsat.yaml'}"
    assert extract(*words, "min_tissue=0.99") == 0
    bag = Bag.open(tmp_path / "bags" / "RGB.byte.h5")
    present = rasterio.open(image).dataset_mask() > 0
    shares = [present[y : y + 256, x : x + 256].sum() / 256**2 for x, y in bag.coords]
    assert len(shares) >= 1
    assert min(shares) > 0.98
    assert bag.metadata.dropped == {"data": 12 - len(shares)}


@pytest.mark.shared_data
def test_a_damaged_file_and_one_without_a_place_are_rows_of_the_report(shared, tmp_path):
    assert extract(f"slides={shared / 'satellite' / 'corrupt.tif'}", f"out={tmp_path / 'bags'}", "domain=naip") == 1
    row = report(tmp_path / "bags")
    assert (row.status, row.stage) == ("failed", "tissue")
    assert "corrupt.tif: the region" in row.error
    assert "does not decode" in row.error
    assert "Copy the file again" in row.cure
    bare = make_geotiff(tmp_path / "bare.tif", picture(300, 300), crs=None)
    assert extract(f"slides={bare}", f"out={tmp_path / 'bags'}", "domain=naip") == 1
    row = report(tmp_path / "bags")
    assert (row.status, row.stage) == ("failed", "open")
    assert row.error.endswith("bare.tif: the file has no georeference, so the size of its pixels is unknown")
    assert "gdal_translate -a_srs" in row.cure

"""What explain leaves of an image on the map: polygons and heatmaps that lie where the image lies."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mil.attention import ScaleAttention, SlideAttention
from mil.estimators import MILClassifier
from mil.report import write_geojson
from tests.geotiffs import DOMAIN, make_geotiff, picture, rasterio
from zoomfeat.bags import Bag
from zoomfeat.cli import main
from zoomfeat.georeference import WGS84
from zoomfeat.slides import Slide


def maps(images: Path, out: Path) -> Path:
    """Bags of all images of a folder, a model over them, and its maps."""
    (out / "aerial-5m.yaml").write_text(DOMAIN)
    words = ["encoder=color-stats", f"domain={out / 'aerial-5m.yaml'}", "preview=false"]
    assert main(["extract", f"slides={images}", f"out={out / 'bags'}", *words]) == 0
    paths = sorted((out / "bags").glob("*.h5"))
    MILClassifier(seed=0, epochs=3, width=8).fit(paths, np.arange(len(paths)) % 2).save(out / "model.safetensors")
    words = [f"bags={out / 'bags'}", f"slides={images}", f"out={out / 'maps'}", "bootstrap=0"]
    assert main(["explain", f"model={out / 'model.safetensors'}", *words]) == 0
    return out / "maps"


def check_geojson(path: Path, image: Path, table: pd.DataFrame) -> None:
    """Polygons in WGS 84 (RFC 7946), each on its patch to half a pixel."""
    content = json.loads(path.read_text())
    assert set(content) == {"type", "features"}, "RFC 7946 has no crs member"
    features = content["features"]
    assert [f["properties"]["percentile"] for f in features] == pytest.approx(table.percentile.tolist())
    with rasterio.open(image) as file:
        for feature, patch in zip(features, table.itertuples(), strict=True):
            (ring,) = feature["geometry"]["coordinates"]
            assert ring[0] == ring[-1]
            longitude, latitude = np.transpose(ring)
            assert (np.diff(longitude) * (latitude[1:] + latitude[:-1])).sum() < 0, "counter-clockwise"
            back = np.array(
                [
                    ~file.transform @ p
                    for p in zip(*rasterio.warp.transform(WGS84, file.crs, longitude, latitude), strict=True)
                ]
            )
            right, bottom = patch.x + patch.width, patch.y + patch.height
            corners = {(patch.x, patch.y), (right, patch.y), (right, bottom), (patch.x, bottom)}
            assert {(round(x), round(y)) for x, y in back} == corners
            assert np.abs(back - back.round()).max() < 0.5
            assert feature["properties"]["magnification"] == patch.magnification


def check_heatmap(path: Path, image: Path, table: pd.DataFrame, picture_of_slide: Path) -> None:
    """It covers the image exactly, and at the map position of each patch has what the PNG shows there."""
    with rasterio.open(path) as heat, rasterio.open(image) as file:
        assert heat.crs == file.crs
        np.testing.assert_allclose(heat.bounds, file.bounds, atol=1e-6)
        assert [c.name for c in heat.colorinterp] == ["red", "green", "blue", "alpha"]
        colours = {}
        for patch in table.itertuples():
            at = file.transform @ (
                min(patch.x + patch.width / 2, file.width - 1),
                min(patch.y + patch.height / 2, file.height - 1),
            )
            (found,) = heat.sample([at])
            assert found[3] == 255
            colours[tuple(found[:3].tolist())] = patch.percentile
            thumbnail = np.asarray(Image.open(picture_of_slide)).astype(int)
            column, row = (int(v) for v in ~heat.transform @ at)
            (below,) = file.sample([at])
            # In the PNG the map lies over the image at half its opacity, here by itself.
            np.testing.assert_allclose(thumbnail[row, column], (found[:3].astype(int) + below[:3]) / 2, atol=2)
        assert len(colours) > 1
        mask = heat.read(4)
        assert mask[0, 0] == 255


def check(out: Path, image: Path) -> None:
    table = pd.read_csv(out / f"{image.stem}.csv")
    check_geojson(out / f"{image.stem}.geojson", image, table)
    for name, rows in table.groupby("magnification"):
        check_heatmap(out / f"{image.stem}_{name}.tif", image, rows, out / f"{image.stem}_{name}.png")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Two images of 5 m, ``made-0.tif`` and ``made-1.tif``, with bags, a model and maps."""
    root = tmp_path_factory.mktemp("made")
    (root / "images").mkdir()
    for number in range(2):
        make_geotiff(root / "images" / f"made-{number}.tif", picture(700, 900, seed=number), metres=5)
    maps(root / "images", root)
    return root


@pytest.mark.parametrize("number", [0, 1])
def test_maps_of_made_images_lie_on_the_map(made, number):
    check(made / "maps", made / "images" / f"made-{number}.tif")


def test_a_bag_alone_is_enough_for_the_map(made, tmp_path):
    words = [f"model={made / 'model.safetensors'}", f"bags={made / 'bags' / 'made-0.h5'}", "bootstrap=0"]
    assert main(["explain", *words, f"out={tmp_path}"]) == 0
    for name in ("made-0.geojson", "made-0_1x.tif"):
        assert (tmp_path / name).read_bytes() == (made / "maps" / name).read_bytes()


def test_rows_that_run_northwards_keep_polygons_counter_clockwise(tmp_path):
    image = make_geotiff(tmp_path / "up.tif", picture(520, 520), metres=(5, -5))
    with Slide.open(image, reader="geotiff") as slide:
        where = slide.georeference
    scale = ScaleAttention("1x", np.array([[0, 0], [256, 128]]), (256, 256), np.array([0.25, 0.75]))
    attention = SlideAttention("up", (scale,), (520, 520), True, (5e6, 5e6), where)
    write_geojson(attention, tmp_path / "up.geojson")
    check_geojson(tmp_path / "up.geojson", image, attention.table())


@pytest.mark.shared_data
def test_maps_of_real_aerial_images_lie_on_the_map(shared, tmp_path):
    (tmp_path / "images").mkdir()
    images = sorted((shared / "satellite").glob("m_4709963*.tif"))
    for image in images:
        (tmp_path / "images" / image.name).symlink_to(image)
    out = maps(tmp_path / "images", tmp_path)
    assert len(Bag.open(tmp_path / "bags" / f"{images[0].stem}.h5")) == 12
    for image in images:
        check(out, image)

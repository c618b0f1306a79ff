"""The reader: our sets, stand-ins of the released demo data sets, and files that are damaged."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from datasets import Array3D, Dataset, Features, Image, Value
from PIL import Image as PillowImage
from torch.utils.data import DataLoader

from generation.commands.prepare import run
from generation.data import TrainingSet, pooled
from zoomfeat.conf.compose import compose_config
from zoomfeat.errors import MagnificationError, ZoomfeatError
from zoomfeat.magnification import NAIP
from zoomfeat.slides.synthetic import make_slide

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (3, 256, 256, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A small set: one slide, four magnifications, colour statistics for embeddings, no latents."""
    folder = tmp_path_factory.mktemp("data")
    make_slide(folder / "slide.tiff", seed=3, size=(1500, 1400), mpp=0.5)
    words = [f"slides={folder / 'slide.tiff'}", f"out={folder / 'set'}", "ssl_encoder=color-stats"]
    words += ["magnifications=[20x,10x,2.5x,1.25x]", "min_tissue_coarsest=1e-4"]
    assert run(compose_config("prepare", words)) == 0
    return folder / "set"


@pytest.fixture
def copied(prepared, tmp_path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "set"))


def released(folder: Path, rows: list[dict], features: Features | None = None) -> Path:
    """A stand-in of a demo data set, written by `datasets` itself."""
    folder.mkdir(exist_ok=True)
    Dataset.from_list(rows, features=features).to_parquet(folder / "train-00000-of-00001.parquet")
    return folder


def test_rows_know_their_magnification_and_slide(prepared):
    data = TrainingSet.open(prepared)
    assert len(data) == sum(data.counts.values()) == len(data.slides)
    assert list(data.counts) == ["20x", "10x", "2.5x", "1.25x"]
    assert data.embedding_dim == 6
    for index, magnification in enumerate(data.magnifications):
        sample = data[index]
        side = {0: 1, 1: 2, 3: 8, 4: 8}[magnification]
        assert sample.magnification == magnification
        assert (sample.image.shape, sample.image.dtype) == ((256, 256, 3), np.uint8)
        assert (sample.grid.shape, sample.grid.dtype) == ((6, side, side), np.float32)
        assert sample.latent is None
        assert sample.slide == data.slides[index] == "slide"
    assert data.configuration["ssl_encoder"] == "color-stats"


def test_rows_are_those_of_the_image_that_they_describe(prepared):
    data = TrainingSet.open(prepared)
    for index in np.flatnonzero(data.magnifications == 0):
        pixels = data[index].image.reshape(-1, 3) / 255
        statistics = np.concatenate([pixels.mean(0), pixels.std(0)])
        np.testing.assert_allclose(data[index].grid[:, 0, 0], statistics, atol=1e-3)


def test_places_beyond_the_end_are_refused(prepared):
    data = TrainingSet.open(prepared)
    for index in (-1, len(data)):
        with pytest.raises(IndexError):
            data[index]
    assert len(list(data)) == len(data)


def test_workers_of_a_loader_read_it(prepared):
    data = TrainingSet.open(prepared)
    assert len(pickle.dumps(data)) < 10_000
    loader = DataLoader(data, batch_size=4, num_workers=2, collate_fn=lambda samples: [s.grid.sum() for s in samples])
    assert np.concatenate([*loader]).tolist() == [sample.grid.sum() for sample in data]


@pytest.mark.parametrize("magnification", [0, "20x", "20", "20_0x", 20.0])
def test_released_names_of_a_magnification(tmp_path, magnification):
    row = {"image": PillowImage.fromarray(IMAGES[0]), "ssl_feat": np.ones((5, 1, 1)), "mag": magnification}
    data = TrainingSet.open(released(tmp_path, [row]))
    assert data.counts == {"20x": 1}
    np.testing.assert_array_equal(data[0].image, IMAGES[0])


def test_a_released_set_of_several_magnifications(tmp_path):
    sides = {"0_3125x": 8, "0.15625": 8, "10x": 2}
    rows = [
        {"image": PillowImage.fromarray(image), "ssl_feat": RNG.normal(size=(5, side, side)), "mag": name}
        for image, (name, side) in zip(IMAGES, sides.items(), strict=True)
    ]
    data = TrainingSet.open(released(tmp_path, rows))
    assert data.magnifications.tolist() == [6, 7, 1]
    assert data.slides == ["", "", ""]
    for index, row in enumerate(rows):
        assert (data[index].latent, data[index].slide) == (None, "")
        np.testing.assert_array_equal(data[index].image, IMAGES[index])
        np.testing.assert_allclose(data[index].grid, row["ssl_feat"], rtol=1e-6)


def test_aerial_embeddings_with_channels_last(tmp_path):
    features = Features(
        {"image": Image(), "ssl_feat": Array3D((4, 4, 5), "float32"), "mag": Value("int64")}
    )  # an extension type of Arrow, and of `datasets`, which is imported here
    grids = RNG.normal(size=(3, 4, 4, 5)).astype(np.float32)
    rows = [{"image": PillowImage.fromarray(i), "ssl_feat": g, "mag": 2} for i, g in zip(IMAGES, grids, strict=True)]
    data = TrainingSet.open(released(tmp_path, rows, features), NAIP)
    assert data.counts == {"3x": 3}
    for index, grid in enumerate(grids):
        np.testing.assert_array_equal(data[index].grid, grid.transpose(2, 0, 1))


def test_unpooled_embeddings_serve_where_there_are_no_others(tmp_path):
    grid = RNG.normal(size=(5, 16, 16)).astype(np.float32)
    rows = [{"image": PillowImage.fromarray(IMAGES[0]), "ssl_feat_unpooled": grid, "mag": "1.25x"}]
    sample = TrainingSet.open(released(tmp_path, rows))[0]
    np.testing.assert_allclose(sample.grid, grid.reshape(5, 8, 2, 8, 2).mean(axis=(2, 4)), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(sample.grid, pooled(grid))


@pytest.mark.parametrize("channels_first", [False, True])
@pytest.mark.parametrize(
    "stored",
    [lambda image: image, lambda image: image / 255, lambda image: (image / 127.5 - 1).astype(np.float32)],
    ids=["uint8", "0 to 1", "-1 to 1"],
)
def test_images_that_are_arrays(tmp_path, stored, channels_first):
    pixels = stored(IMAGES[0].transpose(2, 0, 1) if channels_first else IMAGES[0])
    data = TrainingSet.open(released(tmp_path, [{"image": pixels, "ssl_feat": np.ones((5, 1, 1)), "mag": 0}]))
    np.testing.assert_array_equal(data[0].image, IMAGES[0])


def test_a_data_set_that_was_saved_to_disk(tmp_path):
    rows = [{"image": PillowImage.fromarray(i), "ssl_feat": np.ones((5, 1, 1)), "mag": "20x"} for i in IMAGES]
    Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    data = TrainingSet.open(tmp_path / "saved")
    assert [np.array_equal(sample.image, image) for sample, image in zip(data, IMAGES, strict=True)] == [True] * 3


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"ssl_feat": np.ones((5, 1, 1)), "mag": 0}, "no column 'image'"),
        ({"image": IMAGES[0], "mag": 0}, "no column 'ssl_feat_unpooled'"),
        ({"image": IMAGES[0], "ssl_feat": np.ones((5, 1, 1))}, "no column 'mag'"),
        ({"image": IMAGES[0][:64], "ssl_feat": np.ones((5, 1, 1)), "mag": 0}, "an image of shape"),
        ({"image": IMAGES[0], "ssl_feat": np.ones((5, 3, 3)), "mag": 1}, r"shape \(5, 3, 3\) at 10x"),
    ],
)
def test_a_foreign_set_that_does_not_fit(tmp_path, row, message):
    with pytest.raises(ZoomfeatError, match=message) as refused:
        _ = TrainingSet.open(released(tmp_path, [row]))[0].image
    assert "train-00000-of-00001.parquet" in refused.value.problem
    assert refused.value.cure


def test_an_unknown_magnification(tmp_path):
    rows = [{"image": PillowImage.fromarray(IMAGES[0]), "ssl_feat": np.ones((5, 1, 1)), "mag": "40x"}]
    with pytest.raises(MagnificationError, match="40x"):
        TrainingSet.open(released(tmp_path, rows))


def test_a_truncated_shard_is_named(copied):
    shard = copied / "data" / "10x" / "slide.arrow"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ZoomfeatError, match=r"10x/slide\.arrow: damaged: \d+ bytes, where \d+ were written") as refused:
        TrainingSet.open(copied)
    assert "zoomfeat prepare" in refused.value.cure


def test_a_missing_shard_is_named(copied):
    (copied / "data" / "10x" / "slide.arrow").unlink()
    with pytest.raises(ZoomfeatError, match=r"10x/slide\.arrow: missing"):
        TrainingSet.open(copied)


def test_a_shard_whose_bytes_changed_is_named(copied):
    shard = copied / "data" / "20x" / "slide.arrow"
    content = bytearray(shard.read_bytes())
    content[-2000:] = bytes(2000)  # the footer
    shard.write_bytes(content)
    with pytest.raises(ZoomfeatError, match=r"20x/slide\.arrow: not a readable shard \([^\n]+\)") as refused:
        TrainingSet.open(copied)
    assert "\n" not in str(refused.value)


def test_an_image_that_does_not_decode_is_named(copied):
    shard = copied / "data" / "20x" / "slide.arrow"
    content = shard.read_bytes()
    shard.write_bytes(content.replace(b"IHDR", b"XXXX"))
    with pytest.raises(ZoomfeatError, match=r"20x/slide\.arrow: the image of row 0 does not decode"):
        _ = TrainingSet.open(copied)[0].image


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"counts": {}, "slides": {"a": {}}}'])
def test_a_damaged_index_is_named(copied, text):
    (copied / "index.json").write_text(text)
    with pytest.raises(ZoomfeatError, match=r"index\.json: not the index of a training set"):
        TrainingSet.open(copied)


def test_a_damaged_parquet_file_is_named(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ZoomfeatError, match=r"train\.parquet: not a readable shard"):
        TrainingSet.open(tmp_path)


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_a_folder_without_a_set(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ZoomfeatError, match="no training set"):
        TrainingSet.open(tmp_path / name)


def test_sets_side_by_side_are_one(prepared, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(prepared, tmp_path / name)
    single, both = TrainingSet.open(prepared), TrainingSet.open(tmp_path)
    assert both.counts == {name: 2 * count for name, count in single.counts.items()}
    assert np.array_equal(both[len(single) + 3].image, single[3].image)
    assert both.configuration == single.configuration
    index = tmp_path / "b" / "index.json"
    index.write_text(index.read_text().replace('"ssl_encoder": "color-stats"', '"ssl_encoder": "uni"'))
    with pytest.raises(ZoomfeatError, match="another ssl_encoder side by side: a and b"):
        TrainingSet.open(tmp_path)

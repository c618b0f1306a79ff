from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.metrics import RandomCrops, features_of, load_extractor
from benchmarks.metrics.images import ImageArray, ImageFiles, batches
from tests.benchmarks.metrics.images import drawn, write
from zoomfeat.errors import ConfigurationError, MagnificationError
from zoomfeat.slides.synthetic import draw_tissue, make_slide


@pytest.fixture(scope="module")
def slides(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("slides")
    for seed in (1, 2):
        make_slide(folder / f"{seed}.tiff", seed=seed, size=(1024, 768), mpp=0.5)
    return sorted(folder.glob("*.tiff"))


def test_crops_are_what_lies_there(tmp_path) -> None:
    image = draw_tissue((400, 300), 0.5, 0)
    Image.fromarray(image).save(tmp_path / "image.png")
    crops = RandomCrops([tmp_path / "image.png"], per_image=5, size=64)
    found = [crop for _, crop in crops]
    assert len(found) == len(crops) == 5
    for crop in found:
        corners = np.argwhere((image[: 300 - 63, : 400 - 63] == crop[0, 0]).all(2))
        assert any((image[y : y + 64, x : x + 64] == crop).all() for y, x in corners)


def test_places_depend_on_seed_and_name_only(slides) -> None:
    def taken(**options) -> dict[str, bytes]:
        return {key: crop.tobytes() for key, crop in RandomCrops(per_image=3, size=64, **options)}

    both = taken(paths=slides)
    assert len(both) == 6
    assert taken(paths=slides[::-1]) == both
    assert taken(paths=slides[:1]) | taken(paths=slides[1:]) == both
    assert set(taken(paths=slides, seed=1).values()) != set(both.values())


def test_shards_of_slides_merge_to_one_pass(slides) -> None:
    extractor = load_extractor("color-stats", device="cpu")
    whole = features_of(RandomCrops(slides, per_image=4), extractor)
    first, second = (features_of(RandomCrops([path], per_image=4), extractor) for path in slides)
    merged = second.merge(first)
    np.testing.assert_array_equal(merged.sample, whole.sample)
    np.testing.assert_allclose(merged.moments.scatter, whole.moments.scatter, rtol=1e-9)
    assert whole.view == "256 px crops"


def test_crops_at_a_physical_size(tmp_path, slides) -> None:
    ((_, crop),) = RandomCrops(slides[:1], per_image=1, size=64, mpp=1.0)
    assert crop.shape == (64, 64, 3)
    assert RandomCrops(slides, size=64, mpp=1.0).view == "64 px crops at 1 um/px"
    with pytest.raises(ConfigurationError, match=r"crops at 0\.25 um/px would be magnified"):
        list(RandomCrops(slides, size=64, mpp=0.25))
    Image.new("RGB", (80, 80)).save(tmp_path / "plain.png")
    with pytest.raises(MagnificationError, match=r"plain\.png"):
        list(RandomCrops([tmp_path / "plain.png"], size=64, mpp=1.0))


def test_images_smaller_than_a_crop_are_refused(tmp_path) -> None:
    Image.new("RGB", (80, 60)).save(tmp_path / "small.png")
    with pytest.raises(ConfigurationError, match=r"small\.png: 80 x 60 px; a crop covers 64 x 64"):
        list(RandomCrops([tmp_path / "small.png"], size=64))
    with pytest.raises(ConfigurationError, match="0 crops of 64 px"):
        RandomCrops([], per_image=0, size=64)


@pytest.mark.shared_data
def test_crops_of_a_real_slide(shared) -> None:
    path = shared / "slides" / "CMU-1-Small-Region.svs"
    crops = [crop for _, crop in RandomCrops([path], per_image=3, mpp=0.998)]
    assert all(crop.shape == (256, 256, 3) and crop.std() > 5 for crop in crops)


def test_files_are_read_by_name_as_they_are(tmp_path) -> None:
    images = drawn(3, 0)
    folder = write(tmp_path / "images", images)
    (folder / "notes.txt").write_text("no image")
    found = dict(ImageFiles.of(folder))
    assert list(found) == ["images/0000.png", "images/0001.png", "images/0002.png"]
    np.testing.assert_array_equal(np.stack(list(found.values())), images)


def test_batches_hold_images_of_one_size() -> None:
    sizes = [(4, 4), (4, 4), (4, 4), (6, 4), (4, 4)]

    class Mixed:
        view = ""

        def __len__(self) -> int:
            return 5

        def __iter__(self):
            return iter((str(i), np.zeros((*size, 3), np.uint8)) for i, size in enumerate(sizes))

    assert [(keys, images.shape) for keys, images in batches(Mixed(), 2)] == [
        (["0", "1"], (2, 4, 4, 3)), (["2"], (1, 4, 4, 3)), (["3"], (1, 6, 4, 3)), (["4"], (1, 4, 4, 3)),
    ]  # fmt: skip


def test_what_is_no_set_of_images_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigurationError, match="gone: no such folder"):
        ImageFiles.of(tmp_path / "gone")
    with pytest.raises(ConfigurationError, match="holds no image"):
        ImageFiles.of(tmp_path)
    with pytest.raises(ConfigurationError, match=r"images of float64 \(2, 8, 8, 3\); expected uint8"):
        ImageArray(np.zeros((2, 8, 8, 3)))

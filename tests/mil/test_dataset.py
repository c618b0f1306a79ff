"""Bags from every kind of source, what is read ahead of them, and what is refused."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import torch

from mil.batches import BagReader, Sampling, make_batch, read_batches
from mil.dataset import Instances, check_same_encoder, load_instances, probe
from mil.moments import feature_moments
from tests.mil.bags import make_bag, saved
from zoomfeat.bags import convert
from zoomfeat.errors import BagInvalidError, ConfigurationError, MagnificationError, ZoomfeatError


@pytest.fixture
def bag(rng):
    return make_bag(rng.normal(size=(20, 5)), rng.normal(size=(2, 4)))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_a_bag_in_memory_and_on_disk_are_one(bag, tmp_path):
    path = saved(bag, tmp_path)
    for source in (bag, path, str(path)):
        instances = load_instances(source)
        assert instances.scales == ("20x", "5x")
        assert len(instances) == 20
        np.testing.assert_array_equal(instances.fused(), bag.fused())
        facts = probe([source])
        assert facts.widths == {"20x": 5, "5x": 4}
        assert facts.counts.tolist() == [[20, 2]]
        assert facts.encoder == {"name": "encoder", "weights_hash": "a1"}


def test_one_magnification_of_several(bag):
    coarse = load_instances(bag, ["5x"])
    np.testing.assert_array_equal(coarse.fused(), bag.scale("5x").features)
    assert load_instances(bag, ["5x", "20x"]).scales == ("20x", "5x"), "finest first, however they were named"
    assert load_instances(load_instances(bag), ["5x"]).scales == ("5x",)
    with pytest.raises(MagnificationError, match=r"no magnification 10x .* holds 20x, 5x"):
        load_instances(bag, ["20x", "10x"])


def test_one_magnification_is_read_without_the_rest_of_the_file(bag, tmp_path, monkeypatch):
    path = saved(bag, tmp_path)
    monkeypatch.setattr("mil.dataset.hdf5.read", lambda path: pytest.fail(f"{path} was read as a whole"))
    for name in ("20x", "5x"):
        alone = load_instances(path, [name])
        assert (alone.scales, dict(alone.parents)) == ((name,), {})
        np.testing.assert_array_equal(alone.fused(), bag.scale(name).features)


def test_parents_between_coarser_magnifications_follow_from_the_coordinates(rng):
    from dataclasses import replace

    whole = make_bag(rng.normal(size=(16, 3)), rng.normal(size=(1, 3)))
    middle = replace(
        whole.scales[0],
        magnification="10x",
        mpp=1.0,
        patch_size_level0=(512, 512),
        coords=np.array([[0, 0], [512, 0], [0, 512], [512, 512]]),
        features=rng.normal(size=(4, 3)).astype(np.float32),
    )
    parents = np.array([0, 0, 1, 1] * 2 + [2, 2, 3, 3] * 2, dtype=np.int32)
    three = replace(
        whole, scales=(whole.scales[0], middle, whole.scales[1]), parents={"10x": parents, "5x": whole.parents["5x"]}
    )
    instances = load_instances(three, ["10x", "5x"])
    assert instances.parents["5x"].tolist() == [0, 0, 0, 0]
    assert instances.fused().shape == (4, 6)


@pytest.mark.parametrize("layout", ["trident", "clam", "stamp", "torchmil"])
def test_files_of_other_tools(bag, tmp_path, layout, rng):
    from dataclasses import replace

    known = replace(bag, metadata=replace(bag.metadata, mpp_level0=(0.5, 0.5), level0_width=9000, level0_height=9000))
    saved(known, tmp_path)
    (conversion,) = convert(tmp_path / "slide.h5", tmp_path / "out", to=layout, features="20x")
    assert conversion.error is None
    files = [path for path in conversion.written if path.parent.name not in ("patches", "coords", "level0_boxes")]
    assert files
    for path in files:
        instances = load_instances(path)
        assert instances.scales == ("",)
        np.testing.assert_allclose(instances.features[""], bag.features, atol=2e-3 if layout == "stamp" else 0)
        assert probe([path]).widths == {"": 5}


def test_matrices(tmp_path, rng):
    matrix = rng.normal(size=(4, 3))
    np.save(tmp_path / "a.npy", matrix)
    torch.save(torch.from_numpy(matrix).half(), tmp_path / "b.pt")
    for source in (matrix, tmp_path / "a.npy", tmp_path / "b.pt", matrix.astype(np.float16)):
        loaded = load_instances(source).features[""]
        assert loaded.dtype == np.float32
        np.testing.assert_allclose(loaded, matrix, atol=2e-3)
        assert probe([source]).counts.tolist() == [[4]]
    assert probe([matrix]).encoder is None


def test_bad_files(tmp_path, rng):
    (tmp_path / "noise.h5").write_bytes(b"no HDF5")
    (tmp_path / "noise.pt").write_bytes(b"no tensor")
    (tmp_path / "noise.npy").write_bytes(b"no array")
    torch.save({"a": 1}, tmp_path / "dict.pt")
    with h5py.File(tmp_path / "group.h5", "w") as file:
        file.create_group("features")
    with h5py.File(tmp_path / "empty.h5", "w") as file:
        file["features"] = np.zeros((0, 4), np.float32)
    names = ["noise.h5", "noise.pt", "noise.npy", "dict.pt", "group.h5", "empty.h5"]
    names += ["absent.h5", "absent.pt", "absent.npy"]
    for name in names:
        for read in (load_instances, lambda path: probe([path])):
            with pytest.raises(BagInvalidError, match=name):
                read(tmp_path / name)


@pytest.mark.parametrize("damage", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite(tmp_path, rng, damage):
    matrix = rng.normal(size=(30, 4)).astype(np.float32)
    matrix[7, 2] = matrix[9, 1] = damage
    np.save(tmp_path / "slide.npy", matrix)
    with pytest.raises(BagInvalidError, match=r"slide\.npy: 2 of 30 feature rows are not finite, the first is row 7"):
        load_instances(tmp_path / "slide.npy")
    assert probe([tmp_path / "slide.npy"]).widths == {"": 4}, "headers alone do not say"
    large = np.full((30, 4), 3e38, np.float32)
    assert len(load_instances(large)) == 30, "finite, though its sum is not"


def test_cohorts_that_do_not_fit_together(tmp_path, rng):
    with pytest.raises(ConfigurationError, match="length 4, expected length 3 as in the first bag"):
        probe([np.ones((2, 3)), np.ones((2, 4))])
    with pytest.raises(ConfigurationError, match="no bag"):
        probe([])
    first = make_bag(rng.normal(size=(3, 2)))
    with pytest.raises(ConfigurationError, match=r"encoder other, expected encoder"):
        probe([first, make_bag(rng.normal(size=(3, 2)), encoder="other")])
    with pytest.raises(ConfigurationError, match=r"weights_hash 'b2'.*weights_hash 'a1'"):
        probe([first, make_bag(rng.normal(size=(3, 2)), weights_hash="b2")])
    unknown = make_bag(rng.normal(size=(3, 2)), encoder="unknown")
    assert probe([unknown, first]).encoder == {"name": "encoder", "weights_hash": "a1"}
    assert probe([first, make_bag(rng.normal(size=(3, 2)), weights_hash="unknown")]).widths == {"20x": 2}
    with pytest.raises(MagnificationError, match="5x"):
        probe([make_bag(rng.normal(size=(3, 2)), rng.normal(size=(1, 2))), first])
    for shape in ((0, 3), (3, 0), (3,), (1, 2, 3)):
        with pytest.raises(ZoomfeatError, match="expected"):
            probe([np.ones(shape)])


def test_batches_are_padded_and_masked(rng):
    bags = [rng.normal(size=(count, 3)).astype(np.float32) for count in (4, 1, 6)]
    reader = BagReader(bags, ("",), "early")
    first, second = read_batches(reader, [np.array([2, 1]), np.array([0])])
    assert first.bags.tolist() == [1, 2], "by size"
    (part,) = first.parts
    assert part.features[0].shape == (2, 6, 3)
    assert part.masks[0].sum(dim=1).tolist() == [1, 6]
    np.testing.assert_array_equal(part.features[0][0, 0], bags[1][0])
    assert not part.features[0][0, 1:].any()
    assert second.bags.tolist() == [0]


def test_large_bags_are_not_padded(rng):
    matrices = [[rng.normal(size=(count, 1)).astype(np.float32)] for count in (5000, 3, 3000, 2, 1000)]
    batch = make_batch(np.arange(5) + 10, matrices)
    assert batch.bags.tolist() == [13, 11, 14, 12, 10]
    assert [tuple(part.features[0].shape[:2]) for part in batch.parts] == [(3, 1000), (1, 3000), (1, 5000)]
    assert np.shares_memory(batch.parts[-1].features[0].numpy(), matrices[0][0])


def test_batches_from_disk_equal_those_from_memory(tmp_path, rng):
    sizes = (5, 40, 17)
    bags = [make_bag(rng.normal(size=(n, 3)), rng.normal(size=(3, 2)), slide_id=f"s{n}") for n in sizes]
    paths = [saved(bag, tmp_path) for bag in bags]
    groups = [np.array([0, 2]), np.array([1])]
    sampling = Sampling(max_instances=10, dropout=0.2)
    for fusion in ("early", "late"):
        kinds = [
            list(read_batches(BagReader(sources, ("20x", "5x"), fusion), groups, sampling, (3, 1)))
            for sources in (paths, bags, [load_instances(bag) for bag in bags])
        ]
        for batches in zip(*kinds, strict=True):
            for other in batches[1:]:
                for mine, theirs in zip(batches[0].parts, other.parts, strict=True):
                    for branch in range(len(mine.features)):
                        assert torch.equal(mine.features[branch], theirs.features[branch])
                        assert torch.equal(mine.masks[branch], theirs.masks[branch])


def test_a_damaged_file_stops_the_reading(tmp_path, rng):
    np.save(tmp_path / "good.npy", rng.normal(size=(3, 2)))
    reader = BagReader([tmp_path / "good.npy", tmp_path / "absent.npy"], ("",), "early")
    with pytest.raises(BagInvalidError, match="absent"):
        list(read_batches(reader, [np.array([0]), np.array([1])]))


def test_sampling_keeps_at_least_one_and_at_most_what_it_may():
    rng = np.random.default_rng(0)
    assert Sampling().rows(5, rng) is None
    assert Sampling(max_instances=5).rows(5, rng) is None
    assert len(Sampling(max_instances=3).rows(100, rng)) == 3
    kept = [len(Sampling(dropout=0.25).rows(1000, rng)) for _ in range(50)]
    assert 740 < np.mean(kept) < 760
    assert all(len(rows) == 1 for rows in [Sampling(dropout=0.99).rows(2, rng) for _ in range(20)] if rows is not None)
    rows = Sampling(max_instances=50).rows(100, rng)
    assert (np.diff(rows) > 0).all()


def test_moments_weigh_bags_alike(rng):
    bags = [rng.normal(1000, 2, size=(count, 3)).astype(np.float32) for count in (1, 5000, 7)]
    for bag in bags:
        bag[:, 2] = 7.1
    reader = BagReader(bags, ("",), "early")
    (mean,), (deviation,) = feature_moments(reader, np.arange(3), np.arange(0))
    each = np.array([bag.astype(np.float64).mean(axis=0) for bag in bags])
    squares = np.array([(bag.astype(np.float64) ** 2).mean(axis=0) for bag in bags])
    np.testing.assert_allclose(mean, each.mean(axis=0), rtol=1e-6)
    expected = np.sqrt(squares.mean(axis=0) - each.mean(axis=0) ** 2)
    np.testing.assert_allclose(deviation[:2], expected[:2], rtol=1e-3)
    assert deviation[2] == 1, "a constant feature stays as it is"


def test_features_too_large_to_be_squared():
    reader = BagReader([np.full((3, 2), 3e38, np.float32) * np.array([[1], [0], [1]], np.float32)], ("",), "early")
    with pytest.raises(ConfigurationError, match=r"3e\+38, too large"):
        feature_moments(reader, np.arange(1), np.arange(0))


def test_moments_of_each_magnification(rng):
    bags = [make_bag(rng.normal(3, 2, size=(20, 5)), rng.normal(-1, 1, size=(2, 4))) for _ in range(3)]
    early = feature_moments(BagReader(bags, ("20x", "5x"), "early"), np.arange(3), np.arange(0))
    late = feature_moments(BagReader(bags, ("20x", "5x"), "late"), np.arange(3), np.arange(0))
    assert [values.shape for values in early[0]] == [(9,)]
    assert [values.shape for values in late[0]] == [(5,), (4,)]
    np.testing.assert_array_equal(early[1][0], np.concatenate(late[1]))


def test_make_batch_of_instances():
    instances = Instances(
        {"20x": np.ones((3, 2), np.float32), "5x": np.ones((1, 4), np.float32)}, {"5x": np.zeros(3, int)}
    )
    reader = BagReader([instances], instances.scales, "late")
    batch = make_batch(np.array([0]), [reader.read(0)])
    assert [values.shape for values in batch.parts[0].features] == [(1, 3, 2), (1, 1, 4)]


def test_settings_that_another_tool_does_not_state_are_no_difference():
    ours = {"name": "uni", "weights_hash": "abc", "input_size": 224}
    theirs = {"name": "uni", "weights_hash": "unknown"}
    check_same_encoder(theirs, ours, "a.h5")
    check_same_encoder(ours, theirs, "a.h5")
    with pytest.raises(ConfigurationError, match="features of encoder"):
        check_same_encoder(theirs | {"name": "phikon"}, ours, "a.h5")
    with pytest.raises(ConfigurationError, match="features of encoder"):
        check_same_encoder(ours | {"taps": ["mid"]}, ours, "a.h5")

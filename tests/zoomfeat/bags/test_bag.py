"""A bag in memory and on disk: the exact layout, the round trip, and what a bag refuses to be."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zoomfeat.bags import Bag, BagMetadata, ScaleFeatures, StoredScale, validate
from zoomfeat.errors import BagInvalidError, ConfigurationError, MagnificationError, ZoomfeatError


def test_layout_is_the_specified_one(saved, make_bag):
    bag = make_bag()
    with h5py.File(saved(bag)) as file:
        assert set(file) == {"features", "coords", "features_5x", "coords_5x", "parent_5x"}
        assert {name: (file[name].dtype.str, file[name].chunks) for name in file} == {
            "features": ("<f4", None),
            "features_5x": ("<f4", None),
            "coords": ("<i8", None),
            "coords_5x": ("<i8", None),
            "parent_5x": ("<i4", None),
        }
        np.testing.assert_array_equal(file["features"][:], bag.features)
        np.testing.assert_array_equal(file["parent_5x"][:], bag.parent("5x"))
        assert file.attrs["schema"] == "zoomfeat-bag/1"
        assert file.attrs["complete"]
        assert file.attrs["encoder"] == "zoomldm"
        np.testing.assert_array_equal(file.attrs["mpp_level0"], (0.2528, 0.2528))


def test_attributes_are_those_that_trident_and_clam_read(saved, make_bag):
    bag = make_bag()
    with h5py.File(saved(bag)) as file:
        found = {name: dict(file[name].attrs) for name in ("coords", "coords_5x", "features")}
    assert found["features"] == {"name": bag.metadata.slide_id, "savetodir": "."}
    for name, target, level0 in (("coords", 20, 506), ("coords_5x", 5, 2024)):
        attributes = found[name]
        assert attributes.pop("patch_size_level0_xy").tolist() == [level0, level0]
        assert attributes.pop("mpp_level0").tolist() == [0.2528, 0.2528]
        assert attributes == {
            "patch_size": 256,
            "patch_size_level0": level0,
            "level0_magnification": 40,
            "target_magnification": target,
            "overlap": 0,
            "name": bag.metadata.slide_id,
            "savetodir": ".",
            "level0_width": bag.metadata.level0_width,
            "level0_height": bag.metadata.level0_height,
            "patch_level": 0,
            "custom_downsample": 1,
            "mpp": 10 / target,
        }


@pytest.mark.parametrize(
    ("mpp", "expected"), [(0.25, 40), (0.5, 20), (0.2325, 43), (0.31, 32), (0.5019, 20), (8.0, 1.2)]
)
def test_level0_magnification_is_the_physical_one(saved, make_bag, mpp, expected):
    path = saved(make_bag(mpp_level0=(mpp, mpp), magnifications=("0.625x",)))
    with h5py.File(path) as file:
        assert file["coords"].attrs["level0_magnification"] == expected


def test_three_scales_with_dotted_names(saved, make_bag, assert_same_scales):
    bag = make_bag(("5x", "1.25x", "0.3125x"), tiles=(2, 1))
    path = saved(bag)
    with h5py.File(path) as file:
        assert {"features_1.25x", "coords_0.3125x", "parent_0.3125x"} < set(file)
        assert file["coords"].attrs["target_magnification"] == 5
        assert file["coords_0.3125x"].attrs["target_magnification"] == 0.3125
    opened = Bag.open(path)
    assert_same_scales(opened, bag)
    assert opened.magnifications == ("5x", "1.25x", "0.3125x")


def test_single_scale(saved, make_bag, assert_same_scales):
    bag = make_bag(("5x",))
    opened = Bag.open(saved(bag))
    assert_same_scales(opened, bag)
    np.testing.assert_array_equal(opened.fused(), bag.features)
    with pytest.raises(MagnificationError, match="5x is the finest"):
        opened.parent("5x")


def test_anisotropic_pixels_keep_both_sides(saved, make_bag):
    opened = Bag.open(saved(make_bag(mpp_level0=(0.25, 0.27))))
    assert opened.scale("20x").patch_size_level0 == (512, 474)
    assert opened.metadata.mpp_level0 == (0.25, 0.27)


def test_fused_is_each_patch_with_its_parents(saved, make_bag):
    bag = make_bag(("20x", "10x", "5x"))
    fused = Bag.open(saved(bag)).fused()
    assert fused.shape == (len(bag), 96)
    assert fused.dtype == np.float32
    row = 7
    expected = [
        bag.features[row],
        bag.scale("10x").features[bag.parent("10x")[row]],
        bag.scale("5x").features[bag.parent("5x")[row]],
    ]
    np.testing.assert_array_equal(fused[row], np.concatenate(expected))


def test_metadata_comes_back(saved, make_bag):
    bag = make_bag(note="random weights, for demonstration only", configuration={"long": "x" * 200_000})
    assert Bag.open(saved(bag)).metadata == bag.metadata


def test_unknown_um_per_px_and_size_are_marked(saved, make_bag):
    bag = make_bag(mpp_level0=None, level0_width=None, level0_height=None)
    path = saved(bag)
    with h5py.File(path) as file:
        assert file.attrs["mpp_level0"] == file["coords"].attrs["level0_width"] == "unknown"
    assert Bag.open(path).metadata == bag.metadata


def test_opening_reads_no_features(saved):
    path = saved()
    bag = Bag.open(path)
    assert all(isinstance(scale, StoredScale) for scale in bag.scales)
    assert len(pickle.dumps(bag)) < 20_000 + bag.coords.nbytes * 3
    path.unlink()
    assert len(bag.coords) == len(bag)
    with pytest.raises(BagInvalidError, match="no such file"):
        _ = bag.features


def test_a_bag_replaced_after_opening_is_noticed(saved, make_bag):
    bag = Bag.open(saved(make_bag(dim=32)))
    saved(make_bag(dim=16))
    with pytest.raises(BagInvalidError, match="shape"):
        _ = bag.features


def test_float16_halves_the_file_and_reads_as_float32(saved, make_bag):
    bag = make_bag(dim=512)
    full = saved(bag).stat().st_size
    path = saved(bag, dtype="float16")
    assert path.stat().st_size < 0.6 * full
    opened = Bag.open(path)
    assert opened.features.dtype == opened.fused().dtype == np.float32
    np.testing.assert_allclose(opened.features, bag.features, atol=1e-2)
    validate(path)


def test_float16_refuses_values_it_cannot_hold(tmp_path, make_bag):
    bag = make_bag(("20x",))
    bag.features[3, 3] = 1e5
    with pytest.raises(ConfigurationError, match="do not fit float16"):
        bag.save(tmp_path / "a.h5", dtype="float16")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigurationError, match="dtype 'float64'"):
        bag.save(tmp_path / "a.h5", dtype="float64")


def test_saving_twice_gives_the_same_bytes(tmp_path, make_bag):
    make_bag().save(tmp_path / "a.h5")
    make_bag().save(tmp_path / "b.h5")
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


@pytest.mark.parametrize("folder", ["missing", "file"])
def test_a_folder_that_is_none_gives_one_line(tmp_path, make_bag, folder):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ZoomfeatError, match=r"a\.h5: cannot be written .*\. Check that its folder") as caught:
        make_bag().save(tmp_path / folder / "a.h5")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_gives_one_line(tmp_path, make_bag):
    tmp_path.chmod(0o500)
    with pytest.raises(ZoomfeatError, match="cannot be written"):
        make_bag().save(tmp_path / "a.h5")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a file system that refuses new files")
def test_a_file_system_that_refuses_gives_one_line(make_bag):
    with pytest.raises(ZoomfeatError, match="cannot be written"):
        make_bag().save(Path("/proc/zoomfeat.h5"))


def test_a_full_disk_gives_one_line_and_leaves_nothing(tmp_path, saved, make_bag):
    """A limit on the size of files stands for the disk, in a process of its own since it cannot be lifted."""
    script = """
import resource, signal, sys
from zoomfeat.bags import Bag, convert
from zoomfeat.errors import ZoomfeatError

bag = Bag.open(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
writers = [lambda: bag.save(sys.argv[2] + "/a.h5")]
writers += [lambda to=to: convert(sys.argv[1], sys.argv[2] + "/out", to=to) for to in ("clam", "torchmil")]
for write in writers:
    try:
        write()
    except ZoomfeatError as error:
        print(error)
"""
    command = [sys.executable, "-c", script, str(saved(make_bag(dim=512))), str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3])
    lines = run.stdout.splitlines()
    assert (len(lines), run.returncode) == (3, 0), run.stderr
    assert all("cannot be written" in line and "space left" in line for line in lines)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.parent.name != "bags"]


def test_an_error_leaves_the_old_bag(saved, make_bag):
    bag = make_bag()
    path = saved(bag)
    worse = make_bag()
    worse.scales[1].features[0] = 1e6
    with pytest.raises(ConfigurationError):
        worse.save(path, dtype="float16")
    validate(path)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def _scale(**changes):
    parts = {
        "magnification": "20x",
        "features": np.zeros((2, 4), np.float32),
        "coords": np.array([[0, 0], [512, 0]]),
        "patch_size_level0": (512, 512),
        "mpp": 0.5,
    }
    return ScaleFeatures(**(parts | changes))


_METADATA = BagMetadata(slide_id="a", encoder="uni", level0_width=900, level0_height=500)
_PARENT = _scale(magnification="5x", features=np.ones((1, 4), np.float32), coords=np.zeros((1, 2), np.int64), mpp=2.0)


@pytest.mark.parametrize(
    ("scales", "parents", "message"),
    [
        ((), {}, "without any magnification"),
        ((_scale(magnification="fine"),), {}, "magnification 'fine', expected a name such as 20x"),
        ((_scale(coords=np.zeros((2, 2), np.int32)),), {}, "int32 .*, expected int64"),
        ((_scale(coords=np.zeros((2, 3), np.int64)),), {}, r"expected int64 \(N, 2\)"),
        ((_scale(coords=np.zeros((0, 2), np.int64)),), {}, "no patch at 20x"),
        ((_scale(features=np.zeros((3, 4), np.float32)),), {}, r"features are float32 \(3, 4\), expected float32 \(2"),
        ((_scale(features=np.zeros((2, 4))),), {}, "features are float64"),
        ((_scale(features=np.full((2, 4), np.nan, np.float32)),), {}, "2 of 2 20x feature rows are not finite"),
        ((_scale(patch_size_level0=(0, 512)),), {}, "expected positive sizes"),
        ((_scale(coords=np.array([[0, 0], [900, 0]])),), {}, r"row 1 at \(900, 0\), expected coordinates within"),
        ((_scale(coords=np.array([[-1, 0], [0, 0]])),), {}, "start outside the slide"),
        ((_PARENT, _scale()), {}, "expected distinct ones, finest first"),
        ((_scale(), _scale()), {}, "expected distinct ones, finest first"),
        ((_scale(), _PARENT), {}, r"parents for \[\], expected \['5x'\]"),
        ((_scale(), _PARENT), {"5x": np.zeros(2, np.int64)}, "parent_5x is int64"),
        ((_scale(), _PARENT), {"5x": np.zeros(3, np.int32)}, r"expected int32 \(2,\)"),
        ((_scale(), _PARENT), {"5x": np.array([0, 1], np.int32)}, "holds rows 0 to 1, expected 0 to 0"),
        ((_scale(), _PARENT), {"5x": np.zeros(2, np.int32)}, "1 patches do not lie in their 5x parent, .* row 1"),
    ],
)
def test_contradictions_are_refused(scales, parents, message):
    with pytest.raises(BagInvalidError, match=message):
        Bag(scales, parents, metadata=_METADATA)


@pytest.mark.parametrize("slide_id", ["../up", "a/b", "", ".hidden", ".."])
def test_slide_ids_that_lead_elsewhere_are_refused(slide_id):
    with pytest.raises(BagInvalidError, match="expected a plain file name"):
        replace(_METADATA, slide_id=slide_id)


def test_a_magnification_that_is_not_there_is_named(make_bag):
    with pytest.raises(MagnificationError, match=r"no magnification '10x' .*Use one of 20x, 5x"):
        make_bag().scale("10x")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    magnifications=st.lists(
        st.sampled_from(["20x", "10x", "5x", "2.5x", "1.25x"]), min_size=1, max_size=3, unique=True
    ).map(lambda names: tuple(sorted(names, key=lambda name: -float(name[:-1])))),
    mpp=st.tuples(st.floats(0.2, 0.55), st.floats(0.2, 0.55)),
    dim=st.integers(1, 20),
    seed=st.integers(0, 1000),
    note=st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=30),
)
def test_what_is_saved_is_what_opens(tmp_path, make_bag, assert_same_scales, magnifications, mpp, dim, seed, note):
    bag = make_bag(magnifications, mpp_level0=mpp, dim=dim, seed=seed, tiles=(2, 1), note=note)
    path = tmp_path / "a.h5"
    bag.save(path)
    validate(path)
    opened = Bag.open(path)
    assert_same_scales(opened, bag)
    assert opened.metadata == bag.metadata
    np.testing.assert_array_equal(opened.fused(), bag.fused())

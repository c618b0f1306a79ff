"""Whatever is wrong with a folder of bags is found, named, and fails the command."""

from __future__ import annotations

import shutil

import h5py
import numpy as np
import pytest

from zoomfeat.cli import main
from zoomfeat.slides.synthetic import make_slide


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Bags of two slides by two encoders, and by one, as the command line makes them."""
    folder = tmp_path_factory.mktemp("verify")
    (folder / "slides").mkdir()
    for number in range(2):
        make_slide(folder / "slides" / f"s{number}.tiff", seed=number, size=(2300, 2100))
    common = ["extract", f"slides={folder / 'slides'}", "preview=false"]
    assert main([*common, f"out={folder / 'one'}", "encoder=color-stats"]) == 0
    assert main([*common, f"out={folder / 'two'}", "encoders=[color-stats,resnet-random]", "magnifications=[5x]"]) == 0
    return folder


@pytest.fixture
def out(made, tmp_path, capsys):
    shutil.copytree(made / "one", tmp_path / "out")
    capsys.readouterr()
    return tmp_path / "out"


def wrong(out, capsys) -> str:
    """What ``verify`` says of a folder with something wrong, on one line."""
    assert main(["verify", str(out)]) == 1
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_a_good_run_passes(made, out, capsys):
    assert main(["verify", str(out)]) == 0
    assert "2 bags checked, 0 files" in capsys.readouterr().out
    assert main(["verify", str(made / "two")]) == 0
    assert "4 bags checked, 0 files" in capsys.readouterr().out
    assert main(["verify", str(out / "s0.h5")]) == 0
    assert "1 bag checked, 0 files not as they should be." in capsys.readouterr().out


def test_a_feature_that_is_no_number(out, capsys):
    with h5py.File(out / "s0.h5", "r+") as file:
        file["features"][3, 1] = np.nan
    assert "s0.h5" in wrong(out, capsys)


def test_coordinates_outside_the_slide(out, capsys):
    with h5py.File(out / "s1.h5", "r+") as file:
        file["coords_5x"][0] = (10**6, 0)
    assert "2 bags checked, 1 file not as it should be." in wrong(out, capsys)


def test_a_configuration_that_was_changed(out, capsys):
    with h5py.File(out / "s0.h5", "r+") as file:
        file.attrs["configuration"] = file.attrs["configuration"].replace('"min_tissue": 0.5', '"min_tissue": 0.4')
    assert "hash" in wrong(out, capsys)


def test_a_truncated_file(out, capsys):
    with (out / "s0.h5").open("r+b") as file:
        file.truncate(4096)
    assert "s0.h5" in wrong(out, capsys)


def test_a_bag_under_another_name(out, capsys):
    (out / "s0.h5").rename(out / "other.h5")
    text = wrong(out, capsys)
    assert "holds the slide s0" in text
    assert "reported as done" in text


def test_a_bag_of_one_encoder_is_missing(made, tmp_path, capsys):
    shutil.copytree(made / "two", tmp_path / "two")
    (tmp_path / "two" / "resnet-random" / "s1.h5").unlink()
    capsys.readouterr()
    assert "resnet-random/s1.h5" in wrong(tmp_path / "two", capsys)


def test_what_a_killed_run_left(out, capsys):
    (out / ".s0.h5.123.abcd.tmp").write_bytes(b"half")
    assert "left behind" in wrong(out, capsys)


def test_a_folder_without_bags(tmp_path, capsys):
    assert main(["verify", str(tmp_path)]) == 2
    assert "holds no .h5 file" in capsys.readouterr().err


def test_what_is_not_there_is_an_error_and_no_bag(tmp_path, capsys):
    assert main(["verify", str(tmp_path / "bagz")]) == 2
    captured = capsys.readouterr()
    assert captured.err == (
        f"zoomfeat: {tmp_path}/bagz: no such file or folder. Give a bag, or the out= folder of an extraction.\n"
    )
    assert not captured.out

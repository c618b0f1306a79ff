"""The training set on disk is what the slide's pixels, the encoder and the first stage say, however it was made."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

from generation.commands.prepare import claimed, run
from generation.data import TrainingSet
from generation.index import INDEX, Index
from generation.prepare import FirstStage, Tools, check_config, prepare_slide, tissue_thresholds
from generation.pyramid import Patch
from zoomfeat.cli import main
from zoomfeat.conf.compose import compose_config
from zoomfeat.conf.schema import PrepareConfig
from zoomfeat.encoders import PatchEncoder, load_encoder
from zoomfeat.encoders.zoomldm import TINY
from zoomfeat.errors import ConfigurationError, ZoomfeatError
from zoomfeat.magnification import BRCA
from zoomfeat.models.zoomldm import ZoomLDM
from zoomfeat.slides import Slide, SlideEntry, find_tissue
from zoomfeat.slides.synthetic import make_slide


@pytest.fixture(scope="session")
def slide_folder(tmp_path_factory) -> Path:
    """Two small synthetic slides: 20x, and one whose 20x patches are no whole number of its pixels."""
    folder = tmp_path_factory.mktemp("slides")
    make_slide(folder / "even.tiff", seed=0, size=(2300, 2100), mpp=0.5)
    make_slide(folder / "odd.tiff", seed=1, size=(2600, 2200), mpp=0.2639)
    return folder


@pytest.fixture
def prepare_config(tmp_path) -> Callable[..., PrepareConfig]:
    """A configuration of ``prepare`` as the command line composes it; keeps everything with a trace of tissue."""

    def make(slides: Path, *words: str, out: str = "set", ssl_encoder: str = "color-stats") -> PrepareConfig:
        (tmp_path / out).mkdir(exist_ok=True)
        common = [f"slides={slides}", f"out={tmp_path / out}", f"ssl_encoder={ssl_encoder}"]
        return compose_config("prepare", [*common, "min_tissue_coarsest=1e-4", *words])

    return make


@pytest.fixture(scope="session")
def prepared(slide_folder, tmp_path_factory) -> Path:
    """A whole set of both slides, with efficientnet-lite0 and the tiny first stage."""
    out = tmp_path_factory.mktemp("prepared")
    words = [f"slides={slide_folder}", f"out={out}", "ssl_encoder=efficientnet-lite0", "first_stage=zoomldm-tiny"]
    assert run(compose_config("prepare", [*words, "min_tissue_coarsest=1e-4"])) == 0
    return out


def table(folder: Path, magnification: str, slide: str) -> list[dict]:
    with pa.memory_map(str(folder / "data" / magnification / f"{slide}.arrow")) as source:
        return pa.ipc.open_file(source).read_all().to_pylist()


def image(row: dict) -> np.ndarray:
    return cv2.cvtColor(cv2.imdecode(np.frombuffer(row["image"]["bytes"], np.uint8), 1), cv2.COLOR_BGR2RGB)


def read(path: Path, row: dict, cells: int) -> np.ndarray:
    """The 20x patches under a row, (cells, cells, 256, 256, 3), read from level 0 by themselves."""
    side = 256 * cells
    with Slide.open(path) as slide:
        (canvas,) = slide.read(row["x"], row["y"], row["width"], row["height"], sizes=[(side, side)])
    return canvas.reshape(cells, 256, cells, 256, 3).swapaxes(1, 2)


def same_rows(a: TrainingSet, b: TrainingSet) -> None:
    assert a.counts == b.counts
    for one, other in zip(a, b, strict=True):
        assert (one.slide, one.magnification) == (other.slide, other.magnification)
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.grid, other.grid)


@pytest.mark.parametrize("slide", ["even", "odd"])
@pytest.mark.parametrize(("magnification", "cells"), [("20x", 1), ("5x", 4), ("1.25x", 16)])
def test_images_are_area_means_of_the_slide(prepared, slide_folder, slide, magnification, cells):
    rows = table(prepared, magnification, slide)
    for row in rows[:: max(1, len(rows) // 3)]:
        under = read(slide_folder / f"{slide}.tiff", row, cells).swapaxes(1, 2).reshape(256 * cells, 256 * cells, 3)
        means = under.reshape(256, cells, 256, cells, 3).mean(axis=(1, 3))
        assert np.abs(image(row) - means).max() <= 0.5 + 1e-9
        with Slide.open(slide_folder / f"{slide}.tiff") as opened:
            box = (row["x"], row["y"], row["width"], row["height"])
            ours = opened.read(*box, sizes=[(256 * min(cells, 4), 256 * min(cells, 4)), (256, 256)])[1]
        assert np.abs(image(row).astype(int) - ours).mean() <= 1.0


def test_a_coarse_image_is_the_mean_of_the_stored_finer_ones(slide_folder, prepare_config):
    config = prepare_config(
        slide_folder / "even.tiff", "min_tissue=0", "min_tissue_coarsest=0", "magnifications=20x,5x"
    )
    assert run(config) == 0
    finer = {(row["x"], row["y"]): image(row) for row in table(Path(config.out), "20x", "even")}
    complete = 0
    for row in table(Path(config.out), "5x", "even"):
        step = row["width"] // 4
        corners = [(row["x"] + c * step, row["y"] + r * step) for r in range(4) for c in range(4)]
        if all(corner in finer for corner in corners):
            complete += 1
            rows = [np.concatenate([finer[c] for c in corners[i : i + 4]], axis=1) for i in range(0, 16, 4)]
            means = np.concatenate(rows).reshape(256, 4, 256, 4, 3).mean(axis=(1, 3))
            assert np.abs(image(row) - means).max() <= 1
    assert complete == 4


def test_grids_are_the_encoders_of_the_20x_patches(prepared, slide_folder):
    encoder = load_encoder("efficientnet-lite0", device="cpu")
    (row,) = table(prepared, "2.5x", "odd")  # 5.4 x 4.5 patches large: part of the region lies beyond the slide
    patches = read(slide_folder / "odd.tiff", row, 8)
    expected = encoder(patches.reshape(-1, 256, 256, 3)).T.reshape(1280, 8, 8)
    np.testing.assert_allclose(np.array(row["ssl_feat_unpooled"]), expected, rtol=2e-3, atol=2e-3)
    np.testing.assert_array_equal(row["ssl_feat"], row["ssl_feat_unpooled"])
    assert (patches[-1, -1] == 255).all()


def test_coarse_grids_hold_the_finer_ones_and_are_pooled(prepared):
    (coarse,) = table(prepared, "0.625x", "even")
    grid, pooled = np.array(coarse["ssl_feat_unpooled"]), np.array(coarse["ssl_feat"])
    assert (grid.shape, pooled.shape) == ((1280, 32, 32), (1280, 8, 8))
    for row in table(prepared, "20x", "even"):
        cell = row["y"] // row["height"], row["x"] // row["width"]
        np.testing.assert_array_equal(grid[:, *cell], np.array(row["ssl_feat"])[:, 0, 0])
    np.testing.assert_allclose(pooled, grid.reshape(1280, 8, 4, 8, 4).mean(axis=(2, 4)), atol=2e-3)
    white = load_encoder("efficientnet-lite0", device="cpu")(np.full((1, 256, 256, 3), 255, np.uint8))[0]
    np.testing.assert_allclose(grid[:, -1, -1], white, rtol=2e-3, atol=2e-3)


def test_latents_are_the_first_stages(prepared):
    data, bundle = TrainingSet.open(prepared), ZoomLDM.load(TINY)
    for index in range(0, len(data), 40):
        pixels = FirstStage(bundle.vae, "cpu")(data[index].image[None])
        np.testing.assert_array_equal(data[index].latent, pixels[0].astype(np.float32))
    assert data[0].latent.shape == (4, 32, 32)


@pytest.mark.parametrize("orientation", range(8))
def test_a_turned_patch_keeps_its_embeddings_over_their_pixels(orientation):
    pixels = np.random.default_rng(0).integers(0, 255, (256, 256, 3), np.uint8)
    means = pixels.reshape(4, 64, 4, 64, 3).mean(axis=(1, 3)).transpose(2, 0, 1).astype(np.float16)
    turned = Patch(BRCA["5x"], 0, 0, 1024, 1024, pixels, means).turned(orientation)
    again = turned.image.reshape(4, 64, 4, 64, 3).mean(axis=(1, 3)).transpose(2, 0, 1).astype(np.float16)
    np.testing.assert_array_equal(turned.grid, again)
    assert turned.orientation == orientation


def test_eight_orientations_are_eight_rows_with_latents_of_their_own(slide_folder, prepare_config):
    config = prepare_config(
        slide_folder / "odd.tiff", "magnifications=2.5x", "orientations=8", "first_stage=zoomldm-tiny"
    )
    assert run(config) == 0
    rows = table(Path(config.out), "2.5x", "odd")
    assert [row["orientation"] for row in rows] == list(range(8))
    assert len({row["image"]["bytes"] for row in rows}) == 8
    first_stage = FirstStage(ZoomLDM.load(TINY).vae, "cpu")
    for row in rows:
        np.testing.assert_array_equal(row["latent"], first_stage(image(row)[None])[0])
    assert Index.load(Path(config.out)).counts == {"2.5x": 8}


@pytest.mark.parametrize("slide", ["even", "odd"])
def test_more_origins_give_more_coarse_patches_and_embed_nothing_twice(
    slide_folder, prepare_config, monkeypatch, slide
):
    path = slide_folder / f"{slide}.tiff"
    encoder = load_encoder("color-stats", BRCA["20x"], device="cpu")
    embed, embedded, rows = type(encoder).__call__, {}, {}

    def counted(self, patches):
        embedded[origins] = embedded.get(origins, 0) + len(patches)
        return embed(self, patches)

    monkeypatch.setattr(type(encoder), "__call__", counted)
    for origins in (1, 16):
        config = prepare_config(
            path, "magnifications=[20x,2.5x,1.25x,0.625x]", f"origins={origins}", out=f"set-{origins}"
        )
        _, record = prepare_slide(SlideEntry(slide, path), config, Tools(encoder, None))
        rows[origins] = {
            (row["mag"], row["x"], row["y"]): row
            for step in record.counts
            for row in table(Path(config.out), step, slide)
        }
        assert len(rows[origins]) == sum(record.counts.values()), "a patch was made twice"
    touching = {"even": 9 * 9, "odd": 5 * 6}[slide]  # 20x patches that touch the slide
    assert embedded[16] <= touching + 1  # each once, and white
    levels = {origins: pd.Series([key[0] for key in found]).value_counts() for origins, found in rows.items()}
    assert (levels[16][[0, 3]] == levels[1][[0, 3]]).all()
    assert (levels[16][[4, 5]] > levels[1][[4, 5]]).all()
    for key, row in rows[1].items():
        np.testing.assert_array_equal(image(rows[16][key]), image(row))
        np.testing.assert_array_equal(rows[16][key]["ssl_feat_unpooled"], row["ssl_feat_unpooled"])
    further = [row for key, row in rows[16].items() if key not in rows[1]]
    assert any(row["x"] < 0 for row in further)
    for row in further[::3]:
        cells = 2 ** row["mag"]
        patches = read(path, row, cells)
        whole = patches.swapaxes(1, 2).reshape(256 * cells, 256 * cells, 3)
        means = whole.reshape(256, cells, 256, cells, 3).mean(axis=(1, 3))
        assert np.abs(image(row) - means).max() <= 0.5 + 1e-9
        flat = patches.reshape(-1, 256, 256, 3)
        shown = (flat != 255).any(axis=(1, 2, 3))  # most of a coarse patch is white, which is embedded once
        features = np.repeat(embed(encoder, np.full((1, 256, 256, 3), 255, np.uint8)), len(flat), axis=0)
        features[shown] = embed(encoder, flat[shown])
        expected = features.T.reshape(-1, cells, cells)
        np.testing.assert_allclose(np.array(row["ssl_feat_unpooled"]), expected, rtol=2e-3, atol=2e-3)


def test_patches_lie_on_the_aligned_grid_and_hold_enough_tissue(slide_folder, prepare_config):
    config = prepare_config(slide_folder / "odd.tiff", "min_tissue=0.6", "min_tissue_coarsest=0.01")
    assert run(config) == 0
    folder = Path(config.out)
    with Slide.open(slide_folder / "odd.tiff") as slide:
        mask = find_tissue(slide)
    for step, threshold in list(tissue_thresholds(config).items())[:4]:
        found = pd.DataFrame(table(folder, str(step), "odd"))[["x", "y", "width", "height"]].to_numpy()
        assert (found[:, 2:] == 485 * step.grid).all()  # 256 * 0.5 / 0.2639 is 485.03
        assert (found[:, :2] % found[:, 2:] == 0).all()
        size = int(found[0, 2]), int(found[0, 3])
        corners = np.array([(x, y) for y in range(0, 2200, size[1]) for x in range(0, 2600, size[0])])
        enough = mask.fraction(corners[:, 0], corners[:, 1], *size) >= threshold
        assert {*map(tuple, found[:, :2])} == {*map(tuple, corners[enough])}


def test_thresholds_fall_by_one_factor(slide_folder, prepare_config):
    config = prepare_config(slide_folder, "min_tissue_coarsest=0.1")
    thresholds = list(tissue_thresholds(config).values())
    assert thresholds == [0.5, 0.3973, 0.3157, 0.2508, 0.1993, 0.1584, 0.1258, 0.1]


def test_one_pass_equals_a_pass_per_magnification(slide_folder, prepare_config):
    together = prepare_config(slide_folder / "odd.tiff", out="together")
    run(together)
    for name in ("20x", "5x", "1.25x", "0.15625x"):
        alone = prepare_config(slide_folder / "odd.tiff", f"magnifications={name}", "batch_size=3", out=name)
        run(alone)
        assert table(Path(alone.out), name, "odd") == table(Path(together.out), name, "odd")


def test_datasets_opens_the_folder(prepared, tmp_path):
    everything = datasets.load_dataset(str(prepared), split="train", cache_dir=str(tmp_path))
    ours = TrainingSet.open(prepared)
    assert len(everything) == len(ours)
    assert sorted(set(everything["mag"])) == list(range(8))
    one = datasets.load_dataset(str(prepared), "5x", split="train", cache_dir=str(tmp_path)).with_format("numpy")
    assert one.features["ssl_feat"].shape == (1280, 4, 4)
    row = one[0]
    sample = ours[ours.magnifications.tolist().index(2)]
    np.testing.assert_array_equal(row["ssl_feat"], sample.grid)
    np.testing.assert_array_equal(row["image"], sample.image)
    np.testing.assert_array_equal(row["latent"], sample.latent)


def test_report_index_and_card_count_the_same(prepared):
    report = pd.read_csv(prepared / "report.csv")
    index = Index.load(prepared)
    assert report["slide_id"].tolist() == ["even", "odd"]
    for name, count in index.counts.items():
        assert report[f"patches_{name}"].sum() == count > 0
        assert f"| {name} | {count} |" in (prepared / "README.md").read_text()
    assert TrainingSet.open(prepared).counts == index.counts
    assert index.configuration["ssl_encoder"] == "efficientnet-lite0"
    assert index.latent_shape == (4, 32, 32)
    assert "for demonstration and tests only" in index.note
    assert "torch" in index.versions


def test_a_second_run_makes_only_what_is_missing(slide_folder, prepare_config):
    config = prepare_config(slide_folder)
    assert run(config) == 0
    folder = Path(config.out)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.arrow")}
    (folder / "data" / "20x" / "odd.arrow").unlink()
    assert run(config) == 0
    assert pd.read_csv(folder / "report.csv")["status"].tolist() == ["exists", "done"]
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*.arrow")}
    assert after.keys() == before.keys()
    assert all(after[path] == time for path, time in before.items() if path.stem == "even")


def _finished(out: Path) -> list[str]:
    return list(Index.load(out).slides) if (out / INDEX).exists() else []


def test_a_killed_run_goes_on_and_ends_with_the_same_set(slide_folder, prepare_config, tmp_path):
    out = tmp_path / "killed"
    words = ["first_stage=zoomldm-tiny", "magnifications=[20x,5x]", "min_tissue_coarsest=1e-4"]
    command = [sys.executable, "-m", "zoomfeat.cli", "prepare", f"slides={slide_folder}", f"out={out}"]
    command += ["ssl_encoder=color-stats", *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    # The index is written after every slide: the second one has just begun.
    while not _finished(out) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(Index.load(out).slides) == ["even"], process.stderr.read().decode()
    assert {path.stem for path in out.rglob("*.arrow")} == {"even"}

    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "1 done, 1 existed, 0 failed" in again.stdout
    undisturbed = prepare_config(slide_folder, *words)
    run(undisturbed)
    same_rows(TrainingSet.open(out), TrainingSet.open(undisturbed.out))


def test_two_runs_on_one_folder_do_not_meet(slide_folder, prepare_config, tmp_path):
    """The second is refused while the first lives, before it has done anything."""
    config = prepare_config(slide_folder)
    words = ["prepare", f"slides={slide_folder}", f"out={config.out}", "ssl_encoder=color-stats"]
    with claimed(Path(config.out)):
        other = subprocess.run(
            [sys.executable, "-m", "zoomfeat.cli", *words], capture_output=True, text=True, check=False
        )
    assert other.returncode == 2
    assert f"being made by process {os.getpid()} on" in other.stderr
    assert not (Path(config.out) / INDEX).exists()
    assert run(config) == 0
    assert not list((Path(config.out) / ".claims").iterdir())


def test_another_configuration_is_refused_with_the_differing_keys(slide_folder, prepare_config):
    run(prepare_config(slide_folder / "even.tiff"))
    with pytest.raises(ConfigurationError, match="unpooled: True there, False now") as refused:
        run(prepare_config(slide_folder / "even.tiff", "unpooled=false", "magnifications=[20x,5x]"))
    assert "magnifications" in str(refused.value)
    assert "ssl_encoder" not in str(refused.value)
    assert run(prepare_config(slide_folder / "even.tiff", "batch_size=3", "workers=1")) == 0


def test_what_is_optional_is_left_out(slide_folder, prepare_config):
    config = prepare_config(slide_folder / "even.tiff", "unpooled=false", "magnifications=[1.25x]")
    run(config)
    (row,) = table(Path(config.out), "1.25x", "even")
    assert row.keys() == {"image", "ssl_feat", "mag", "slide", "x", "y", "width", "height", "orientation"}
    assert np.shape(row["ssl_feat"]) == (6, 8, 8)


def test_slides_that_cannot_be_used_become_rows(slide_folder, prepare_config, tmp_path):
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    (mixed / "good.tiff").write_bytes((slide_folder / "even.tiff").read_bytes())
    (mixed / "text.svs").write_text("version https://git-lfs.github.com/spec/v1\n")
    make_slide(mixed / "coarse.tiff", seed=0, size=(1200, 1000), mpp=1.0)
    cv2.imwrite(str(mixed / "white.png"), np.full((1200, 1200, 3), 245, np.uint8))
    whole = (slide_folder / "odd.tiff").read_bytes()
    (mixed / "truncated.tiff").write_bytes(whole[: len(whole) // 2])
    config = prepare_config(mixed, "mpp=0.5")
    assert run(config) == 1
    report = pd.read_csv(Path(config.out) / "report.csv", index_col="slide_id").fillna("")
    assert report.loc["good", "status"] == "done"
    bad = report.drop("good")
    assert (bad["status"] == "failed").all()
    assert bad["cure"].all()
    assert all(name in row["error"] and "\n" not in row["error"] for name, row in bad.iterrows())
    assert "every magnification needs the embeddings of its 20x patches" in bad.loc["coarse", "error"]
    assert "tissue" in bad.loc["white", "error"]
    assert {path.stem for path in Path(config.out).rglob("*.arrow")} == {"good"}
    assert not list(Path(config.out).rglob("*.tmp"))


def test_no_usable_slide_leaves_an_empty_set_that_is_refused(prepare_config, tmp_path):
    cv2.imwrite(str(tmp_path / "white.png"), np.full((600, 600, 3), 245, np.uint8))
    config = prepare_config(tmp_path / "white.png", "mpp=0.5")
    assert run(config) == 1
    with pytest.raises(ZoomfeatError, match="no finished slide"):
        TrainingSet.open(config.out)


def test_an_error_of_the_encoder_is_not_taken_for_a_full_disk(slide_folder, prepare_config, monkeypatch):
    config = prepare_config(slide_folder / "even.tiff")
    tools = Tools.load(config)
    calls = iter(range(3))

    def explode(images):
        if next(calls, None) is None:
            raise RuntimeError("out of memory")
        return np.zeros((len(images), 6), np.float32)

    monkeypatch.setattr(type(tools.encoder), "__call__", lambda self, images: explode(images))
    report, record = prepare_slide(SlideEntry("even", slide_folder / "even.tiff"), config, tools)
    assert record is None
    assert report.error == "RuntimeError: out of memory"
    assert "Traceback" in report.details
    assert not [path for path in Path(config.out).rglob("*") if path.is_file()]


def test_a_full_disk_is_a_row_and_leaves_nothing(slide_folder, prepare_config):
    config = prepare_config(slide_folder / "even.tiff")
    tools = Tools.load(config)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        report, record = prepare_slide(SlideEntry("even", slide_folder / "even.tiff"), config, tools)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert record is None
    assert "cannot be written" in report.error
    assert "space left" in report.cure
    assert not [path for path in Path(config.out).rglob("*") if path.is_file()]


def test_embeddings_that_float16_does_not_hold_are_refused(slide_folder, prepare_config, monkeypatch):
    config = prepare_config(slide_folder / "even.tiff")
    tools = Tools.load(config)
    monkeypatch.setattr(
        type(tools.encoder), "__call__", lambda self, images: np.full((len(images), 6), 1e5, np.float32)
    )
    report, record = prepare_slide(SlideEntry("even", slide_folder / "even.tiff"), config, tools)
    assert record is None
    assert "exceeds what float16 holds" in report.error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["min_tissue_coarsest=0.6"], "min_tissue_coarsest=0.6; expected 0 to min_tissue"),
        (["min_tissue=1.5"], "min_tissue=1.5; expected 0 to 1"),
        (["batch_size=0"], "batch_size=0"),
        (["orientations=4"], "Use 1"),
        (["origins=0"], "Use 1"),
        (["origins=4", "magnifications=[20x,2.5x]"], "Leave out origins="),
    ],
)
def test_values_out_of_range(slide_folder, prepare_config, words, message):
    with pytest.raises(ConfigurationError, match=message):
        check_config(prepare_config(slide_folder, *words))


def test_output_inside_the_slide_folder_is_refused(slide_folder, capsys):
    assert main(["prepare", f"slides={slide_folder}", f"out={slide_folder / 'set'}", "ssl_encoder=color-stats"]) == 2
    assert "inside the slide folder" in capsys.readouterr().err
    assert not (slide_folder / "set").exists()


def test_a_first_stage_that_is_none(slide_folder, prepare_config):
    with pytest.raises(ConfigurationError, match="color-stats is no ZoomLDM"):
        run(prepare_config(slide_folder, "first_stage=color-stats"))


@pytest.mark.shared_data
def test_a_real_slide(shared, prepare_config):
    path = shared / "slides" / "CMU-1-Small-Region.svs"
    config = prepare_config(path)
    assert run(config) == 0
    counts = Index.load(Path(config.out)).counts
    assert counts["20x"] == 37
    assert counts["0.15625x"] == 1
    (row,) = table(Path(config.out), "0.3125x", "CMU-1-Small-Region")
    with Slide.open(path) as slide:
        box = (row["x"], row["y"], row["width"], row["height"])
        expected = slide.read(*box, sizes=[(4096, 4096), (256, 256)])[1]  # the larger size makes it read level 0
    assert np.abs(image(row).astype(int) - expected).mean() <= 1.0


def test_patches_of_one_colour_are_embedded_once(prepare_config, tmp_path, monkeypatch):
    image = np.full((1024, 2048, 3), (243, 241, 244), np.uint8)
    image[200:500, 300:700] = np.random.default_rng(0).integers((170, 90, 140), (230, 150, 200), (300, 400, 3))
    Image.fromarray(image).save(tmp_path / "glass.png")
    seen = []
    original = PatchEncoder.__call__

    def counted(self, images, context=None):
        seen.append(len(images))
        return original(self, images, context)

    monkeypatch.setattr(PatchEncoder, "__call__", counted)
    config = prepare_config(tmp_path / "glass.png", "mpp=0.5", "magnifications=[1.25x]", "min_tissue=0.001")
    assert run(config) == 0
    assert sum(seen) == 2 + 4  # white, the glass, and the 2 x 2 patches that the tissue touches
    grid = TrainingSet.open(config.out)[0].grid
    glass = np.array([243, 241, 244]) / 255
    assert np.allclose(grid[:3, 1, 3], glass, atol=2e-3)  # a place is the mean of two by two patches
    assert np.allclose(grid[:3, 2:], 1)

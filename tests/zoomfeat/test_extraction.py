"""The main job: what is in a bag is what the encoder makes of the slide's pixels, however the job was run."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import openslide
import pytest
from PIL import Image

from zoomfeat.bags import Bag, validate
from zoomfeat.conf.compose import compose_config
from zoomfeat.conf.schema import ExtractConfig
from zoomfeat.configuration import check_config
from zoomfeat.encoders import PatchEncoder, load_encoder
from zoomfeat.errors import ConfigurationError, MagnificationError
from zoomfeat.extraction import extract_slide
from zoomfeat.report import SlideReport
from zoomfeat.slides import Slide, SlideEntry, slides


def load(config: ExtractConfig) -> PatchEncoder:
    options = {key: value for key, value in asdict(config.encoder).items() if key != "name"}
    return load_encoder(config.encoder.name, device="cpu", **options)


def run(config: ExtractConfig) -> list[SlideReport]:
    encoder = load(config)
    return [extract_slide(entry, config, encoder) for entry in slides(config.slides)]


def same(a: Bag, b: Bag) -> None:
    assert a.magnifications == b.magnifications
    for x, y in zip(a.scales, b.scales, strict=True):
        np.testing.assert_array_equal(x.coords, y.coords)
        np.testing.assert_array_equal(x.features, y.features)
    for name in a.parents:
        np.testing.assert_array_equal(a.parent(name), b.parent(name))


@pytest.fixture(scope="module")
def undisturbed(cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bags of the cohort by zoomldm-tiny, made in one go."""
    out = tmp_path_factory.mktemp("undisturbed")
    reports = run(compose_config("extract", [f"slides={cohort}", f"out={out}", "encoder=zoomldm-tiny"]))
    assert [r.status for r in reports] == ["done"] * 3, [r.error for r in reports]
    return out


def read_with_openslide(path: Path, corner: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A level-0 box by OpenSlide alone, transparent pixels (what lies beyond the slide) on white, area-averaged."""
    with openslide.OpenSlide(str(path)) as slide:
        pixels = slide.read_region(tuple(int(c) for c in corner), 0, size)
    on_white = Image.alpha_composite(Image.new("RGBA", size, "white"), pixels).convert("RGB")
    return cv2.resize(np.asarray(on_white), (256, 256), interpolation=cv2.INTER_AREA)


def test_features_are_the_encoders_of_the_pixels_that_the_bag_names(cohort, undisturbed):
    encoder = load_encoder("zoomldm-tiny", device="cpu")
    for entry in slides(cohort)[:2]:
        bag = Bag.open(undisturbed / f"{entry.slide_id}.h5")
        for scale in bag.scales:
            row = len(scale) // 2
            patch = read_with_openslide(entry.path, scale.coords[row], scale.patch_size_level0)
            with Slide.open(entry.path) as slide:
                beside = int(256 * scale.mpp / bag.scales[0].mpp)  # read together with the finest scale
                box = (*map(int, scale.coords[row]), *scale.patch_size_level0)
                _, ours = slide.read(*box, sizes=[(beside, beside), (256, 256)])
            assert np.abs(patch.astype(int) - ours).mean() <= 2
            np.testing.assert_allclose(scale.features[row], encoder(ours[None])[0], rtol=1e-4, atol=1e-4)


@pytest.mark.shared_data
def test_a_real_slide_at_two_magnifications_and_fused(shared, extract_config, tmp_path):
    path = shared / "slides" / "CMU-1-Small-Region.svs"
    (report,) = run(extract_config(path, encoder="zoomldm-tiny"))
    assert report.status == "done", report.error
    assert report.patches == {"20x": 37, "5x": 6}
    bag_path = tmp_path / "bags" / "CMU-1-Small-Region.h5"
    validate(bag_path)
    bag = Bag.open(bag_path)
    fine, coarse = bag.scales
    corners = coarse.coords[bag.parent("5x")]
    assert (fine.coords >= corners).all()
    assert (fine.coords + fine.patch_size_level0 <= corners + coarse.patch_size_level0).all()
    fused = bag.fused()
    assert fused.shape == (37, 768)
    np.testing.assert_array_equal(fused[:, :384], bag.features)
    np.testing.assert_array_equal(fused[:, 384:], coarse.features[bag.parent("5x")])
    for scale in bag.scales:
        for row, corner in enumerate(scale.coords):
            expected = read_with_openslide(path, corner, scale.patch_size_level0)
            with Slide.open(path) as slide:
                (ours,) = slide.read(*map(int, corner), *scale.patch_size_level0, sizes=[(256, 256)])
            assert np.abs(expected.astype(int) - ours).mean() <= 2, (scale.magnification, row)
    assert "for demonstration and tests only" in bag.metadata.note
    assert (tmp_path / "bags" / "previews" / "CMU-1-Small-Region.png").stat().st_size > 10_000


@pytest.mark.shared_data
def test_batch_size_and_workers_do_not_change_a_bit(shared, extract_config, tmp_path):
    path = shared / "slides" / "CMU-1-Small-Region.svs"
    runs = [("batch_size=1", "workers=1"), ("batch_size=16", "workers=1"), ("batch_size=7", "workers=2")]
    bags = []
    for i, words in enumerate(runs):
        run(extract_config(path, *words, "preview=false", out=str(i), encoder="zoomldm-tiny"))
        bags.append(tmp_path / str(i) / "CMU-1-Small-Region.h5")
    for other in bags[1:]:
        same(Bag.open(bags[0]), Bag.open(other))
        assert bags[0].read_bytes() == other.read_bytes()


def test_magnifications_of_one_run_do_not_change_each_other(cohort, extract_config, tmp_path):
    slide = cohort / "slide-0.2639.tiff"
    run(extract_config(slide, "magnifications=[20x,10x,5x]", out="three"))
    run(extract_config(slide, "magnifications=[5x,20x]", out="two"))
    run(extract_config(slide, "magnifications=[5x]", "min_tissue=0.01", out="one"))
    three, two, one = (Bag.open(tmp_path / out / "slide-0.2639.h5") for out in ("three", "two", "one"))
    np.testing.assert_array_equal(three.features, two.features)
    np.testing.assert_array_equal(three.scale("5x").features, two.scale("5x").features)
    assert three.fused().shape[1] == 18
    assert one.magnifications == ("5x",)
    at = {tuple(corner): row for row, corner in enumerate(one.coords)}
    rows = [at[tuple(corner)] for corner in two.scale("5x").coords]
    np.testing.assert_array_equal(one.scale("5x").patch_size_level0, two.scale("5x").patch_size_level0)
    # 5x alone may be read from a coarser level, which carries JPEG noise of its own.
    np.testing.assert_allclose(one.features[rows], two.scale("5x").features, atol=0.02)


def test_coarse_magnifications_that_exceed_one_region(cohort, extract_config, tmp_path):
    (report,) = run(extract_config(cohort / "slide-0.5.tiff", "magnifications=[20x,0.625x,0.15625x]"))
    assert report.status == "done", report.error
    assert report.patches["0.15625x"] == 1
    bag = Bag.open(tmp_path / "bags" / "slide-0.5.h5")
    assert bag.fused().shape == (report.patches["20x"], 18)


def test_conditioning_on_the_finest_patches_under_each_patch(cohort, extract_config, tmp_path):
    slide = cohort / "slide-0.5.tiff"
    config = extract_config(slide, "encoder.conditioning=ssl", encoder="zoomldm-tiny")
    assert run(config)[0].status == "done"
    bag = Bag.open(tmp_path / "bags" / "slide-0.5.h5")
    coarse = bag.scale("5x")
    encoder = load(config).at("5x")
    with Slide.open(slide) as opened:
        x, y = map(int, coarse.coords[0])
        _, patch = opened.read(x, y, 1024, 1024, sizes=[(1024, 1024), (256, 256)])  # as beside 20x
        under = [
            opened.read(x + 256 * c, y + 256 * r, 256, 256, sizes=[(256, 256)])[0] for r in range(4) for c in range(4)
        ]
    grid = load_encoder("efficientnet-lite0", device="cpu")(np.stack(under)).T.reshape(1, 1280, 4, 4)
    np.testing.assert_allclose(encoder(patch[None], grid)[0], coarse.features[0], rtol=1e-4, atol=1e-4)
    assert bag.metadata.encoder_settings["ssl_encoder"] == "efficientnet-lite0"


def test_a_second_run_keeps_what_exists(cohort, extract_config, tmp_path):
    first = extract_config(cohort)
    run(first)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "bags").glob("*.h5")}
    reports = run(first)
    assert [r.status for r in reports] == ["exists"] * 3
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert reports[0].patches == {"20x": len(Bag.open(next(iter(sorted(before))))), "5x": reports[0].patches["5x"]}


def test_another_configuration_is_refused_with_the_difference(cohort, extract_config):
    slide = cohort / "slide-0.5.tiff"
    run(extract_config(slide))
    (report,) = run(extract_config(slide, "min_tissue=0.25"))
    assert report.status == "failed"
    assert "min_tissue: 0.5 there, 0.25 now" in report.error
    assert "overwrite=true" in report.cure
    assert run(extract_config(slide, "min_tissue=0.25", "overwrite=true"))[0].status == "done"
    assert run(extract_config(slide, "min_tissue=0.25"))[0].status == "exists"


def test_a_foreign_file_under_a_bags_name_is_kept_and_reported(cohort, extract_config, tmp_path):
    config = extract_config(cohort / "slide-0.5.tiff")
    (tmp_path / "bags" / "slide-0.5.h5").write_bytes(b"somebody else's")
    (report,) = run(config)
    assert report.status == "failed"
    assert (tmp_path / "bags" / "slide-0.5.h5").read_bytes() == b"somebody else's"


def test_a_killed_run_goes_on_and_ends_with_the_same_bags(cohort, undisturbed, tmp_path):
    words = [f"slides={cohort}", "encoder=zoomldm-tiny", "preview=false", f"out={tmp_path / 'killed'}"]
    command = [sys.executable, "-m", "zoomfeat.cli", "extract", *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "killed").glob("*.h5")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = {path.name for path in (tmp_path / "killed").glob("*.h5")}
    assert 1 <= len(finished) < 3, process.stderr.read().decode()
    for name in finished:
        validate(tmp_path / "killed" / name)

    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert f"{3 - len(finished)} done, {len(finished)} existed, 0 failed" in again.stdout
    for entry in slides(cohort):
        name = f"{entry.slide_id}.h5"
        same(Bag.open(tmp_path / "killed" / name), Bag.open(undisturbed / name))


def test_one_bad_slide_does_not_end_the_run(cohort, extract_config, tmp_path):
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    shutil.copy(cohort / "slide-0.5.tiff", mixed / "b-good.tiff")
    (mixed / "a-empty.svs").write_bytes(b"")
    (mixed / "c-text.ndpi").write_text("version https://git-lfs.github.com/spec/v1\n")
    whole = (cohort / "slide-0.25.tiff").read_bytes()
    (mixed / "d-truncated.tiff").write_bytes(whole[: len(whole) // 2])
    cv2.imwrite(str(mixed / "e-no-mpp.png"), np.full((600, 600, 3), 200, np.uint8))
    reports = {r.slide_id: r for r in run(extract_config(mixed))}
    assert reports["b-good"].status == "done"
    bad = [r for r in reports.values() if r.slide_id != "b-good"]
    assert len(bad) == 4
    for report in bad:
        assert report.status == "failed"
        assert report.slide_id in report.error
        assert report.cure
        assert "\n" not in report.error
        assert not report.details, report.details
        assert not (tmp_path / "bags" / f"{report.slide_id}.h5").exists()
    assert "mpp" in reports["e-no-mpp"].cure


@pytest.mark.shared_data
def test_every_odd_real_slide_becomes_a_row(shared, extract_config):
    reports = run(extract_config(shared / "slides_odd"))
    assert len(reports) >= 7
    assert {r.status for r in reports} == {"failed"}
    assert not any(r.details for r in reports), [r.details for r in reports]
    assert all(r.cure for r in reports)


@pytest.mark.shared_data
def test_a_plain_image_with_the_users_mpp(shared, extract_config, tmp_path):
    tile = shared / "stain_and_artifacts" / "tiatoolbox_target_image.png"
    overview = shared / "slides_odd" / "kidney-48-5_untiled_IHC.tif"
    for path, words in ((tile, ["mpp=0.5"]), (overview, ["mpp=8", "magnifications=1.25x", "min_tissue=0.02"])):
        (report,) = run(extract_config(path, *words, out=path.stem))
        assert report.status == "done", report.error
        assert report.mpp_source == "configuration"


def test_errors_that_nobody_expected_are_kept_whole(cohort, extract_config, monkeypatch):
    config = extract_config(cohort / "slide-0.5.tiff")
    encoder = load(config)

    def explode(*arguments):
        raise RuntimeError("something new\nover two lines")

    monkeypatch.setattr(type(encoder), "embed", explode)
    (entry,) = slides(config.slides)
    report = extract_slide(entry, config, encoder)
    assert (report.status, report.stage) == ("failed", "encode")
    assert report.error == "RuntimeError: something new over two lines"
    assert "Traceback" in report.details


def test_no_tissue_is_a_row(extract_config, tmp_path):
    white = tmp_path / "white.png"
    cv2.imwrite(str(white), np.full((1200, 1200, 3), 245, np.uint8))
    (report,) = run(extract_config(white, "mpp=0.5"))
    assert report.status == "failed"
    assert "tissue" in report.error


def test_mpp_of_a_manifest_wins_and_the_bag_says_so(cohort, extract_config, tmp_path):
    config = extract_config(cohort / "slide-0.5.tiff")
    entry = SlideEntry("override", cohort / "slide-0.5.tiff", mpp=(0.4, 0.4))
    assert extract_slide(entry, config, load(config)).status == "done"
    bag = Bag.open(tmp_path / "bags" / "override.h5")
    assert bag.metadata.mpp_source == "manifest"
    assert "by the file" in bag.metadata.note
    assert bag.scales[0].patch_size_level0 == (320, 320)


def test_a_slide_slightly_too_coarse_is_resampled_and_says_so(cohort, extract_config, tmp_path):
    config = extract_config(cohort / "slide-0.5.tiff")
    encoder = load(config)
    assert extract_slide(SlideEntry("a", cohort / "slide-0.5.tiff", mpp=(0.55, 0.55)), config, encoder).status == "done"
    assert "up-sampled: 0.55 um/px served as 20x" in Bag.open(tmp_path / "bags" / "a.h5").metadata.note
    refused = extract_slide(SlideEntry("b", cohort / "slide-0.5.tiff", mpp=(0.6, 0.6)), config, encoder)
    assert refused.status == "failed"
    assert "0.6" in refused.error


def test_float16_is_an_option(cohort, extract_config, tmp_path):
    run(extract_config(cohort / "slide-0.5.tiff", "dtype=float16"))
    bag = Bag.open(tmp_path / "bags" / "slide-0.5.h5")
    assert bag.features.dtype == np.float32
    np.testing.assert_array_equal(bag.features, bag.features.astype(np.float16))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("workers=0", "workers=0; expected at least 1"),
        ("batch_size=0", "batch_size=0"),
        ("min_tissue=1.5", "min_tissue=1.5; expected 0 to 1"),
        ("dtype=float64", "dtype='float64'"),
    ],
)
def test_values_out_of_range(cohort, extract_config, word, message):
    with pytest.raises(ConfigurationError, match=message):
        check_config(extract_config(cohort, word))


@pytest.mark.parametrize("word", ["magnifications=[40x]", "magnifications=[20x,20]", "magnifications=[]"])
def test_wrong_magnifications(cohort, extract_config, word):
    with pytest.raises(MagnificationError):
        check_config(extract_config(cohort, word))


def test_output_inside_the_slide_folder_is_refused(cohort, extract_config):
    for out in (cohort, cohort / "bags"):
        config = extract_config(cohort)
        config.out = str(out)
        with pytest.raises(ConfigurationError, match="inside the slide folder"):
            check_config(config)


def test_nothing_but_bags_previews_logs_and_claims_is_left(cohort, extract_config, tmp_path):
    listing = sorted(cohort.iterdir())
    run(extract_config(cohort / "slide-0.5.tiff"))
    assert sorted(cohort.iterdir()) == listing
    assert sorted(path.name for path in (tmp_path / "bags").iterdir()) == [
        ".claims",
        "logs",
        "previews",
        "slide-0.5.h5",
    ]
    assert not list((tmp_path / "bags" / ".claims").iterdir())

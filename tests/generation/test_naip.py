"""A second domain through the generative side: a checkpoint in the layout of NAIP's, tiny, with random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from generation.data import TrainingSet
from generation.pipelines.joint import JointMultiScalePipeline
from generation.pipelines.models import MODELS, load_pipeline
from generation.pipelines.patch import ZoomLDMPipeline
from generation.pipelines.superres import SuperResolutionPipeline
from generation.region import region_embeddings, region_image
from generation.tiff import read_arguments
from tests.geotiffs import DOMAIN, make_geotiff, picture
from tests.releases import write_release
from zoomfeat.bags import Bag, validate
from zoomfeat.cli import main
from zoomfeat.domains import load_domain
from zoomfeat.encoders import load_encoder
from zoomfeat.encoders.zoomldm import TINY
from zoomfeat.errors import MagnificationError, ZoomfeatError
from zoomfeat.magnification import NAIP
from zoomfeat.slides import Slide

WIDTH = 6  # of `color-stats`, which stands in for DINOv2: its weights cannot be had here
SHORT = {"num_inference_steps": 2, "pulls": 1, "seam_start": 50}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """``weights.ckpt`` and ``config.yaml`` as the release has them, four magnifications, weights at random."""
    return write_release(tmp_path_factory.mktemp("naip"), WIDTH, magnifications=4)


@pytest.fixture(scope="module")
def aerial(tmp_path_factory) -> Path:
    """2100 x 2100 px of 1 m: one whole patch at 4x."""
    return make_geotiff(tmp_path_factory.mktemp("aerial") / "aerial.tif", picture(2100, 2100, 4))


@pytest.fixture(scope="module")
def pipe(checkpoint) -> ZoomLDMPipeline:
    pipe = ZoomLDMPipeline.load(checkpoint)
    pipe.register_to_config(ssl_encoder="color-stats")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_four_magnifications_mean_naip(pipe):
    assert pipe.domain == load_domain("naip")
    assert pipe.ladder == NAIP
    named = MODELS["zoomldm-naip"]
    assert (named.ladder, named.ssl_encoder) == ("naip", load_domain("naip").embedding)


@pytest.mark.parametrize("step", NAIP.steps, ids=str)
def test_patches_at_every_magnification(pipe, step):
    grid = torch.randn(WIDTH, step.grid, step.grid, generator=seeded())
    images = pipe(grid, step, num_inference_steps=2, generator=seeded(), output_type="np").images
    assert images.shape == (1, 256, 256, 3)
    assert np.isfinite(images).all()


def test_a_region_of_a_map_is_known_by_its_patches_of_1_m(pipe, aerial):
    with Slide.open(aerial, reader="geotiff") as slide:
        encoder = load_encoder("color-stats", NAIP.finest, "cpu")
        found = region_embeddings(slide, 100, 50, NAIP["2x"], encoder, NAIP)
        for row, column in np.ndindex(2, 2):
            (patch,) = slide.read(100 + 256 * column, 50 + 256 * row, 256, 256, [(256, 256)])
            np.testing.assert_allclose(found[:, row, column], encoder(patch[None])[0], rtol=1e-6)
        (whole,) = slide.read(100, 50, 512, 512, [(256, 256)])
        np.testing.assert_array_equal(region_image(slide, 100, 50, NAIP["2x"], NAIP), whole)
        embedded = pipe(torch.from_numpy(found), "2x", num_inference_steps=2, generator=seeded(), output_type="np")
    drawn = pipe.from_region(aerial, 100, 50, "2x", num_inference_steps=2, generator=seeded(), output_type="np")
    np.testing.assert_array_equal(drawn.images, embedded.images)


def test_coarser_maps_have_no_such_region(pipe, tmp_path):
    coarse = make_geotiff(tmp_path / "coarse.tif", picture(600, 600), metres=5)
    with pytest.raises(MagnificationError, match=r"too coarse for 1x.*embeddings of its 1x patches"):
        pipe.from_region(coarse, 0, 0, "4x")


def test_joint_sampling(pipe):
    joint = JointMultiScalePipeline.over(pipe)
    grid = torch.randn(WIDTH, 2, 2, generator=seeded())
    found = joint(grid, "2x", generator=seeded(), output_type="np", **SHORT)
    assert found.images.shape == (1, 512, 512, 3)
    assert found.coarser["2x"].shape == (1, 256, 256, 3)
    assert joint.finest_mpp() == 1e6


def test_super_resolution(pipe):
    finer = SuperResolutionPipeline.over(pipe)
    image = Image.fromarray(picture(64, 70).transpose(1, 2, 0))
    found = finer(image, 4, "inferred", generator=seeded(), output_type="np", inversion_steps=2, **SHORT).images
    assert found.shape == (1, 256, 280, 3)
    assert np.isfinite(found).all()


def test_the_commands_draw_over_a_map(checkpoint, aerial, tmp_path):
    words = [f"model={checkpoint}", "ssl_encoder=color-stats", f"slide={aerial}", "x=0", "y=0", "steps=2", "device=cpu"]
    assert main(["generate", "magnification=[1x,3x]", "num_images=1", f"out={tmp_path / 'patches'}", *words]) == 0
    names = {path.name for path in (tmp_path / "patches").iterdir()}
    assert names == {"1x-0000.png", "3x-0000.png", "preview.png"}
    assert Image.open(tmp_path / "patches" / "3x-0000.png").size == (256, 256)
    assert main(["generate-large", "guide=2x", f"out={tmp_path / 'large'}", "pulls=1", "seams=0", *words]) == 0
    (large,) = (tmp_path / "large").glob("*.tiff")
    assert read_arguments(large)["guide"] == "2x"
    with Slide.open(large) as slide:
        assert (slide.width, slide.height) == (512, 512)
        assert slide.mpp == pytest.approx((1e6, 1e6))


def test_features_to_bags(checkpoint, aerial, tmp_path):
    words = ["encoder=zoomldm-naip", f"encoder.weights={checkpoint}", "domain=naip", "device=cpu", "preview=false"]
    words += ["encoder.conditioning=ssl", "encoder.ssl_encoder=color-stats", "encoder.taps=[mid]"]
    assert main(["extract", f"slides={aerial}", f"out={tmp_path}", "magnifications=[3x,4x]", *words]) == 0
    validate(tmp_path / "aerial.h5")
    bag = Bag.open(tmp_path / "aerial.h5")
    assert [(scale.magnification, len(scale), scale.dim) for scale in bag.scales] == [("3x", 4, 32), ("4x", 1, 32)]
    assert bag.fused().shape == (4, 64)
    assert bag.metadata.georeference.crs == "EPSG:26914"


@pytest.mark.parametrize(("name", "embedding"), [("zoomldm-naip", "dinov2-vitl14-reg"), ("zoomldm-brca", "uni")])
def test_a_conditioned_encoder_asks_for_the_embeddings_of_its_domain(checkpoint, monkeypatch, name, embedding):
    """UNI and DINOv2 are as wide as each other, so that the wrong one would not show; neither can be had here."""
    asked = []

    def note(wanted: str, *place: object) -> object:
        asked.append((wanted, str(place[0])))
        return load_encoder("color-stats", *place)

    monkeypatch.setattr("zoomfeat.encoders.zoomldm.load_encoder", note)
    load_encoder(name, device="cpu", weights=str(checkpoint), conditioning="ssl")
    assert asked == [(embedding, "1x" if name == "zoomldm-naip" else "20x")]


def test_a_model_of_naip_refuses_images_of_another_ladder(checkpoint, tmp_path, capsys):
    (tmp_path / "aerial-5m.yaml").write_text(DOMAIN)
    image = make_geotiff(tmp_path / "coarse.tif", picture(600, 600), metres=5)
    words = ["encoder=zoomldm-naip", f"encoder.weights={checkpoint}", "device=cpu", f"out={tmp_path / 'bags'}"]
    assert main(["extract", f"slides={image}", f"domain={tmp_path / 'aerial-5m.yaml'}", *words]) == 1
    error = capsys.readouterr().err
    assert "no 1x of 5 m in the naip ladder, which has 1x, 2x, 3x, 4x from 1 m on" in error
    assert main(["extract", f"slides={image}", *words]) == 1
    assert "no 20x of 0.5 um in the naip ladder" in (error := capsys.readouterr().err)
    assert "domain=naip" in error


def test_an_aerial_model_is_trained_on_aerial_images(aerial, tmp_path, capsys):
    data = ["prepare", f"slides={aerial}", f"out={tmp_path / 'set'}", "domain=naip", "ssl_encoder=color-stats"]
    assert main([*data, "first_stage=zoomldm-tiny", "min_tissue=0.3"]) == 0
    prepared = TrainingSet.open(tmp_path / "set")
    assert prepared.ladder == NAIP
    assert prepared.counts.keys() == {"1x", "2x", "3x", "4x"}
    assert prepared[len(prepared) - 1].step == NAIP["4x"]
    assert prepared[len(prepared) - 1].grid.shape == (WIDTH, 8, 8)
    words = ["size=tiny", f"first_stage={TINY}", "steps=2", "batch_size=2", "held_out=0", "sample_every=0", "workers=0"]
    assert main(["train-ldm", f"data={tmp_path / 'set'}", f"out={tmp_path / 'run'}", "device=cpu", *words]) == 0
    assert "training items: 1x" in capsys.readouterr().out
    assert "loss_4x" in (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]
    (model,) = (tmp_path / "run" / "checkpoints").glob("*/model")
    assert load_pipeline(str(model)).domain.ladder == NAIP


def test_sets_of_two_domains_are_not_mixed(aerial, tmp_path):
    (tmp_path / "coarse.yaml").write_text(DOMAIN)
    for name, domain in (("a", "naip"), ("b", str(tmp_path / "coarse.yaml"))):
        words = [f"out={tmp_path / name}", f"domain={domain}", "ssl_encoder=color-stats", "magnifications=[1x]"]
        assert main(["prepare", f"slides={aerial}", "min_tissue=0.3", "min_tissue_coarsest=0.3", *words]) == 0
    with pytest.raises(ZoomfeatError, match="another domain side by side"):
        TrainingSet.open(tmp_path)

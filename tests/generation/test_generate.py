"""`zoomfeat generate`, as users type it, with a small model of random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from generation.conditioning import ConditioningDiT
from generation.pictures import preview_grid, read_arguments, save_png
from generation.pipelines.models import load_pipeline
from generation.pipelines.patch import ZoomLDMPipeline
from zoomfeat.cli import main
from zoomfeat.encoders import load_encoder
from zoomfeat.encoders.zoomldm import TINY
from zoomfeat.errors import ZoomfeatError
from zoomfeat.models.summarizer import Summarizer
from zoomfeat.slides.synthetic import make_slide


@pytest.fixture(scope="session")
def model(small_model, tmp_path_factory) -> Path:
    """A model conditioned on `color-stats`, with a conditioning model whose output is not zero."""
    torch.manual_seed(0)
    cdm = ConditioningDiT(token_dim=16, hidden_dim=16, num_layers=1, num_heads=2)
    for parameter in cdm.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    summarizer = Summarizer(load_encoder("color-stats").dim, 16, 16, num_layers=1, num_heads=2, mlp_dim=16)
    parts = ZoomLDMPipeline.load(small_model).components | {"summarizer": summarizer, "cdm": cdm}
    folder = tmp_path_factory.mktemp("generating")
    ZoomLDMPipeline(**parts, ssl_encoder="color-stats").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def slide(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("slides") / "a slide (1).tiff"
    make_slide(path, seed=0, size=(1300, 1300), mpp=0.5)
    return path


@pytest.fixture
def generate(model, tmp_path, capsys):
    """Runs the command; returns its exit code and the last line of what it said."""

    def run(*words: str, out: str = "out") -> tuple[int, str]:
        keys = {"model": model, "out": tmp_path / out, "num_images": 2, "steps": 2, "device": "cpu"}
        keys |= dict(word.split("=", 1) for word in words)
        code = main(["generate", *(f"{name}={value}" for name, value in keys.items())])
        said = capsys.readouterr()
        return code, (said.err if code else said.out).strip().splitlines()[-1]

    return run


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_images_carry_what_made_them(generate, tmp_path, model):
    code, said = generate("magnification=[5x,20x]", "seed=7", "guidance=1.5")
    assert code == 0
    assert said.startswith("4 images drawn, 0 existed")
    found = files(tmp_path / "out")
    assert sorted(found) == ["20x-0000.png", "20x-0001.png", "5x-0000.png", "5x-0001.png", "preview.png"]
    path = tmp_path / "out" / "5x-0001.png"
    pipe = load_pipeline(str(model), device="cpu")
    arguments = read_arguments(path)
    expected = {
        "command": "generate", "model": str(model), "weights": pipe.weights_hash(), "magnification": "5x", "mpp": 2.0,
        "scheduler": "ddim", "steps": 2, "guidance": 1.5, "seed": 7, "image": 1,
    }  # fmt: skip
    assert expected.items() <= arguments.items()
    assert set(arguments) - set(expected) == {"cdm"}
    with Image.open(path) as image:
        assert image.size == (256, 256)
        assert image.info["dpi"] == pytest.approx((12700, 12700), rel=1e-4)  # 2 um/px
        assert image.text["Software"].startswith("zoomfeat ")
        pixels = np.asarray(image)
    drawn = pipe(
        magnification="5x", num_images=2, num_inference_steps=2, guidance_scale=1.5,
        generator=torch.Generator().manual_seed(7),
    )  # fmt: skip
    assert np.array_equal(pixels, np.asarray(drawn.images[1]))


def test_the_same_command_draws_only_what_is_missing(generate, tmp_path):
    generate("magnification=5x", "num_images=3")
    before = files(tmp_path / "out")
    (tmp_path / "out" / "5x-0001.png").unlink()
    stamp = (tmp_path / "out" / "5x-0000.png").stat().st_mtime_ns
    assert generate("magnification=5x", "num_images=3")[1].startswith("1 images drawn, 2 existed")
    assert files(tmp_path / "out") == before
    assert (tmp_path / "out" / "5x-0000.png").stat().st_mtime_ns == stamp
    assert generate("magnification=5x", "num_images=4")[1].startswith("1 images drawn, 3 existed")
    after = files(tmp_path / "out")
    assert all(after[name] == before[name] for name in before if name != "preview.png")


def test_images_that_other_arguments_made_are_kept(generate, tmp_path):
    generate("magnification=5x", "num_images=1")
    before = files(tmp_path / "out")
    code, said = generate("magnification=5x", "num_images=1", "seed=1")
    assert code == 2
    assert "5x-0000.png: made by other arguments (seed was 0, is 1). Use another out=" in said
    Image.new("RGB", (3, 3)).save(tmp_path / "out" / "5x-0001.png")
    assert generate("magnification=5x", "num_images=2")[0] == 2
    assert {name: data for name, data in files(tmp_path / "out").items() if name in before} == before


@pytest.mark.parametrize("scheduler", ["plms", "dpm-solver++", "unipc", "ddpm"])
def test_schedulers_by_name(generate, tmp_path, scheduler):
    for name in ("ddim", scheduler):
        assert generate("magnification=20x", f"scheduler={name}", "num_images=1", "steps=4", out=name)[0] == 0
    pixels = [np.asarray(Image.open(tmp_path / name / "20x-0000.png")) for name in ("ddim", scheduler)]
    assert not np.array_equal(*pixels)


def test_variations_of_a_region(generate, tmp_path, slide, model):
    region = (f"slide={slide}", "x=130", "y=200", "magnification=[10x,20x]")
    code, said = generate(*region)
    assert (code, said[:14]) == (0, "4 images drawn")
    arguments = read_arguments(tmp_path / "out" / "10x-0000.png")
    assert {"slide": str(slide), "x": 130, "y": 200, "ssl_encoder": "color-stats"}.items() <= arguments.items()
    pipe = load_pipeline(str(model), device="cpu")
    drawn = pipe.from_region(
        slide, 130, 200, "10x", num_images=2, num_inference_steps=2, generator=torch.Generator().manual_seed(0)
    )
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "10x-0001.png")), np.asarray(drawn.images[1]))
    with Image.open(tmp_path / "out" / "preview.png") as sheet:
        assert sheet.size == (8 + 3 * 264, 8 + 2 * (264 + 28))  # the region itself comes first


def test_all_magnifications(generate, tmp_path):
    assert generate("magnification=all", "num_images=1", "steps=1")[0] == 0
    assert len(list((tmp_path / "out").glob("*-0000.png"))) == 8


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["magnification=7x"], "no magnification '7x' in the brca ladder. Use one of 20x"),
        (["magnification=5x", "scheduler=plsm"], "no scheduler 'plsm'. Did you mean plms?"),
        (["magnification=5x", "steps=0"], "steps=0"),
        (["magnification=5x", "steps=2000"], "num_inference_steps=2000. Use 1 to 1000"),
        (["magnification=5x", "num_images=0"], "num_images=0"),
        (["magnification=5x", "seed=-1"], "seed=-1"),
        (["magnification=5x", "x=3", "y=4"], "x= and y= without slide="),
        (["magnification=5x", "slide=absent.svs"], "slide= without x= and y="),
        (["magnification=5x", "slide=absent.svs", "x=0", "y=0"], "absent.svs: no such file"),
        (["magnification=5x", "model=zoomldm-large"], "no model 'zoomldm-large'"),
        (["magnification=5x", "cdm=absent.pt"], "absent.pt: no such file"),
        ([], "magnification= is missing"),
    ],
)
def test_mistakes_are_told_in_one_line(generate, tmp_path, words, message):
    code, said = generate(*words)
    assert code in (1, 2)
    assert message in said
    assert not list(tmp_path.rglob("*.png"))


def test_an_encoder_of_another_width(generate, slide):
    region = (f"slide={slide}", "x=0", "y=0", "magnification=20x")
    assert "efficientnet-lite0 gives 1280 features" in generate(*region, "ssl_encoder=efficientnet-lite0")[1]


def test_a_folder_that_cannot_be_written(generate, tmp_path):
    (tmp_path / "out").write_text("a file")
    code, said = generate("magnification=5x")
    assert code == 1
    assert "the folder cannot be made" in said


@pytest.mark.skipif(not (TINY / "cdm").is_dir(), reason="zoomldm-tiny has no conditioning model in this checkout")
def test_the_model_that_ships_is_the_default(tmp_path, capsys):
    words = ["magnification=5x", f"out={tmp_path}", "num_images=1", "steps=2", "device=cpu"]
    assert main(["generate", *words]) == 0
    assert "demonstration" in capsys.readouterr().out
    assert read_arguments(tmp_path / "5x-0000.png")["model"] == "zoomldm-tiny"


def test_a_model_without_conditioning_model_needs_a_region(generate, small_model):
    code, said = generate(f"model={small_model}", "magnification=5x")
    assert code == 2
    assert "has no conditioning model" in said
    assert "Give cdm=path, or slide=" in said


# Pictures


def test_arguments_in_a_png(tmp_path):
    image = Image.new("RGB", (4, 4), "red")
    save_png(image, tmp_path / "a.png", {"text": 'µ "quoted"', "number": 0.1, "none": None})
    assert read_arguments(tmp_path / "a.png") == {"text": 'µ "quoted"', "number": 0.1, "none": None}
    image.save(tmp_path / "b.png")
    assert read_arguments(tmp_path / "b.png") is None
    (tmp_path / "c.png").write_bytes((tmp_path / "a.png").read_bytes()[:40])
    assert read_arguments(tmp_path / "c.png") is None
    assert read_arguments(tmp_path / "d.png") is None
    with pytest.raises(ZoomfeatError, match="cannot be written"):
        save_png(image, tmp_path / "absent" / "a.png")


def test_a_sheet_of_rows_that_wrap():
    rows = [("first", [Image.new("RGB", (10, 10), colour) for colour in ("red", "lime", "blue")]), ("second", [])]
    sheet = np.asarray(preview_grid([rows[0], ("second", [Image.new("RGB", (10, 10), "black")])], columns=2))
    assert [tuple(sheet[y, x]) for y, x in ((41, 13), (41, 31), (59, 13))] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    assert tuple(sheet[59, 31]) == (255, 255, 255)

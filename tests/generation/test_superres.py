"""Super-resolution: sizes, conditions, consistency with the input, and input that is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, UNet2DConditionModel, UNet2DModel

# diffusers exports it only where transformers is installed, which it does not use.
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion_superresolution import LDMSuperResolutionPipeline
from PIL import Image

from generation import inversion, tiff
from generation.commands import superres
from generation.joint_guidance import Pull
from generation.joint_sampling import Settings, sample
from generation.mosaic import Mosaic
from generation.pictures import read_arguments
from generation.pipelines.baselines import BicubicUpscaler, ControlNetUpscaler, LatentUpscaler
from generation.pipelines.superres import SuperResolutionPipeline, read_image
from generation.resize import downscale, upscale
from tests.generation.conftest import EMBEDDING_DIM, small_bundle
from tests.generation.gaussian import GaussianModel
from zoomfeat.cli import main
from zoomfeat.errors import ConfigurationError
from zoomfeat.magnification import BRCA
from zoomfeat.models.architecture import build_first_stage
from zoomfeat.slides import Slide

SHORT = {"num_inference_steps": 2, "pulls": 1, "seam_start": 50, "inversion_steps": 2}


@pytest.fixture(scope="module")
def pipe() -> SuperResolutionPipeline:
    pipe = SuperResolutionPipeline(**small_bundle().components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(height: int, width: int) -> Image.Image:
    generator = np.random.default_rng(0)
    return Image.fromarray(generator.integers(0, 255, (height, width, 3), np.uint8))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("scale", "size"), [(2, (128, 256)), (4, (64, 128)), (8, (32, 32)), (4, (70, 100))])
def test_any_size_becomes_scale_times_as_large(pipe, scale, size):
    """The last size is covered by 20x patches only with padding."""
    found = pipe(picture(*size), scale, "uncond", generator=seeded(), output_type="np", **SHORT).images
    assert found.shape == (1, scale * size[0], scale * size[1], 3)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("condition", ["uncond", "given", "inferred"])
def test_conditions(pipe, condition):
    grid = torch.randn(EMBEDDING_DIM, 1, 2, generator=seeded(7))
    options = {"ssl_embeddings": grid} if condition == "given" else {}
    stages: dict[str, list[tuple[int, int]]] = {}

    def progress(stage: str, done: int, total: int) -> None:
        stages.setdefault(stage, []).append((done, total))

    one, again = (
        pipe(
            picture(64, 128), 4, condition, generator=seeded(), output_type="pt", progress=progress, **options, **SHORT
        ).images
        for _ in range(2)
    )
    assert torch.equal(one, again)
    assert list(stages) == (["inferring embeddings"] if condition == "inferred" else []) + ["sampling"]
    assert all(steps[-1][0] == steps[-1][1] for steps in stages.values())
    if condition == "given":
        other = pipe(
            picture(64, 128), 4, "given", -grid, generator=seeded(), output_type="pt", return_dict=False, **SHORT
        )[0]
        assert not torch.equal(one, other)


@pytest.mark.parametrize("magnification", ["10x", "5x", "2.5x"])
def test_the_result_looks_like_the_input_from_afar(magnification):
    """On a model whose answer is known; random weights invert nothing."""
    factor = BRCA[magnification].grid
    image = torch.rand(3, 256 // factor, 512 // factor, generator=seeded()) * 2 - 1
    image = upscale(downscale(image[None], 256 // factor // 4), 256 // factor // 4)[0]  # without detail

    def difference(pulls: int) -> float:
        model = GaussianModel()
        settings = Settings(20, Pull(iterations=pulls), seam_start=0)
        found = sample(model, [Mosaic(BRCA["20x"], 1, 2)], settings, seed=1, image=image)
        return float((downscale(model.decode(found.latent[None]), factor) - image).square().mean())

    assert difference(2) < difference(0) / 3


def test_the_baseline_has_the_same_interface():
    image = picture(40, 50)
    found = BicubicUpscaler()(image, 4, condition="uncond", generator=seeded()).images[0]
    assert found.size == (200, 160)
    flat = torch.full((3, 8, 8), 0.25)
    torch.testing.assert_close(BicubicUpscaler()(flat, 2, output_type="pt").images, torch.full((1, 3, 16, 16), 0.25))


def test_latent_diffusion_has_the_same_interface():
    """On diffusers' own pipeline, at a tiny random size."""
    blocks = {"block_out_channels": (32, 32), "layers_per_block": 1, "norm_num_groups": 8}
    unet = UNet2DModel(
        in_channels=6,
        out_channels=3,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        **blocks,
    )
    pipeline = LDMSuperResolutionPipeline(
        build_first_stage((8, 8, 8), codes=16, norm_num_groups=8), unet, DDIMScheduler()
    )
    pipeline.set_progress_bar_config(disable=True)
    upscaler = LatentUpscaler(pipeline)
    one, again = (
        upscaler(
            picture(20, 33), 4, condition="uncond", generator=seeded(), num_inference_steps=2, output_type="pt"
        ).images
        for _ in range(2)
    )
    assert one.shape == (1, 3, 80, 132)
    assert torch.equal(one, again)
    with pytest.raises(ConfigurationError, match="scale=2"):
        upscaler(picture(32, 32), 2)


def controlnet_pipeline(folder: Path) -> DiffusionPipeline:
    """Of diffusers itself, at a tiny random size, with a tokenizer of single letters."""
    transformers = pytest.importorskip("transformers", reason="needs the extra `baselines`")
    from diffusers import AutoencoderKL, ControlNetModel, StableDiffusionControlNetImg2ImgPipeline

    torch.manual_seed(0)
    words = [
        "<|startoftext|>",
        "<|endoftext|>",
        *(c + end for c in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")),
    ]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=12)
    text = transformers.CLIPTextConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=12, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    blocks = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4}
    down = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "cross_attention_dim": 16, **blocks}
    unet = UNet2DConditionModel(up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), attention_head_dim=2, **down)
    control = ControlNetModel(conditioning_embedding_out_channels=(4, 4, 4, 4), attention_head_dim=2, **down)
    for layer in (*control.controlnet_down_blocks, control.controlnet_cond_embedding.conv_out):
        torch.nn.init.normal_(layer.weight)  # a fresh ControlNet adds nothing
    stages = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = AutoencoderKL(block_out_channels=(8,) * 4, norm_num_groups=4, latent_channels=4, **stages)
    pipeline = StableDiffusionControlNetImg2ImgPipeline(
        vae, transformers.CLIPTextModel(text), tokenizer, unet, control, DDIMScheduler(), None, None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_a_controlnet_has_the_same_interface(tmp_path):
    """On diffusers' own pipeline, at a tiny random size."""
    upscaler = ControlNetUpscaler(controlnet_pipeline(tmp_path), "tissue")
    options = {"condition": "uncond", "num_inference_steps": 2, "output_type": "pt"}

    def drawn(image: Image.Image, scale: int = 4, **further: object) -> torch.Tensor:
        return upscaler(image, scale, generator=seeded(), **options | further).images

    one = drawn(picture(20, 33))
    assert one.shape == (1, 3, 80, 132)
    assert drawn(picture(20, 33), 2).shape == (1, 3, 40, 66)
    assert torch.equal(one, drawn(picture(20, 33)))
    flat = Image.new("RGB", (33, 20), "white")
    assert not torch.equal(one, drawn(flat))
    assert not torch.equal(one, drawn(picture(20, 33), control_scale=0.0)), "the ControlNet takes part"
    other = ControlNetUpscaler(upscaler.pipeline, "words")
    assert not torch.equal(one, other(picture(20, 33), 4, generator=seeded(), **options).images)
    for wrong in ({"scale": 1}, {"strength": 1.5}, {"strength": 0.1}):
        with pytest.raises(ConfigurationError, match=f"{next(iter(wrong))}="):
            drawn(flat, **wrong)


def test_images_are_read_in_every_form():
    image = picture(8, 9)
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    expected = tensor / 127.5 - 1
    for form in (image, array, array / np.float32(255), tensor, tensor / 255, tensor[None]):
        torch.testing.assert_close(read_image(form, 1), expected)


@pytest.mark.parametrize(
    ("image", "options", "problem"),
    [
        (picture(63, 200), {}, "200 x 63 px; one of the finest patches covers 64 x 64"),
        (np.zeros((64, 64), np.uint8), {}, "shape"),
        (torch.full((3, 64, 64), torch.nan), {}, "NaN"),
        (torch.full((3, 64, 64), 7.0), {}, "values from 7"),
        (picture(64, 64), {"scale": 3}, "scale=3"),
        (picture(64, 64), {"scale": 16}, "scale=16"),
        (picture(64, 64), {"condition": "magic"}, "condition='magic'"),
        (picture(64, 64), {"condition": "given"}, "without ssl_embeddings"),
        (picture(64, 64), {"ssl_embeddings": torch.zeros(12, 1, 1)}, "with ssl_embeddings"),
        (picture(64, 64), {"condition": "given", "ssl_embeddings": torch.zeros(9, 1, 1)}, r"expected \(12, 1, 1\)"),
        (
            picture(64, 64),
            {"condition": "given", "ssl_embeddings": torch.full((12, 1, 1), torch.inf)},
            "NaN or infinity",
        ),
        (picture(64, 64), {"inversion_steps": 0}, "inversion_steps=0"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(pipe, image, options, problem):
    with pytest.raises(ConfigurationError, match=problem):
        pipe(image, **options)


def run_superres(image: Path, out: Path, model: Path, *words: str) -> int:
    keys = {"image": image, "out": out, "model": model, "steps": 2, "pulls": 1, "seams": 0, "device": "cpu"}
    keys |= {"condition": "uncond"} | dict(word.split("=", 1) for word in words)
    return main(["superres", *(f"{name}={value}" for name, value in keys.items())])


def test_the_command_writes_the_image_with_its_arguments_and_a_preview(small_model, tmp_path, capsys):
    image = tmp_path / "a region (1).png"
    picture(70, 100).save(image)
    for kind in ("png", "tiff"):
        assert run_superres(image, tmp_path / "out", small_model, f"format={kind}") == 0
    png, large = (tmp_path / "out" / f"a region (1)-4x-uncond.{kind}" for kind in ("png", "tiff"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted([png.name, large.name, "preview.png"])
    assert read_arguments(png) == tiff.read_arguments(large)
    assert read_arguments(png)["command"] == "superres"
    with Slide.open(png, mpp=0.5) as slide, openslide.OpenSlide(large) as tiled:
        assert Image.open(png).info["dpi"] == pytest.approx((50800, 50800), rel=1e-3)
        assert float(tiled.properties["openslide.mpp-x"]) == pytest.approx(0.5)
        assert (slide.width, slide.height) == tiled.dimensions == (400, 280)
        streamed = np.asarray(tiled.read_region((0, 0), 0, (400, 280)).convert("RGB")).astype(int)
    np.testing.assert_allclose(streamed, np.asarray(Image.open(png)).astype(int), atol=1)
    capsys.readouterr()
    assert run_superres(image, tmp_path / "out", small_model) == 0
    assert "exists" in capsys.readouterr().out
    assert run_superres(image, tmp_path / "out", small_model, "seed=1") == 2
    assert "made by other arguments" in capsys.readouterr().err


def test_a_killed_command_goes_on(small_model, tmp_path, monkeypatch):
    """It infers no embeddings again, and makes a preview that is missing."""
    image = tmp_path / "image.png"
    picture(64, 300).save(image)  # two patches at 5x, of which the second is inverted after the kill
    words = ("condition=inferred", "inversion_steps=2")
    assert run_superres(image, tmp_path / "whole", small_model, *words) == 0
    inverted, invert = [], inversion.invert

    def counted(*arguments: Any, **options: Any) -> torch.Tensor:
        if len(inverted) == 1 and not resumed:
            raise KeyboardInterrupt
        inverted.append(arguments)
        return invert(*arguments, **options)

    resumed = False
    with monkeypatch.context() as patched:
        patched.setattr(inversion, "invert", counted)
        assert run_superres(image, tmp_path / "killed", small_model, *words) == 130
        assert [path.suffix for path in (tmp_path / "killed").iterdir()] == [".inferred"]
        resumed = True
        patched.setattr(superres, "save_png", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run_superres(image, tmp_path / "killed", small_model, *words) == 130
    assert len(inverted) == 2
    with monkeypatch.context() as patched:
        patched.setattr(inversion, "invert", counted)
        patched.setattr(superres, "_preview", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run_superres(image, tmp_path / "killed", small_model, *words) == 130
    assert len(inverted) == 2
    assert not (tmp_path / "killed" / "preview.png").exists()
    assert run_superres(image, tmp_path / "killed", small_model, *words) == 0
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == names
    assert all((tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes() for name in names)


def test_embeddings_inferred_from_another_image_are_refused(pipe, tmp_path):
    options = {"state": tmp_path / "run.state", "generator": seeded(), **SHORT}
    pipe.sample(picture(64, 64), **options)
    (tmp_path / "run.state").unlink()
    with pytest.raises(ConfigurationError, match="the state of another run"):
        pipe.sample(picture(64, 70), **options | {"generator": seeded()})


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["image=missing.png"], "not readable as a picture"),
        (["format=gif"], "format=gif"),
        (["scale=5"], "scale=5"),
        (["condition=given"], "without ssl_embeddings"),
        (["condition=magic"], "condition='magic'"),
        (["seed=-1"], "seed=-1"),
    ],
)
def test_the_command_refuses_what_it_cannot_run(small_model, tmp_path, capsys, words, problem):
    picture(64, 64).save(tmp_path / "image.png")
    assert run_superres(tmp_path / "image.png", tmp_path / "out", small_model, *words) in (1, 2)
    assert problem in capsys.readouterr().err

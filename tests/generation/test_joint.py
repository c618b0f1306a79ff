"""Joint multi-scale sampling: its step against the reference implementation, and the pipeline as a whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openslide
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from generation.commands import generate_large
from generation.conditioning import ConditioningDiT
from generation.joint_guidance import (
    Pull,
    ancestral_step,
    estimate,
    gradient_direction,
    image_error,
    latent_direction,
    noise_levels,
    pull,
    unit_peak,
)
from generation.joint_sampling import Sampled, Settings, sample
from generation.mosaic import CoarserPatches, Mosaic
from generation.pipelines.joint import JointMultiScalePipeline
from generation.pipelines.patch import ZoomLDMPipeline
from generation.pipelines.windowed import WindowedPipeline
from generation.resize import downscale, mirrored, upscale
from generation.tiff import read_arguments
from tests.generation.conftest import EMBEDDING_DIM, small_bundle
from tests.generation.gaussian import GaussianModel
from zoomfeat.cli import main
from zoomfeat.encoders import load_encoder
from zoomfeat.errors import ConfigurationError, MagnificationError
from zoomfeat.magnification import BRCA
from zoomfeat.models.summarizer import Summarizer
from zoomfeat.models.zoomldm import ZoomLDM
from zoomfeat.slides.synthetic import make_slide

STRIDE = 50  # between the golden's timesteps
STATES, DIRECTIONS = 1e-2, 1e-2  # relative L2; largest deviation of directions whose peak is 1


def error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).norm() / expected.norm())


def deviation(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max())


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def folder(shared) -> Path:
    return shared / "zoomldm-golden"


@pytest.fixture(scope="module")
def golden(folder) -> dict[str, Tensor]:
    return load_file(folder / "golden.safetensors")


@pytest.fixture(scope="module")
def averaged(folder) -> ZoomLDM:
    return ZoomLDM.from_checkpoint(folder / "weights.ckpt")


@pytest.fixture(scope="module")
def pipe() -> JointMultiScalePipeline:
    pipe = JointMultiScalePipeline(**small_bundle().components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.shared_data
@pytest.mark.parametrize("factor", [2, 4, 8])
def test_resizing_is_that_of_the_reference_up_to_the_border(golden, factor):
    small = golden[f"resize/down{factor}"]
    assert error(downscale(golden["resize/in"], factor), small) < 1e-6
    assert error(upscale(small, factor), golden[f"resize/up{factor}_of_down{factor}"]) < 1e-6


def test_a_mirror_may_be_wider_than_the_image():
    assert mirrored(torch.arange(3.0).reshape(1, 1, 3), (4, 4, 0, 0))[0, 0].tolist() == [
        2,
        2,
        1,
        0,
        0,
        1,
        2,
        2,
        1,
        0,
        0,
    ]


def conditions(bundle: ZoomLDM, golden: dict[str, Tensor], grid: int) -> tuple[Tensor, Tensor]:
    features = golden[f"joint/ssl_feat_{grid}x{grid}"]
    cells = features.flatten(1).T[:, :, None, None]
    return bundle.summarizer(features[None], {2: 1, 4: 2}[grid]), bundle.summarizer(cells, 0)


def cut(image: Tensor, grid: int) -> Tensor:
    """The parts of an image under the patches, row by row."""
    return torch.cat([part for row in image.chunk(grid, dim=2) for part in row.chunk(grid, dim=3)])


@pytest.mark.shared_data
@pytest.mark.parametrize(("name", "grid", "t"), [("joint", 2, 1000), ("joint_mid", 2, 500), ("joint_last", 4, 50)])
def test_a_joint_step_from_the_states_of_the_reference(golden, averaged, name, grid, t):
    guide_tokens, tokens = conditions(averaged, golden, grid)
    level = noise_levels(averaged.scheduler, t, STRIDE)[0]
    suffix = "_0" if name == "joint" else ""
    guide = estimate(averaged, golden[f"{name}/xg_start"], level, guide_tokens, 3.0)
    assert error(guide.clean, golden[f"{name}/t{t}/x0_guide"]) < 1e-5
    image = averaged.decode(guide.clean).clamp(-1, 1)
    if name != "joint_last":
        assert error(image, golden[f"{name}/t{t}/img_guide"]) < 1e-5
    following = ancestral_step(guide, level, golden[f"{name}/noise_guide{suffix}"])
    assert error(following, golden[f"{name}/t{t}/xg_next"]) < 1e-5

    states, targets = golden[f"{name}/xs_start"], cut(image, grid)
    first = estimate(averaged, states, level, tokens, 3.0)
    assert error(first.clean, golden[f"{name}/t{t}/x0_init"]) < 1e-5
    clean = first.clean
    once = Pull(iterations=1)
    for k in range(1 if name == "joint_last" else 2):
        prefix = f"{name}/t{t}/k{k}_"
        pulled = pull(averaged, states, targets, level, tokens, once)
        if name != "joint_last":
            images = averaged.decode(clean)
            assert error(images[[0, 3]], golden[prefix + "img"]) < 1e-5
            assert deviation(image_error(images, targets)[[0, 3]], golden[prefix + "err"]) < 1e-4
            wanted = latent_direction(averaged, images, targets, once.difference)
            assert deviation(wanted, golden[prefix + "dz"]) < DIRECTIONS
            assert error(pulled.estimate.clean, golden[prefix + "x0"]) < STATES
            clean = golden[prefix + "x0"]
        assert deviation(pulled.direction, golden[prefix + "grad"]) < DIRECTIONS
        assert error(pulled.states, golden[prefix + "x"]) < STATES
        states = golden[prefix + "x"]
    after = ancestral_step(pulled.estimate, level, golden[f"{name}/noise_patches{suffix}"])
    assert error(after, golden[f"{name}/t{t}/x_next"]) < STATES


@pytest.mark.shared_data
def test_two_joint_steps_follow_the_reference(golden, averaged):
    guide_tokens, tokens = conditions(averaged, golden, 2)
    guide, states = golden["joint/xg_start"], golden["joint/xs_start"]
    for number, level in enumerate(noise_levels(averaged.scheduler, 1000, STRIDE)[:2]):
        seen = estimate(averaged, guide, level, guide_tokens, 3.0)
        targets = cut(averaged.decode(seen.clean).clamp(-1, 1), 2)
        last = pull(averaged, states, targets, level, tokens, Pull())
        states = ancestral_step(last.estimate, level, golden[f"joint/noise_patches_{number}"])
        guide = ancestral_step(seen, level, golden[f"joint/noise_guide_{number}"])
        assert error(guide, golden[f"joint/t{level.timestep:.0f}/xg_next"]) < 1e-5
        assert error(states, golden[f"joint/t{level.timestep:.0f}/x_next"]) < STATES


@pytest.mark.shared_data
def test_both_directions_bring_patches_nearer_to_their_targets(golden, averaged):
    """On the golden's weights; a pull that went the other way would show the opposite sign."""
    level = noise_levels(averaged.scheduler, 50, STRIDE)[0]
    _, tokens = conditions(averaged, golden, 4)
    states = golden["joint_last/xs_start"][:4]
    target = downscale(golden["vq/img"], 4).repeat(2, 1, 1, 1)

    def difference(moved: Tensor) -> Tensor:
        seen = averaged.decode(estimate(averaged, moved, level, tokens[:4], 3.0).clean)
        return (downscale(seen, 4) - target).square().mean((1, 2, 3))

    gradient = gradient_direction(averaged, states, target, level, tokens[:4], Pull())
    assert gradient.abs().amax((1, 2, 3)).tolist() == pytest.approx([1.0] * 4)
    assert (difference(states + 0.05 * gradient) < difference(states)).all()
    pulled = pull(averaged, states, target, level, tokens[:4], Pull(iterations=1, rate=0.05))
    assert difference(pulled.states).mean() < difference(states).mean()


def test_the_gradient_goes_through_decoder_and_denoiser(pipe):
    states, target, tokens = torch.randn(1, 3, 8, 8), torch.zeros(1, 3, 64, 64), torch.randn(1, 65, 16)
    level = noise_levels(pipe.scheduler, 500, STRIDE)[0]
    found = gradient_direction(pipe, states, target, level, tokens, Pull(scale=2.0))
    with torch.enable_grad():
        variable = states.clone().requires_grad_()
        c, u = (pipe.unet(variable, 500.0, condition).sample for condition in (tokens, torch.zeros_like(tokens)))
        clean = (variable - (1 - level.signal) ** 0.5 * (2 * c - u)) / level.signal**0.5
        loss = downscale(pipe.vae.decode(clean).sample, 4).square().sum()
        expected = -torch.autograd.grad(loss, variable)[0]
    torch.testing.assert_close(found, expected / expected.abs().max(), rtol=1e-3, atol=1e-3)


def test_clipped_latents_stay_among_the_codes_and_explain_the_state(pipe):
    states, tokens = 30 * torch.randn(2, 3, 8, 8), torch.randn(2, 65, 16)
    level = noise_levels(pipe.scheduler, 500, STRIDE)[0]
    codes = pipe.vae.quantize.embedding.weight.detach() * pipe.vae.config.scaling_factor
    with torch.no_grad():
        free, kept = (estimate(pipe, states, level, tokens, 2.0, clip) for clip in (False, True))
    for channel in range(3):
        ends = codes[:, channel].min(), codes[:, channel].max()
        assert ends[0] <= kept.clean[:, channel].min()
        assert kept.clean[:, channel].max() <= ends[1]
        torch.testing.assert_close(kept.clean[:, channel], free.clean[:, channel].clamp(*ends))
    explained = level.signal**0.5 * kept.clean + (1 - level.signal) ** 0.5 * kept.noise
    torch.testing.assert_close(explained, states, rtol=1e-4, atol=1e-4)


def test_a_patch_without_error_has_no_direction():
    assert not unit_peak(torch.zeros(2, 3, 4, 4)).any()


def embeddings(grid: int) -> Tensor:
    return torch.randn(EMBEDDING_DIM, grid, grid, generator=torch.Generator().manual_seed(1))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


SHORT = {"num_inference_steps": 2, "pulls": 1, "seam_start": 50}


def test_an_image_has_the_size_of_the_guide_at_20x(pipe):
    images, coarser = pipe(embeddings(2), "10x", generator=seeded(), output_type="np", return_dict=False, **SHORT)
    assert images.shape == (1, 512, 512, 3)
    assert list(coarser) == ["10x"]
    assert coarser["10x"].shape == (1, 256, 256, 3)
    found = pipe(embeddings(2), "10x", generator=seeded(), **SHORT)
    np.testing.assert_array_equal(np.asarray(found.images[0]), (images[0] * 255).round().astype(np.uint8))
    other = pipe(embeddings(2), "10x", generator=seeded(1), output_type="np", **SHORT).images
    assert np.abs(images - other).max() > 0.1


def test_scales_between_the_guide_and_20x_are_sampled_too(pipe):
    found = pipe(
        embeddings(4), "5x", through=["10x"], generator=seeded(), output_type="latent", num_inference_steps=1, pulls=1
    )
    assert {name: tuple(latent.shape) for name, latent in found.coarser.items()} == {
        "5x": (1, 3, 8, 8),
        "10x": (1, 3, 16, 16),
    }
    assert found.images.shape == (1, 3, 32, 32)


def test_every_patch_is_pulled_by_the_part_of_the_guide_that_it_lies_under(pipe):
    """Two coarse patches side by side, four finer ones under each."""
    clean = torch.randn(2, 3, 8, 8)
    above = CoarserPatches(pipe, clean, columns=2, factor=2)
    image = torch.cat(list(pipe.decode(clean).clamp(-1, 1)), dim=2)  # 256 x 512
    found = above.targets(range(8))
    for patch in range(8):
        row, column = divmod(patch, 4)
        part = image[:, 128 * row : 128 * (row + 1), 128 * column : 128 * (column + 1)]
        torch.testing.assert_close(found[patch], part, rtol=1e-3, atol=1e-4)


def test_every_patch_has_its_own_embeddings_as_condition(pipe):
    raw = torch.randn(EMBEDDING_DIM, 4, 8)
    mosaic = Mosaic(BRCA["10x"], 2, 4, embeddings=raw)
    expected = pipe.encode_embeddings([raw[:, 2:4, 4:6]], [BRCA["10x"]])
    torch.testing.assert_close(mosaic.conditions(pipe, [6]), expected)
    assert Mosaic(BRCA["10x"], 2, 4).conditions(pipe, [6]) is None


def mosaics(*names: str) -> list[Mosaic]:
    sides = [BRCA[names[0]].grid // BRCA[name].grid for name in names]
    return [Mosaic(BRCA[name], side, side) for name, side in zip(names, sides, strict=True)]


def disagreement(sampled: Sampled, above: str, below: Tensor) -> float:
    """Between a scale and the one below it, seen from afar."""
    model = GaussianModel()
    seen, wanted = model.decode(below[None]), model.decode(sampled.coarser[above][None])
    return float((downscale(seen, seen.shape[-1] // wanted.shape[-1]) - wanted.clamp(-1, 1)).square().mean())


@pytest.mark.parametrize("guide", ["10x", "5x"])
def test_pulls_make_the_mosaic_agree_with_the_guide(guide):
    def difference(pulls: int) -> float:
        settings = Settings(20, Pull(iterations=pulls), seam_start=0)
        sampled = sample(GaussianModel(), mosaics(guide, "20x"), settings, seed=3)
        return disagreement(sampled, guide, sampled.latent)

    assert difference(2) < difference(0) / 3


def test_each_scale_of_a_chain_agrees_with_the_one_above():
    sampled = sample(GaussianModel(), mosaics("5x", "10x", "20x"), Settings(20, seam_start=0), seed=3)
    unguided = sample(GaussianModel(), mosaics("5x", "10x", "20x"), Settings(20, Pull(iterations=0), 0), seed=3)
    assert (
        disagreement(sampled, "5x", sampled.coarser["10x"]) < disagreement(unguided, "5x", unguided.coarser["10x"]) / 3
    )
    assert disagreement(sampled, "10x", sampled.latent) < disagreement(unguided, "10x", unguided.latent) / 3


def test_the_batch_does_not_decide_the_image():
    one, several = (
        sample(GaussianModel(), mosaics("5x", "10x", "20x"), Settings(10, batch_size=size), seed=5).latent
        for size in (1, 3)
    )
    torch.testing.assert_close(several, one, rtol=1e-3, atol=1e-3)


def test_progress_counts_forward_passes():
    model, seen = GaussianModel(), []
    settings = Settings(5, Pull(iterations=2), seam_start=100, batch_size=1)
    sample(model, mosaics("10x", "20x"), settings, seed=0, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (model.passes, model.passes)
    assert seen == sorted(seen)


def test_the_guide_may_be_drawn_by_tokens_alone(pipe):
    tokens = torch.randn(1, *pipe.summarizer.context_shape)
    found = pipe(tokens=tokens, magnification="10x", generator=seeded(), output_type="latent", **SHORT)
    assert found.images.isfinite().all()
    other = pipe(tokens=tokens + 1, magnification="10x", generator=seeded(), output_type="latent", **SHORT)
    assert not torch.equal(found.coarser["10x"], other.coarser["10x"])


@pytest.mark.parametrize("interrupted_after", [1, 4])
def test_an_interrupted_run_ends_with_the_identical_file(pipe, tmp_path, interrupted_after):
    state = tmp_path / "state"
    options = {**SHORT, "seam_start": 100, "state": state, "save_every": 2}
    steps: list[int] = []

    def interrupt(done: int, total: int) -> None:
        steps.append(done)
        if done > total * interrupted_after / 5:
            raise KeyboardInterrupt

    whole = pipe.sample(embeddings(2), "10x", generator=seeded(), **{**SHORT, "seam_start": 100})
    pipe.write(whole.latent, tmp_path / "whole.tiff", {"seed": 0})
    with pytest.raises(KeyboardInterrupt):
        pipe.sample(embeddings(2), "10x", generator=seeded(), progress=interrupt, **options)
    went_on: list[int] = []
    latent = pipe.sample(
        embeddings(2), "10x", generator=seeded(), progress=lambda done, total: went_on.append(done), **options
    ).latent
    assert (went_on[0] > 0) == (interrupted_after == 4)  # the state is saved every second step
    pipe.write(latent, tmp_path / "again.tiff", {"seed": 0})
    assert (tmp_path / "again.tiff").read_bytes() == (tmp_path / "whole.tiff").read_bytes()
    assert read_arguments(tmp_path / "again.tiff") == {"seed": 0}
    with openslide.OpenSlide(tmp_path / "again.tiff") as slide:
        assert slide.dimensions == (512, 512)
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.tiff", "state", "whole.tiff"]


def test_the_state_of_another_run_is_refused(pipe, tmp_path):
    options = {**SHORT, "state": tmp_path / "state"}
    pipe.sample(embeddings(2), "10x", generator=seeded(), **options)
    for other in ({"generator": seeded(1)}, {"generator": seeded(), "pulls": 2}):
        with pytest.raises(ConfigurationError, match="the state of another run"):
            pipe.sample(embeddings(2), "10x", **{**options, **other})
    (tmp_path / "state").write_bytes(b"no state")
    with pytest.raises(ConfigurationError, match="not a sampling state"):
        pipe.sample(embeddings(2), "10x", generator=seeded(), **options)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"ssl_embeddings": embeddings(4)}, r"shape \(12, 4, 4\) for a guide at 10x; expected \(12, 2, 2\)"),
        ({"ssl_embeddings": embeddings(2)[:5]}, "width 5; the model reads 12"),
        ({"ssl_embeddings": torch.full((12, 2, 2), torch.nan)}, "NaN"),
        ({"ssl_embeddings": None}, "neither ssl_embeddings nor tokens"),
        ({"tokens": torch.zeros(1, 65, 16)}, "both"),
        ({"ssl_embeddings": None, "tokens": torch.zeros(1, 65, 3)}, "expected"),
        ({"num_inference_steps": 30}, "divides 1000"),
        ({"seam_start": 120}, "multiple of 50"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"pulls": -1}, "pulls=-1"),
        ({"by": "magic"}, "by='magic'"),
        ({"output_type": "gif"}, "output_type"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(pipe, options, problem):
    with pytest.raises(ConfigurationError, match=problem):
        pipe(**{"ssl_embeddings": embeddings(2), "magnification": "10x", **options})


def test_magnifications_that_do_not_fit_are_refused(pipe):
    for guide, through, problem in (
        ("20x", [], "coarse to fine"),
        ("0.1x", [], "no magnification"),
        ("5x", ["1.25x"], "coarse to fine"),
    ):
        with pytest.raises(MagnificationError, match=problem):
            pipe(embeddings(1), guide, through=through)


def test_half_precision_is_refused():
    half = JointMultiScalePipeline(**small_bundle().to(torch.bfloat16).components)
    with pytest.raises(ConfigurationError, match="finite differences"):
        half(embeddings(2), "10x")


@pytest.fixture(scope="module")
def model(small_model, tmp_path_factory) -> Path:
    """A model conditioned on `color-stats`, with a conditioning model."""
    torch.manual_seed(0)
    cdm = ConditioningDiT(token_dim=16, hidden_dim=16, num_layers=1, num_heads=2)
    summarizer = Summarizer(load_encoder("color-stats").dim, 16, 16, num_layers=1, num_heads=2, mlp_dim=16)
    parts = ZoomLDMPipeline.load(small_model).components | {"summarizer": summarizer, "cdm": cdm}
    folder = tmp_path_factory.mktemp("large")
    ZoomLDMPipeline(**parts, ssl_encoder="color-stats").save_pretrained(folder)
    return folder


def run_large(model: Path, out: Path, *words: str) -> int:
    keys = {"model": model, "out": out, "guide": "10x", "steps": 2, "pulls": 1, "seams": 0, "device": "cpu"}
    keys |= dict(word.split("=", 1) for word in words)
    return main(["generate-large", *(f"{name}={value}" for name, value in keys.items())])


def test_the_command_draws_a_region_of_a_slide_and_goes_on_after_a_kill(model, tmp_path, capsys, monkeypatch):
    make_slide(tmp_path / "slide.tiff", seed=0, size=(900, 900), mpp=0.5)
    words = (f"slide={tmp_path / 'slide.tiff'}", "x=100", "y=200")
    assert run_large(model, tmp_path / "a", *words) == 0
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["10x-0000.tiff", "preview.png"]
    with openslide.OpenSlide(tmp_path / "a" / "10x-0000.tiff") as slide:
        assert slide.dimensions == (512, 512)
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.5)
    made_by = read_arguments(tmp_path / "a" / "10x-0000.tiff")
    assert made_by["command"] == "generate-large"
    assert (made_by["guide"], made_by["x"], made_by["ssl_encoder"]) == ("10x", 100, "color-stats")

    with monkeypatch.context() as patched:
        patched.setattr(JointMultiScalePipeline, "write", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run_large(model, tmp_path / "b", *words) == 130
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["10x-0000.state"]
    assert run_large(model, tmp_path / "b", *words) == 0
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == names
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)

    with monkeypatch.context() as patched:  # between the image and its preview
        patched.setattr(generate_large, "preview_grid", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run_large(model, tmp_path / "c", *words) == 130
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["10x-0000.state", "10x-0000.tiff"]
    assert run_large(model, tmp_path / "c", *words) == 0
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == names
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "c" / name).read_bytes() for name in names)
    (tmp_path / "c" / "preview.png").unlink()
    assert run_large(model, tmp_path / "c", *words) == 0
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == names

    capsys.readouterr()
    assert run_large(model, tmp_path / "a", *words) == 0
    assert "exists" in capsys.readouterr().out
    assert run_large(model, tmp_path / "a", *words, "pulls=2") == 2
    assert "made by other arguments" in capsys.readouterr().err


def test_the_command_takes_embeddings_or_draws_the_guide_itself(model, tmp_path):
    width = load_encoder("color-stats").dim
    np.save(tmp_path / "grid (1).npy", np.random.default_rng(0).normal(size=(width, 2, 2)).astype(np.float32))
    assert run_large(model, tmp_path / "given", f"embeddings={tmp_path / 'grid (1).npy'}") == 0
    assert run_large(model, tmp_path / "drawn", "seed=3") == 0
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["10x-0003.tiff", "preview.png"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["guide=20x"], "coarse to fine"),
        (["slide=a.tiff"], "without x= and y="),
        (["x=1", "y=2"], "without slide="),
        (["slide=a.tiff", "x=1", "y=2", "embeddings=b.npy"], "both slide= and embeddings="),
        (["embeddings=missing.npy"], "not readable as an array"),
        (["seed=-1"], "seed=-1"),
        (["steps=7"], "divides 1000"),
    ],
)
def test_the_command_refuses_what_it_cannot_run(model, tmp_path, capsys, words, problem):
    assert run_large(model, tmp_path / "out", *words) in (1, 2)
    assert problem in capsys.readouterr().err


def test_windows_without_a_guide_draw_the_baseline(pipe):
    windowed = WindowedPipeline.over(pipe)
    windowed.set_progress_bar_config(disable=True)
    steps: list[tuple[int, int]] = []
    options = {"num_inference_steps": 2, "progress": lambda done, total: steps.append((done, total))}
    grid = torch.randn(EMBEDDING_DIM, 1, 2, generator=seeded(4))
    one, again = (windowed(grid, generator=seeded(), output_type="pt", **options).images for _ in range(2))
    assert one.shape == (1, 3, 256, 512)
    assert torch.equal(one, again)
    assert steps[-1] == (6, 6)
    with pytest.raises(ConfigurationError, match="rows, columns"):
        windowed(grid[:3])
    with pytest.raises(ConfigurationError, match="NaN"):
        windowed(grid * torch.nan)

"""The patch pipeline: parity with the reference in its own loop, independence of the batch, inputs, round trips."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, UniPCMultistepScheduler
from safetensors.torch import load_file, save_file
from torch import Tensor

from generation import conditioning
from generation.batches import Batch, seeded_normal
from generation.conditioning import ConditioningDiT
from generation.monitoring import sample_images
from generation.pipelines.inputs import spawn
from generation.pipelines.models import load_pipeline
from generation.pipelines.patch import ZoomLDMPipeline
from generation.pipelines.schedulers import SCHEDULERS, make_scheduler
from generation.region import region_embeddings, region_image
from zoomfeat.encoders import load_encoder
from zoomfeat.encoders.zoomldm import TINY, untrained_tiny
from zoomfeat.errors import CheckpointMismatchError, ConfigurationError, MagnificationError, ZoomfeatError
from zoomfeat.magnification import BRCA, NAIP
from zoomfeat.models.summarizer import Summarizer, embedding_grid
from zoomfeat.models.zoomldm import ZoomLDM
from zoomfeat.slides import Slide
from zoomfeat.slides.synthetic import make_slide

WIDTH = 12  # of the embeddings that `small_model` reads
TOLERANCE = 1e-5


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def embeddings(magnification: str, count: int = 1, seed: int = 0) -> Tensor:
    side = BRCA[magnification].pooled_grid
    return torch.randn(count, WIDTH, side, side, generator=seeded(seed))


def error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).norm() / expected.norm())


def open_gates(cdm: ConditioningDiT) -> ConditioningDiT:
    """A fresh conditioning model predicts zeros, whatever it is asked; this one does not."""
    generator = seeded(1)
    for parameter in cdm.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    return cdm.eval()


def small_cdm(**sizes: int) -> ConditioningDiT:
    sizes = {"token_dim": 16, "hidden_dim": 16, "num_layers": 1, "num_heads": 2} | sizes
    return open_gates(ConditioningDiT(**sizes))


@pytest.fixture
def pipe(small_model: Path) -> ZoomLDMPipeline:
    pipe = ZoomLDMPipeline.load(small_model)
    pipe.register_modules(cdm=small_cdm())
    pipe.set_progress_bar_config(disable=True)
    return pipe


# Parity with the reference implementation


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Tensor]:
    return load_file(shared / "zoomldm-golden" / "golden.safetensors")


@pytest.fixture
def reference(shared: Path) -> ZoomLDMPipeline:
    pipe = ZoomLDMPipeline.load(shared / "zoomldm-golden" / "weights.ckpt")
    pipe.set_progress_bar_config(disable=True)
    return pipe


class _EnoughError(Exception):
    pass


def trajectory(
    pipe: ZoomLDMPipeline, golden: dict[str, Tensor], steps: int, first: int | None = None, **options: float
) -> list[tuple[int, Tensor]]:
    """Timestep and state after each step (or each of the first), both samples of the goldens in one tensor."""
    states: list[list[tuple[int, Tensor]]] = []
    for sample in range(2):
        states.append([])

        def record(_: object, index: int, timestep: Tensor, given: dict[str, Tensor]) -> dict[str, Tensor]:
            states[-1].append((int(timestep), given["latents"]))
            if index + 1 == first:
                raise _EnoughError
            return given

        with suppress(_EnoughError):
            pipe(
                golden["summ/feat_m2"][sample],
                "5x",
                num_inference_steps=steps,
                latents=golden["samp/x_T"][sample : sample + 1],
                output_type="latent",
                callback_on_step_end=record,
                **options,
            )
    return [(t, torch.cat([a, b])) for (t, a), (_, b) in zip(*states, strict=True)]


@pytest.mark.shared_data
@pytest.mark.parametrize(("scheduler", "extra"), [("ddim", 0), ("plms", 1)])
@pytest.mark.parametrize(("steps", "compared"), [(5, 5), (50, 3)])
def test_deterministic_trajectories_equal_the_reference(reference, golden, scheduler, extra, steps, compared):
    """PLMS evaluates its first step twice, so that its states come one evaluation later."""
    reference.scheduler = make_scheduler(scheduler, reference.scheduler.config)
    name = f"{scheduler}_S{steps}" + ("" if compared == steps else f"_first{compared}")
    found = trajectory(reference, golden, steps, None if compared == steps else compared + extra)
    assert len(found) == compared + extra
    timesteps = list(dict.fromkeys(t for t, _ in found))[:compared]
    assert timesteps == golden[f"{name}/t"].tolist()[: len(timesteps)]
    for i, (_, state) in enumerate(found[extra:], start=1):
        assert error(state, golden[f"{name}/x{i}"]) < TOLERANCE


@pytest.mark.shared_data
def test_images_equal_the_reference(reference, golden):
    reference.scheduler = make_scheduler("plms", reference.scheduler.config)
    found = reference(
        golden["summ/feat_m2"], "5x", num_inference_steps=5, latents=golden["samp/x_T"], output_type="pt"
    ).images
    assert error(found, (golden["plms_S5/image"] / 2 + 0.5).clamp(0, 1)) < TOLERANCE


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("scheduler", "options", "compared"),
    [("ddim", {"eta": 1.0}, 5), ("ddpm", {}, 4)],  # DDPM ends at a clean image, the release's one level above
)
def test_ancestral_trajectories_equal_the_reference(reference, golden, monkeypatch, scheduler, options, compared):
    recorded = iter([golden["samp/noise"][step, sample][None] for sample in range(2) for step in range(compared)])
    monkeypatch.setattr(f"diffusers.schedulers.scheduling_{scheduler}.randn_tensor", lambda *_, **__: next(recorded))
    reference.scheduler = make_scheduler(scheduler, reference.scheduler.config)
    found = trajectory(reference, golden, 5, compared, **options)
    assert len(found) == compared
    assert next(recorded, None) is None
    for i, (timestep, state) in enumerate(found, start=1):
        assert timestep == int(golden["ddim_eta1_S5/t"][i - 1])
        assert error(state, golden[f"ddim_eta1_S5/x{i}"]) < TOLERANCE


@pytest.mark.shared_data
def test_tokens_of_the_conditioning_model_equal_the_reference(reference, golden, shared, monkeypatch):
    cdm = ConditioningDiT.from_checkpoint(shared / "zoomldm-golden" / "cdm.pt", num_heads=4)
    pipe = ZoomLDMPipeline(**reference.components | {"cdm": cdm})
    pipe.set_progress_bar_config(disable=True)
    noise = iter(golden["cdm/x"].mT)
    monkeypatch.setattr(conditioning, "randn_tensor", lambda *_, **__: next(noise)[None].clone())
    steps: list[Tensor] = []
    draw = pipe.draw_tokens

    def spy(*arguments):
        def both(tokens: Tensor) -> None:
            steps.append(tokens)
            arguments[3](tokens)

        return draw(*arguments[:3], both)

    monkeypatch.setattr(pipe, "draw_tokens", spy)
    names = [str(BRCA.steps[index]) for index in golden["cdm/y"].tolist()]
    pipe(magnification=names, num_cdm_steps=5, num_inference_steps=1, output_type="latent")
    for i in range(5):
        found = torch.cat([steps[i], steps[5 + i]])
        assert error(found.mT, golden[f"cdm/ddim5_sample_{i}"]) < TOLERANCE


# Seeds and batches


def drawn(pipe: ZoomLDMPipeline, *arguments: object, **options: object) -> Tensor:
    options = {"num_inference_steps": 3, "num_cdm_steps": 3, "output_type": "latent"} | options
    return pipe(*arguments, **options).images


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_sample_does_not_depend_on_its_batch(pipe, scheduler):
    pipe.scheduler = make_scheduler(scheduler, pipe.scheduler.config)
    grids = [embeddings("20x")[0], embeddings("5x")[0], embeddings("0.15625x")[0]]
    names = ["20x", "5x", "0.15625x"]
    together = drawn(pipe, grids, names, num_images=2, generator=seeded())
    generators = spawn(seeded(), 6)
    alone = [drawn(pipe, grids[i // 2], names[i // 2], generator=[generators[i]]) for i in range(6)]
    assert torch.equal(together, torch.cat(alone))
    assert len({tuple(latent.flatten().tolist()) for latent in together}) == 6


def test_few_images_are_the_first_of_many_and_calls_continue_each_other(pipe):
    many = drawn(pipe, magnification="1.25x", num_images=4, generator=seeded())
    assert torch.equal(drawn(pipe, magnification="1.25x", generator=seeded()), many[:1])
    source = seeded()
    parts = [drawn(pipe, magnification="1.25x", num_images=2, generator=source) for _ in range(2)]
    assert torch.equal(torch.cat(parts), many)
    assert not torch.equal(drawn(pipe, magnification="1.25x", generator=seeded(1)), many[:1])


def test_batches_as_on_a_gpu_are_equal_up_to_rounding(pipe, monkeypatch):
    expected = drawn(pipe, magnification=["1.25x", "20x", "5x"], generator=seeded())
    sizes = []
    denoise = pipe.denoise
    monkeypatch.setattr(pipe, "denoise", lambda latents, *rest: sizes.append(len(latents)) or denoise(latents, *rest))
    monkeypatch.setattr(pipe, "samples_at_once", lambda batch_size: batch_size)
    found = drawn(pipe, magnification=["1.25x", "20x", "5x"], generator=seeded(), batch_size=2)
    assert sizes == [2, 1]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_pictures_of_a_training_run_are_the_loop_written_out():
    bundle = untrained_tiny()
    grids = [torch.randn(1280, 4, 4, generator=seeded(i)) for i in range(2)]
    batch = Batch([3, 8], None, None, grids, torch.tensor([2, 2]))
    found = sample_images(bundle, batch, steps=2, guidance=2.0, seed=5)
    with torch.no_grad():
        tokens = bundle.summarizer([embedding_grid(grid[None])[0] for grid in grids], batch.magnifications)
        scheduler = DDIMScheduler.from_config(bundle.scheduler.config)
        scheduler.set_timesteps(2)
        latents = torch.stack([seeded_normal((4, 32, 32), 5, item) for item in (3, 8)])
        for timestep in scheduler.timesteps:
            both = torch.cat([tokens, torch.zeros_like(tokens)])
            c, u = bundle.unet(torch.cat([latents, latents]), timestep, both).sample.chunk(2)
            latents = scheduler.step(u + 2.0 * (c - u), timestep, latents).prev_sample
    assert torch.equal(found, bundle.decode(latents).clamp(-1, 1))


# Schedulers, guidance, outputs


@pytest.mark.parametrize(
    ("scheduler", "steps", "tolerance"),
    [("ddim", 50, 0.05), ("plms", 50, 0.01), ("dpm-solver++", 10, 0.02), ("unipc", 20, 0.02), ("ddpm", 100, 0.1)],
)
def test_samplers_solve_what_has_an_exact_solution(pipe, monkeypatch, scheduler, steps, tolerance):
    """Latents that are normally distributed have a denoiser, and a path from the noise, in closed form."""
    mean, deviation = 0.7, 0.5
    abar = pipe.scheduler.alphas_cumprod

    def denoiser(noisy: Tensor, timestep: Tensor, _: Tensor) -> SimpleNamespace:
        signal = abar[int(timestep)]
        variance = signal * deviation**2 + 1 - signal
        return SimpleNamespace(sample=(noisy - signal.sqrt() * mean) * (1 - signal).sqrt() / variance)

    monkeypatch.setattr(pipe.unet, "forward", denoiser)
    pipe.scheduler = make_scheduler(scheduler, pipe.scheduler.config)
    start = torch.randn(1, 3, 64, 64, generator=seeded())
    found = drawn(pipe, embeddings("5x"), "5x", num_inference_steps=steps, latents=start, generator=seeded(1))
    if scheduler == "ddpm":  # ends elsewhere in the same distribution
        assert found.mean() == pytest.approx(mean, abs=0.02)
        assert found.std() == pytest.approx(deviation, rel=tolerance)
        assert error(found, mean + deviation * start) > 0.5
    else:
        assert error(found, mean + deviation * start) < tolerance


def test_guidance_from_no_condition_to_more_than_all(pipe):
    def at(scale: float, seed: int = 0) -> Tensor:
        return drawn(pipe, embeddings("5x", seed=seed), "5x", guidance_scale=scale, generator=seeded())

    torch.testing.assert_close(at(0.0, seed=1), at(0.0, seed=2), rtol=1e-4, atol=1e-4)
    assert error(at(1.0, seed=1), at(1.0, seed=2)) > 1e-3
    torch.testing.assert_close(at(1.0), at(1.0 + 1e-6), rtol=1e-3, atol=1e-3)  # one pass, and two
    assert error(at(3.0), at(1.0)) > error(at(2.0), at(1.0)) > 1e-3


def test_output_types_show_the_same_images(pipe):
    images = {kind: pipe(embeddings("5x", 2), "5x", 2, generator=seeded(), output_type=kind).images
              for kind in ("pil", "np", "pt", "latent")}  # fmt: skip
    assert images["latent"].shape == (2, *pipe.latent_shape)
    assert images["pt"].shape == (2, 3, 256, 256)
    assert images["pt"].min() >= 0
    assert images["pt"].max() <= 1
    assert np.array_equal(images["np"], images["pt"].permute(0, 2, 3, 1).numpy())
    assert all(image.size == (256, 256) and image.mode == "RGB" for image in images["pil"])
    assert np.array_equal(np.asarray(images["pil"][1]), (images["np"][1] * 255).round().astype(np.uint8))
    decoded = (pipe.decode(images["latent"][:1]) / 2 + 0.5).clamp(0, 1)
    assert torch.equal(decoded, images["pt"][:1])
    (as_tuple,) = pipe(embeddings("5x", 2), "5x", 2, generator=seeded(), output_type="pt", return_dict=False)
    assert torch.equal(as_tuple, images["pt"])


def test_channels_and_size_of_latents_are_those_of_the_modules():
    pipe = ZoomLDMPipeline(**untrained_tiny().components)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.latent_shape == (4, 32, 32)
    latents = torch.randn(1, 4, 16, 24, generator=seeded())
    images = pipe(torch.randn(1280, 1, 1, generator=seeded()), "20x", 1, latents=latents, output_type="pt").images
    assert images.shape == (1, 3, 128, 192)


def test_half_precision(pipe):
    latents = pipe.to(torch.bfloat16)(magnification="5x", num_inference_steps=3, num_cdm_steps=3, output_type="latent")
    assert latents.images.isfinite().all()
    image = pipe(embeddings("5x"), "5x", num_inference_steps=3, output_type="pt").images
    assert image.isfinite().all()


def test_grids_pooled_or_not_are_the_same_condition(pipe):
    grid = torch.randn(WIDTH, 16, 16, generator=seeded())
    pooled = torch.nn.functional.adaptive_avg_pool2d(grid, 8)
    found = [drawn(pipe, given, "1.25x", generator=seeded()) for given in (grid, pooled, grid.numpy(), grid[None])]
    assert all(torch.equal(each, found[0]) for each in found)


def test_tokens_take_the_place_of_embeddings(pipe):
    grids = embeddings("5x", 2)
    tokens = torch.cat([pipe.encode_embeddings([grid], [BRCA["5x"]]) for grid in grids])
    assert torch.equal(drawn(pipe, tokens=tokens, generator=seeded()), drawn(pipe, grids, "5x", generator=seeded()))


def test_progress_and_callbacks(pipe):
    seen, timesteps = [], []

    def callback(given: ZoomLDMPipeline, step: int, timestep: Tensor, values: dict[str, Tensor]) -> dict[str, Tensor]:
        assert given is pipe
        timesteps.append((step, int(timestep)))
        return {"latents": torch.zeros_like(values["latents"])}

    latents = drawn(
        pipe, magnification="5x", num_images=2, num_inference_steps=2, callback_on_step_end=callback,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [
        (i, 10) for i in range(1, 11)
    ]  # twice three steps of the conditioning model and two of the denoiser
    assert timesteps == [(0, 501), (1, 1)] * 2
    assert not latents.any()


# On disk


def test_round_trip_on_disk(pipe, tmp_path):
    pipe.register_to_config(ladder="brca", ssl_encoder="color-stats")
    pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.save_pretrained(tmp_path / "saved")
    for again in (ZoomLDMPipeline.from_pretrained(tmp_path / "saved"), ZoomLDMPipeline.load(tmp_path / "saved")):
        again.set_progress_bar_config(disable=True)
        assert isinstance(again.scheduler, UniPCMultistepScheduler)
        assert again.config.ssl_encoder == "color-stats"
        wanted = {"magnification": ["5x", "20x"], "generator": seeded()}
        assert torch.equal(drawn(again, **wanted), drawn(pipe, **wanted | {"generator": seeded()}))
    assert ZoomLDM.load(tmp_path / "saved").weights_hash() == pipe.weights_hash()  # the encoders' own reader


def test_a_conditioning_model_beside_the_modules_is_found(small_model, pipe, tmp_path):
    ZoomLDM.load(small_model).save_pretrained(tmp_path / "model")
    assert ZoomLDMPipeline.load(tmp_path / "model").cdm is None
    pipe.cdm.save_pretrained(tmp_path / "model" / "cdm")
    found = ZoomLDMPipeline.load(tmp_path / "model").cdm
    assert torch.equal(found.x_embedder.weight, pipe.cdm.x_embedder.weight)
    elsewhere = ZoomLDMPipeline.load(small_model, cdm=tmp_path / "model" / "cdm")
    assert elsewhere.cdm is not None


@pytest.mark.parametrize("listed", [True, False])
def test_a_conditioning_model_that_lacks_weights_is_refused(small_model, pipe, tmp_path, listed):
    (pipe if listed else ZoomLDM.load(small_model)).save_pretrained(tmp_path)
    pipe.cdm.save_pretrained(tmp_path / "cdm")
    file = tmp_path / "cdm" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    del weights["blocks.0.attn.qkv.bias"]
    save_file(weights, file)
    with pytest.raises(CheckpointMismatchError, match=r"blocks\.0\.attn\.qkv\.bias"):
        ZoomLDMPipeline.load(tmp_path)


@pytest.mark.parametrize("sizes", [{"token_dim": 8}, {"num_tokens": 5}, {"num_magnifications": 4}])
def test_a_conditioning_model_for_another_summarizer_is_refused(pipe, sizes):
    with pytest.raises(CheckpointMismatchError, match="the conditioning model makes tokens"):
        ZoomLDMPipeline(**pipe.components | {"cdm": small_cdm(**sizes)})


def test_models_by_name_and_path(small_model):
    with pytest.raises(ConfigurationError, match=r"no model 'zoomldm-huge'.*zoomldm-tiny"):
        load_pipeline("zoomldm-huge")
    pipe = load_pipeline(str(small_model), device="cpu")
    assert pipe.config.ssl_encoder is None


@pytest.mark.skipif(not (TINY / "model_index.json").is_file(), reason="zoomldm-tiny is not in this checkout")
def test_the_model_that_ships():
    pipe = load_pipeline("zoomldm-tiny", device="cpu")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.config.ssl_encoder == "efficientnet-lite0"
    assert pipe.ladder == BRCA
    grids = [torch.randn(1280, step.pooled_grid, step.pooled_grid, generator=seeded()) for step in BRCA.steps[::4]]
    images = pipe(grids, BRCA.steps[::4], num_inference_steps=5, generator=seeded()).images
    assert all(np.asarray(image).std() > 1 for image in images)
    if pipe.cdm is not None:
        (image,) = pipe(magnification="0.15625x", num_inference_steps=5, num_cdm_steps=5).images
        assert np.asarray(image).std() > 1


# Regions of slides


@pytest.fixture(scope="module")
def slide_path(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("slides") / "slide.tiff"
    make_slide(path, seed=0, size=(1500, 1300), mpp=0.25)
    return path


@pytest.fixture
def coloured(pipe) -> ZoomLDMPipeline:
    """A pipeline that was conditioned on `color-stats`, as far as its shapes go."""
    torch.manual_seed(0)
    width = load_encoder("color-stats").dim
    summarizer = Summarizer(width, 16, 16, num_layers=1, num_heads=2, mlp_dim=16)
    made = ZoomLDMPipeline(**pipe.components | {"summarizer": summarizer.eval()}, ssl_encoder="color-stats")
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize(("x", "y", "magnification"), [(100, 37, "20x"), (321, 100, "10x"), (-200, 900, "5x")])
def test_every_finest_patch_under_a_region_is_embedded(slide_path, x, y, magnification):
    encoder = load_encoder("color-stats")
    step, seen = BRCA[magnification], []
    with Slide.open(slide_path) as slide:
        found = region_embeddings(slide, x, y, step, encoder, batch_size=3, on_patches=lambda *done: seen.append(done))
        for row, column in np.ndindex(step.grid, step.grid):
            patch = slide.read(x + 512 * column, y + 512 * row, 512, 512, [(256, 256)])[0]  # 0.25 um/px
            np.testing.assert_allclose(found[:, row, column], encoder(patch[None])[0], rtol=1e-5)
        reference = slide.read(x, y, 512 * step.grid, 512 * step.grid, [(256, 256)])[0]
        assert np.array_equal(region_image(slide, x, y, step), reference)
    assert seen[-1] == (step.grid**2, step.grid**2)
    assert found.shape == (encoder.dim, step.grid, step.grid)


def test_a_large_region_is_read_in_blocks_and_glass_is_embedded_once(slide_path):
    class Counting:
        calls = 0

        def __init__(self) -> None:
            self.encoder = load_encoder("color-stats")
            self.dim = self.encoder.dim

        def at(self, _: object) -> Counting:
            return self

        def __call__(self, images: np.ndarray) -> np.ndarray:
            self.calls += len(images)
            return self.encoder(images)

    counting = Counting()
    with Slide.open(slide_path) as slide:
        found = region_embeddings(slide, 0, 0, BRCA["1.25x"], counting)
        corner = region_embeddings(slide, 0, 0, BRCA["5x"], counting.encoder)
    assert found.shape[1:] == (16, 16)
    np.testing.assert_allclose(found[:, :4, :4], corner, rtol=1e-5)
    assert counting.calls <= 9 + 1  # 1500 x 1300 px are 3 x 3 patches of 512, all else is white


def test_from_region_is_generation_under_its_embeddings(coloured, slide_path):
    encoder = load_encoder("color-stats")
    with Slide.open(slide_path) as slide:
        grid = region_embeddings(slide, 100, 200, BRCA["5x"], encoder)
        expected = drawn(coloured, grid, "5x", num_images=2, generator=seeded())
        options = {"num_images": 2, "num_inference_steps": 3, "output_type": "latent"}
        found = coloured.from_region(slide, 100, 200, "5x", generator=seeded(), **options).images
    assert torch.equal(found, expected)
    by_path = coloured.from_region(slide_path, 100, 200, "5x", encoder=encoder, generator=seeded(), **options).images
    assert torch.equal(by_path, expected)
    with Slide.open(slide_path) as slide:
        other = coloured.from_region(slide, 900, 700, "5x", generator=seeded(), **options).images
    assert not torch.equal(other, expected)


@pytest.mark.shared_data
def test_a_real_region(shared):
    """Neighbouring regions of tissue are alike to the encoder, and unlike glass."""
    encoder = load_encoder("efficientnet-lite0")
    with Slide.open(shared / "slides" / "CMU-1-Small-Region.svs") as slide:
        tissue, near, glass = (
            torch.from_numpy(region_embeddings(slide, x, y, BRCA["10x"], encoder)).flatten()
            for x, y in ((600, 1200), (664, 1264), (100000 - 98000, 2600))
        )
    similarity = torch.nn.functional.cosine_similarity
    assert similarity(tissue, near, dim=0) > similarity(tissue, glass, dim=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": 1500}, r"slide\.tiff: the region x=1500, y=0 of 512 x 512 px lies beside the slide \(1500 x 1300 px\)"),
        ({"y": -512}, "lies beside the slide"),
        ({"magnification": "3x"}, "no magnification '3x'"),
        ({"encoder": "efficientnet-lite0"}, r"efficientnet-lite0 gives 1280 features, the Summarizer reads 6"),
        ({"slide": "absent.tiff"}, "no such file"),
    ],
)
def test_regions_that_cannot_be(coloured, slide_path, change, message):
    arguments = {"slide": slide_path, "x": 0, "y": 0, "magnification": "20x"} | change
    if "encoder" in change:
        arguments["encoder"] = load_encoder(change["encoder"])
    with pytest.raises(ZoomfeatError, match=message) as caught:
        coloured.from_region(**arguments)
    assert "\n" not in str(caught.value)


def test_a_slide_too_coarse_for_the_finest_patches(coloured, tmp_path):
    make_slide(tmp_path / "coarse.tiff", seed=0, size=(600, 600), mpp=2.0)
    with pytest.raises(MagnificationError, match="a region is known by the embeddings of its 20x patches"):
        coloured.from_region(tmp_path / "coarse.tiff", 0, 0, "5x")


def test_a_model_that_does_not_say_its_encoder(pipe, slide_path):
    with pytest.raises(ConfigurationError, match="does not say by which encoder"):
        pipe.from_region(slide_path, 0, 0, "5x")


# Bad input


def naip(pipe: ZoomLDMPipeline) -> ZoomLDMPipeline:
    summarizer = Summarizer(WIDTH, 16, 16, num_layers=1, num_heads=2, mlp_dim=16, num_magnifications=4).eval()
    return ZoomLDMPipeline(**pipe.components | {"summarizer": summarizer, "cdm": None})


def test_four_magnifications_are_those_of_naip(pipe):
    satellite = naip(pipe)
    satellite.set_progress_bar_config(disable=True)
    assert [step.name for step in satellite.ladder.steps] == [step.name for step in NAIP.steps]
    assert drawn(satellite, torch.randn(WIDTH, 8, 8), "4x").shape == (1, 3, 8, 8)
    with pytest.raises(
        MagnificationError, match=r"no magnification '5x' in the naip ladder. Use one of 1x, 2x, 3x, 4x"
    ):
        drawn(satellite, torch.randn(WIDTH, 4, 4), "5x")


NAN = torch.full((WIDTH, 4, 4), torch.nan)
FINE = torch.zeros(WIDTH, 4, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ssl_embeddings": FINE[:5]}, "embeddings of width 5; the model reads 12"),
        ({"ssl_embeddings": FINE[:, :2, :2]}, r"shape \(12, 2, 2\) for 5x; expected \(12, 4, 4\)"),
        ({"ssl_embeddings": FINE[:, :2]}, r"shape \(12, 2, 4\) for 5x"),
        ({"ssl_embeddings": FINE, "magnification": "1.25x"}, r"expected \(12, 16, 16\) or \(12, 8, 8\)"),
        ({"ssl_embeddings": FINE[0]}, r"shape \(4, 4\); expected \(channels, rows, columns\)"),
        ({"ssl_embeddings": NAN}, "the embeddings for 5x hold NaN"),
        ({"ssl_embeddings": FINE.int()}, "of type torch.int32"),
        ({"ssl_embeddings": []}, "no embeddings"),
        ({"ssl_embeddings": [FINE, FINE], "magnification": ["5x"] * 3}, "3 magnifications for 2 grids"),
        ({"magnification": None}, "magnification= is missing"),
        ({"magnification": "7x"}, "no magnification '7x' in the brca ladder. Use one of 20x"),
        ({"magnification": []}, "0 magnifications"),
        ({"generator": [seeded()] * 3}, "3 generators for 1 samples"),
        ({"latents": torch.zeros(1, 4, 8, 8)}, r"latents of shape \(1, 4, 8, 8\); expected \(1, 3, 8, 8\)"),
        ({"latents": torch.zeros(2, 3, 8, 8)}, r"latents of shape \(2, 3, 8, 8\); expected \(1, 3, 8, 8\)"),
        ({"latents": torch.zeros(1, 3, 9, 8)}, r"latents of shape \(1, 3, 9, 8\); expected \(1, 3, 8, 8\)"),
        ({"latents": torch.full((1, 3, 8, 8), torch.inf)}, "latents holds NaN or infinity"),
        ({"tokens": torch.zeros(1, 64, 16)}, r"tokens of shape \(1, 64, 16\); expected \(B, 65, 16\)"),
        ({"tokens": torch.zeros(1, 65, 16), "ssl_embeddings": FINE}, "both"),
        ({"output_type": "jpeg"}, "output_type='jpeg'"),
        ({"num_inference_steps": 0}, "num_inference_steps=0"),
        ({"num_inference_steps": 1001}, "num_inference_steps=1001. Use 1 to 1000"),
        ({"num_images": 0}, "num_images=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan"),
        ({"num_cdm_steps": 1}, "2 to 1000"),
    ],
)
def test_bad_input_is_told_in_one_line(pipe, options, message):
    with pytest.raises(ZoomfeatError, match=message) as caught:
        pipe(**{"magnification": "5x", "num_inference_steps": 1} | options)
    assert "\n" not in str(caught.value)


def test_neither_embeddings_nor_a_conditioning_model(small_model):
    with pytest.raises(ConfigurationError, match="no conditioning model"):
        ZoomLDMPipeline.load(small_model)(magnification="5x")


def test_eta_for_a_scheduler_without_it(pipe):
    pipe.scheduler = make_scheduler("unipc", pipe.scheduler.config)
    with pytest.raises(ConfigurationError, match=r"eta=1 with UniPCMultistepScheduler"):
        drawn(pipe, FINE, "5x", eta=1.0)


def test_unknown_schedulers_and_ladders(pipe):
    with pytest.raises(ConfigurationError, match=r"no scheduler 'plmss'. Did you mean plms\?"):
        make_scheduler("plmss", pipe.scheduler.config)
    with pytest.raises(ConfigurationError, match="no domain 'mars'"):
        ZoomLDMPipeline(**pipe.components, ladder="mars")

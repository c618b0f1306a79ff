"""The first stage: published layouts load, training lowers its loss, and starts of other kinds."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import torch
from diffusers import VQModel
from torch.nn import functional

from generation.batches import read_images
from generation.compvis import load_first_stage, load_unet
from generation.first_stage import standardise_latents, train_first_stage
from generation.initial import initial_first_stage, initial_model
from generation.perceptual import EfficientNetDistance
from zoomfeat.conf.compose import compose_config
from zoomfeat.errors import CheckpointMismatchError, ConfigurationError
from zoomfeat.models.architecture import build_first_stage, build_unet
from zoomfeat.models.checkpoint import release_keys
from zoomfeat.models.zoomldm import ZoomLDM


def small_vae(seed: int = 0):
    torch.manual_seed(seed)
    return build_first_stage((8,) * 6, codes=16, norm_num_groups=8, sample_size=256)


def compvis(part: str, module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A module's weights under the names of the release."""
    state = module.state_dict()
    return {theirs: state[ours].clone() for ours, theirs in release_keys({part: module})[part].items()}


@pytest.fixture
def vq_file(tmp_path) -> Path:
    """As the published VQ-f4: no prefix, a wrapper, weights of the loss, 1x1 convolutions, a callback's class."""
    state = {k.removeprefix("first_stage_model."): v for k, v in compvis("vae", small_vae(seed=1)).items()}
    state = {k: v[:, :, None, None] if v.ndim == 2 and ".attn_1." in k else v for k, v in state.items()}
    state |= {"loss.discriminator.main.0.weight": torch.zeros(1), "loss.perceptual_loss.lin0": torch.zeros(1)}
    module = ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    callback = type("ModelCheckpoint", (), {"__module__": module.__name__})
    module.ModelCheckpoint = callback
    names = ["pytorch_lightning", "pytorch_lightning.callbacks", module.__name__]
    sys.modules.update(dict.fromkeys(names[:2], ModuleType("x")) | {names[2]: module})
    try:
        torch.save({"state_dict": state, "callbacks": {callback: {"best": 1.0}}}, tmp_path / "vq.ckpt")
    finally:
        for name in names:
            del sys.modules[name]
    return tmp_path / "vq.ckpt"


def test_the_published_layout_loads_and_the_rest_is_named(vq_file):
    vae = small_vae(seed=2)
    left = load_first_stage(vae, vq_file)
    assert left == ["loss.discriminator.main.0.weight", "loss.perceptual_loss.lin0"]
    expected = small_vae(seed=1).state_dict()
    assert all(torch.equal(weight, expected[key]) for key, weight in vae.state_dict().items())


def test_a_first_stage_of_another_size_is_refused(vq_file):
    other = build_first_stage((32,) * 6, codes=16, sample_size=256)
    with pytest.raises(CheckpointMismatchError, match=r"has shape .*; expected"):
        load_first_stage(other, vq_file)


@pytest.mark.shared_data
def test_the_first_stage_inside_a_zoomldm_checkpoint_loads(shared):
    weights = shared / "zoomldm-golden" / "weights.ckpt"
    reference = ZoomLDM.from_checkpoint(weights).vae
    vae = type(reference).from_config(reference.config)
    assert all(not key.startswith("first_stage_model.") for key in load_first_stage(vae, weights))
    assert all(torch.equal(a, b) for a, b in zip(vae.parameters(), reference.parameters(), strict=True))


def test_a_denoiser_takes_what_fits_and_names_the_rest(tmp_path):
    torch.manual_seed(0)
    source = build_unet((32, 32), context_dim=24, sample_size=8)
    torch.save({"state_dict": compvis("unet", source) | {"cond_stage_model.x": torch.zeros(1)}}, tmp_path / "ldm.ckpt")
    same, other = (build_unet((32, 32), context_dim=width, sample_size=8) for width in (24, 16))
    assert load_unet(same, tmp_path / "ldm.ckpt") == []
    assert torch.equal(same.conv_in.weight, source.conv_in.weight)
    fresh = load_unet(other, tmp_path / "ldm.ckpt")
    assert fresh
    assert all(".attn2.to_k." in key or ".attn2.to_v." in key for key in fresh)
    assert torch.equal(other.mid_block.resnets[0].conv1.weight, source.mid_block.resnets[0].conv1.weight)
    torch.save({"model.diffusion_model.x": torch.zeros(1)}, tmp_path / "none.ckpt")
    with pytest.raises(CheckpointMismatchError, match="none of its weights fits"):
        load_unet(other, tmp_path / "none.ckpt")


def words(data: Path, out: Path, *more: str) -> list[str]:
    return [
        f"data={data}", f"out={out}", "steps=3", "batch_size=1", "learning_rate=1e-3", "warmup=1", "held_out=0.3",
        "validate_every=3", "validation_items=1", "sample_every=3", "checkpoint_every=2", "workers=0", "device=cpu",
        *more,
    ]  # fmt: skip


def test_training_resumes_bit_for_bit_with_a_discriminator(training_folder, training_set, tmp_path):
    more = ("adversarial_weight=0.1", "adversarial_start=1")

    def run(out: str, *words_: str) -> Path:
        config = compose_config("train-first-stage", words(training_folder, tmp_path / out, *more, *words_))
        return train_first_stage(config, training_set, small_vae())

    whole = run("whole")
    run("parts", "steps=2")
    parts = run("parts")
    first, second = (VQModel.from_pretrained(folder / "model").state_dict() for folder in (whole, parts))
    assert all(torch.equal(weight, second[key]) for key, weight in first.items())
    held_out = pd.read_csv(tmp_path / "whole" / "validation.csv")
    assert held_out["psnr"].between(0, 60).all()
    assert held_out["codes_used"].between(0, 1).all()
    assert (tmp_path / "whole" / "samples" / "step-00000003.png").is_file()
    loaded = initial_first_stage("full", str(whole / "model"))
    assert loaded.config.num_vq_embeddings == 16
    with torch.no_grad():
        latents = loaded.encode(read_images(training_set, range(len(training_set)))).latents
    assert 0.5 < float(latents.std()) * loaded.config.scaling_factor < 2
    assert (latents.mean((0, 2, 3)).abs() < latents.std() / 2).all()


def test_a_decoder_alone_is_trained_and_latents_stay(training_folder, training_set, tmp_path):
    small_vae(seed=5).save_pretrained(tmp_path / "start")

    def run(out: str, *words_: str) -> dict[str, torch.Tensor]:
        more = ("decoder_only=true", f"init={tmp_path / 'start'}", "sample_every=0", "validate_every=0")
        config = compose_config("train-first-stage", words(training_folder, tmp_path / out, *more, *words_))
        vae = initial_first_stage("full", config.init)
        return VQModel.from_pretrained(train_first_stage(config, training_set, vae) / "model").state_dict()

    before, after = small_vae(seed=5).state_dict(), run("run")
    learned = {key for key in before if not torch.equal(before[key], after[key])}
    assert "decoder.conv_out.weight" in learned
    assert all(key.startswith(("decoder.", "post_quant_conv.")) for key in learned)
    with pytest.raises(ConfigurationError, match="decoder_only=true without init="):
        run("fresh", "init=null")


@torch.no_grad()
def test_standard_latents_have_mean_0_and_deviation_1_and_decode_as_before():
    vae = small_vae()
    vae.quant_conv.bias.copy_(torch.tensor([3.0, -2.0, 0.5]))
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    before = vae(images).sample
    standardise_latents(vae, vae.encode(images).latents)
    latents = vae.encode(images).latents * vae.config.scaling_factor
    assert latents.mean((0, 2, 3)).abs().max() < 1e-4
    assert abs(float(latents.std()) - 1) < 1e-4
    torch.testing.assert_close(vae(images).sample, before, atol=1e-4, rtol=1e-4)


def test_training_lowers_the_loss_and_takes_a_perceptual_one(training_folder, training_set, tmp_path):
    seen = []

    def perceptual(made: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        seen.append(made.shape)
        return (made.mean((2, 3)) - real.mean((2, 3))).square().mean(1)

    more = ("steps=8", "validate_every=0", "sample_every=0", "checkpoint_every=8", "log_every=4")
    config = compose_config("train-first-stage", words(training_folder, tmp_path / "run", *more))
    train_first_stage(config, training_set, small_vae(), perceptual=perceptual)
    assert seen == [(1, 3, 256, 256)] * 8
    losses = pd.read_csv(tmp_path / "run" / "metrics.csv")["loss"]
    assert losses.iloc[-1] < losses.iloc[0]


def ldm_config(tmp_path: Path, *more: str):
    return compose_config("train-ldm", ["data=x", f"out={tmp_path}", "size=tiny", *more])


def test_a_model_starts_from_parts_and_follows_the_data_and_the_ablations(tmp_path):
    initial_first_stage("tiny", None, seed=3).save_pretrained(tmp_path / "vae")
    config = ldm_config(tmp_path, f"first_stage={tmp_path / 'vae'}", "summarizer_layers=2", "magnification_token=false")
    bundle, fresh = initial_model(config, embedding_dim=20)
    assert fresh == []
    assert bundle.summarizer.config.input_dim == 20
    assert len(bundle.summarizer.transformer.layers) == 2
    grids = torch.randn(1, 20, 8, 8)
    with torch.no_grad():
        assert torch.equal(bundle.summarizer(grids, 4), bundle.summarizer(grids, 5))
    again, _ = initial_model(config, embedding_dim=20)
    assert again.weights_hash() == bundle.weights_hash()


def test_a_start_that_cannot_be_is_refused(tmp_path, small_model):
    with pytest.raises(ConfigurationError, match="neither first_stage= nor init="):
        initial_model(ldm_config(tmp_path), embedding_dim=20)
    with pytest.raises(CheckpointMismatchError, match="embeddings of width 12, the data's have 20"):
        initial_model(ldm_config(tmp_path, f"init={small_model}"), embedding_dim=20)
    with pytest.raises(CheckpointMismatchError, match="not a VQModel folder"):
        initial_first_stage("tiny", str(tmp_path))


def test_crops_and_the_perceptual_distance_resume_bit_for_bit(training_folder, training_set, tmp_path):
    shapes = []

    class Watched(VQModel):
        def forward(self, images, *args, **kwargs):
            shapes.append(tuple(images.shape))
            return super().forward(images, *args, **kwargs)

    def run(out: str, *words_: str) -> Path:
        more = ("crop=128", "perceptual_weight=0.5", "perceptual_stages=[0,2,4]", "sample_every=0", "validate_every=0")
        config = compose_config("train-first-stage", words(training_folder, tmp_path / out, *more, *words_))
        vae = small_vae()
        vae.__class__ = Watched
        return train_first_stage(config, training_set, vae)

    whole = run("whole")
    assert set(shapes) == {(1, 3, 128, 128)}
    run("parts", "steps=2")
    first, second = (VQModel.from_pretrained(folder / "model").state_dict() for folder in (whole, run("parts")))
    assert all(torch.equal(weight, second[key]) for key, weight in first.items())
    with pytest.raises(ConfigurationError, match="crop=300; expected 64 to 256"):
        run("refused", "crop=300")
    for stages in ("[]", "[0,5]", "[1,0]", "[1,1]"):
        with pytest.raises(ConfigurationError, match="expected some of 0 to 4, ascending"):
            run("refused", f"perceptual_stages={stages}")


def test_the_perceptual_distance_is_nought_for_equals_and_grows_with_blur():
    distance = EfficientNetDistance(2.0)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    blurred = [functional.avg_pool2d(images, side, 1, side // 2) for side in (3, 7)]
    assert distance(images, images).tolist() == [0, 0]
    slight, strong = (distance(image, images) for image in blurred)
    assert (slight > 0).all()
    assert (slight < strong).all()
    assert torch.allclose(EfficientNetDistance(1.0)(blurred[0], images), slight / 2)
    assert all(not weight.requires_grad for weight in distance.parameters())
    by_stage = sum(EfficientNetDistance(2.0, [stage])(blurred[0], images) for stage in range(5))
    assert torch.allclose(EfficientNetDistance(2.0, range(5))(blurred[0], images), by_stage)

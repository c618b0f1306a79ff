"""The release's layout: nothing left over, nothing missing, nothing executed."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from tests.releases import release_state
from zoomfeat.encoders.zoomldm import untrained_tiny
from zoomfeat.errors import CheckpointMismatchError
from zoomfeat.models.architecture import build_first_stage, build_unet
from zoomfeat.models.checkpoint import ema_key, release_keys
from zoomfeat.models.summarizer import Summarizer
from zoomfeat.models.zoomldm import ZoomLDM

CONFIG = {
    "model": {
        "params": {
            "linear_start": 0.0015, "linear_end": 0.0195, "timesteps": 1000, "image_size": 16,
            "unet_config": {"params": {
                "model_channels": 32, "channel_mult": [1, 1, 2, 1], "context_dim": 64,
                "ckpt_path": "/absent/never-opened.ckpt",
            }},
            "first_stage_config": {"params": {
                "n_embed": 32, "ddconfig": {"ch": 32, "ch_mult": [1, 1, 2], "resolution": 64},
            }},
            "cond_stage_config": {"params": {
                "num_layers": 2, "input_channels": 48, "hidden_channels": 64, "vit_mlp_dim": 128, "p_uncond": 0.1,
            }},
        }
    }
}  # fmt: skip


def _modules() -> dict:
    torch.manual_seed(0)
    return {
        "vae": build_first_stage((32, 32, 64), 32),
        "unet": build_unet((32, 32, 64, 32), 64),
        "summarizer": Summarizer(48, 64, 64, num_layers=2, mlp_dim=128),
    }


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A checkpoint in the release's layout, written from a model of ours: the inverse of loading."""
    torch.save(release_state(_modules(), drift=1), tmp_path / "weights.ckpt")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    return tmp_path / "weights.ckpt"


def _edit(path: Path, change) -> Path:
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)
    return path


def test_loads_averaged_and_raw_weights(release):
    modules = _modules()
    raw = ZoomLDM.from_checkpoint(release, ema=False)
    averaged = ZoomLDM.from_checkpoint(release)
    for part, module in modules.items():
        for key, tensor in module.state_dict().items():
            assert torch.equal(getattr(raw, part).state_dict()[key], tensor), key
    assert torch.equal(averaged.unet.conv_in.bias, modules["unet"].conv_in.bias + 1)
    assert torch.equal(averaged.vae.quant_conv.weight, modules["vae"].quant_conv.weight)


def test_loads_below_a_state_dict_wrapper(release):
    expected = ZoomLDM.from_checkpoint(release).weights_hash()
    torch.save({"state_dict": torch.load(release, weights_only=True), "global_step": 7}, release)
    assert ZoomLDM.from_checkpoint(release).weights_hash() == expected


def test_round_trip_through_the_diffusers_layout(release, tmp_path):
    bundle = ZoomLDM.from_checkpoint(release)
    bundle.save_pretrained(tmp_path / "converted")
    again = ZoomLDM.load(tmp_path / "converted")
    assert again.weights_hash() == bundle.weights_hash()
    assert again.scheduler.config.beta_end == 0.0195
    assert again.summarizer.config.input_dim == 48
    assert list((tmp_path / "converted/unet").glob("*.safetensors"))


def test_a_converted_folder_that_lacks_weights_is_refused(release, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "converted"
    ZoomLDM.from_checkpoint(release).save_pretrained(folder)
    file = folder / "summarizer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    del weights["pad_token"]
    save_file(weights, file)
    with pytest.raises(CheckpointMismatchError, match=r"pad_token|summarizer"):
        ZoomLDM.load(folder)


def _first_averaged(state):
    return next(key for key in state if key.startswith("model_ema.diffusion"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("cond_stage_model.pad_token"), r"1 keys are missing: cond_stage_model\.pad_token"),
        (lambda s: s.pop(_first_averaged(s)), r"1 keys are missing: model_ema\.diffusion"),
        (
            lambda s: s.update({"model.diffusion_model.x.y": torch.ones(1)}),
            r"not ZoomLDM's: model\.diffusion_model\.x\.y",
        ),
        (
            lambda s: s.update({"model.diffusion_model.out.2.bias": torch.ones(4)}),
            r"another shape: .*\(4,\) instead of",
        ),
        (lambda s: s.update(betas=s["betas"] * 2), "noise schedule"),
        (lambda s: s.pop("cond_stage_model.mag_embedding.weight"), "not a ZoomLDM"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_with_its_keys(release, change, message):
    _edit(release, change)
    ema = "shape" not in message  # the averaged weights have the shape they should
    with pytest.raises(CheckpointMismatchError, match=message) as caught:
        ZoomLDM.from_checkpoint(release, ema=ema)
    assert str(release) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_without_averaged_weights_says_so(release):
    def drop(state):
        for key in [k for k in state if k.startswith("model_ema.")]:
            del state[key]

    _edit(release, drop)
    with pytest.raises(CheckpointMismatchError, match="ema=false"):
        ZoomLDM.from_checkpoint(release)
    assert ZoomLDM.from_checkpoint(release, ema=False)


class _Bomb:
    def __reduce__(self):
        return os.system, ("touch bomb-went-off",)


def test_a_pickle_that_would_execute_code_is_refused(release, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"weights": _Bomb()}, release)
    with pytest.raises(CheckpointMismatchError, match="not a safe checkpoint"):
        ZoomLDM.from_checkpoint(release)
    assert not (tmp_path / "bomb-went-off").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 broken zip"])
def test_garbage_is_refused(release, content):
    release.write_bytes(content)
    with pytest.raises(CheckpointMismatchError, match=re.escape(str(release))):
        ZoomLDM.from_checkpoint(release)


def test_a_truncated_checkpoint_is_refused(release):
    release.write_bytes(release.read_bytes()[: release.stat().st_size // 2])
    with pytest.raises(CheckpointMismatchError):
        ZoomLDM.from_checkpoint(release)


def test_missing_files_are_named(release, tmp_path):
    with pytest.raises(CheckpointMismatchError, match="absent"):
        ZoomLDM.from_checkpoint(tmp_path / "absent.ckpt", release.with_name("config.yaml"))
    release.with_name("config.yaml").unlink()
    with pytest.raises(CheckpointMismatchError, match=r"config\.yaml"):
        ZoomLDM.from_checkpoint(release)


def test_another_models_folder_is_refused(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(CheckpointMismatchError, match="not a ZoomLDM folder"):
        ZoomLDM.load(tmp_path)


@pytest.mark.shared_data
def test_the_release_config_names_files_that_are_never_opened(golden_folder, tmp_path):
    shutil.copy(golden_folder / "config.yaml", tmp_path)
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert not Path(config["model"]["params"]["unet_config"]["params"]["ckpt_path"]).exists()
    assert ZoomLDM.from_checkpoint(golden_folder / "weights.ckpt", tmp_path / "config.yaml")


@pytest.mark.shared_data
@pytest.mark.parametrize(("name", "magnifications"), [("brca", 8), ("naip", 4)])
def test_full_size_keys_map_without_a_remainder(golden_folder, name, magnifications):
    released = json.loads((golden_folder / f"released_keys_{name}.json").read_text())
    with torch.device("meta"):
        modules = {
            "vae": build_first_stage(),
            "unet": build_unet(),
            "summarizer": Summarizer(num_magnifications=magnifications),
        }
    mapped = {}
    for part, names in release_keys(modules).items():
        for ours, theirs in names.items():
            mapped[theirs] = modules[part].state_dict()[ours].shape
            if part == "unet":
                mapped[ema_key(theirs)] = mapped[theirs]
    schedule = {key for key in released if "." not in key} | {"model_ema.decay", "model_ema.num_updates"}
    assert mapped.keys() == released.keys() - schedule
    for key, shape in mapped.items():
        assert [n for n in shape if n > 1] == [n for n in released[key][0] if n > 1], key


def test_the_tiny_model_has_the_same_weights_every_time():
    assert untrained_tiny().weights_hash() == untrained_tiny().weights_hash() != untrained_tiny(seed=1).weights_hash()


def test_weights_from_a_file_lie_as_fresh_ones_do(tmp_path):
    """The bits of a result do not depend on where a file was mapped."""
    fresh = untrained_tiny()
    fresh.save_pretrained(tmp_path)
    loaded = ZoomLDM.load(tmp_path)
    for part in (loaded.vae, loaded.unet, loaded.summarizer):
        assert all(weight.data_ptr() % 64 == 0 for weight in part.parameters())
    latents = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = (m.unet(latents, 100, m.summarizer.null_context(1)).sample for m in (loaded, fresh))
    assert torch.equal(ours, theirs)

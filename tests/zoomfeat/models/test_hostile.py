"""Files of weights made to do harm, or useless in a way that shows only in features."""

from __future__ import annotations

import builtins
import json
import os
import pickle
import subprocess
import zipfile
from pathlib import Path

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file, save_file

from tests.zoomfeat.models.test_checkpoint import CONFIG
from tests.zoomfeat.models.test_checkpoint import release as release  # a fixture
from zoomfeat import load_encoder
from zoomfeat.encoders.zoomldm import untrained_tiny
from zoomfeat.errors import CheckpointMismatchError
from zoomfeat.models.weights import read_checkpoint
from zoomfeat.models.zoomldm import ZoomLDM


class _Call:
    """A pickle of this calls a function when it is read."""

    def __init__(self, function: object, *arguments: object) -> None:
        self._call = function, arguments

    def __reduce__(self):
        return self._call


@pytest.mark.parametrize("protocol", [0, 4])
@pytest.mark.parametrize("way", ["plain pickle", "torch.save", "old torch.save", "below a wrapper"])
@pytest.mark.parametrize("function", [os.system, subprocess.call, builtins.eval, builtins.exec, os.makedirs])
def test_no_pickle_is_obeyed(tmp_path: Path, function: object, way: str, protocol: int) -> None:
    mark = tmp_path / "obeyed"
    word = f"open({str(mark)!r}, 'w')" if function in (builtins.eval, builtins.exec) else f"touch {mark}"
    call = _Call(function, [word] if function is subprocess.call else str(mark) if function is os.makedirs else word)
    path = tmp_path / "weights.ckpt"
    if way == "plain pickle":
        path.write_bytes(pickle.dumps(call, protocol))
    else:
        held = {"state_dict": {"a": call}} if way == "below a wrapper" else call
        torch.save(held, path, pickle_protocol=max(protocol, 2), _use_new_zipfile_serialization=way != "old torch.save")
    with pytest.raises(CheckpointMismatchError, match="not a safe checkpoint") as caught:
        read_checkpoint(path)
    assert "weights_only" not in str(caught.value)  # PyTorch's advice to load it all the same
    assert not mark.exists()
    with pytest.raises(CheckpointMismatchError, match="not a safe checkpoint"):
        load_encoder("uni", weights=str(path))
    assert not mark.exists()


def test_an_archive_that_expands_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"a": torch.zeros(4_000_000)}, path)
    packed = tmp_path / "packed.pt"
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    assert packed.stat().st_size < 30_000
    assert read_checkpoint(path)["a"].shape == (4_000_000,)
    with pytest.raises(CheckpointMismatchError, match=r"its archive of \d+ bytes would expand to 16\d{6}"):
        read_checkpoint(packed)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_no_numbers_are_refused_wherever_they_are_from(
    tmp_path: Path, release: Path, value: float
) -> None:
    state = torch.load(release, weights_only=True)
    key = next(name for name in state if name.startswith("cond_stage_model"))
    state[key].view(-1)[0] = value
    torch.save(state, release)
    with pytest.raises(CheckpointMismatchError, match=f"hold NaN or infinity, first {key}"):
        ZoomLDM.from_checkpoint(release)

    folder = tmp_path / "converted"
    untrained_tiny().save_pretrained(folder)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["conv_in.bias"][0] = value
    save_file(weights, file)
    with pytest.raises(CheckpointMismatchError, match=r"hold NaN or infinity, first conv_in\.bias"):
        ZoomLDM.load(folder)

    network = timm.create_model("resnet50", num_classes=0)
    network.bn1.weight.data[3] = value
    save_file(network.state_dict(), tmp_path / "resnet50.safetensors")
    with pytest.raises(CheckpointMismatchError, match=r"1 of \d+ weights hold NaN or infinity, first bn1\.weight"):
        load_encoder("resnet50", weights=str(tmp_path / "resnet50.safetensors"))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("unet_config", "params", "model_channels"), 10**9),
        (("unet_config", "params", "model_channels"), -32),
        (("unet_config", "params", "model_channels"), "32"),
        (("unet_config", "params", "channel_mult"), []),
        (("unet_config", "params", "context_dim"), 0),
        (("cond_stage_config", "params", "num_layers"), 10**9),
        (("cond_stage_config", "params"), None),
        (("first_stage_config", "params", "ddconfig"), [1, 2]),
        (("timesteps",), 10**12),
        (("timesteps",), float("nan")),
    ],
)
def test_a_configuration_of_no_model(release: Path, place: tuple[str, ...], value: object) -> None:
    config = yaml.safe_load(yaml.safe_dump(CONFIG))
    target = config["model"]["params"]
    for name in place[:-1]:
        target = target[name]
    target[place[-1]] = value
    release.with_name("config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(CheckpointMismatchError) as caught:
        ZoomLDM.from_checkpoint(release)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "a: &a [*a]", "!!python/object/apply:os.system [touch obeyed]", "{" * 5000])
def test_a_configuration_that_is_none(release: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(release.parent)
    release.with_name("config.yaml").write_text(text)
    with pytest.raises(CheckpointMismatchError):
        ZoomLDM.from_checkpoint(release)
    assert not (release.parent / "obeyed").exists()


def test_a_folder_that_brings_code_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    untrained_tiny().save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    code = f"open({str(tmp_path / 'obeyed')!r}, 'w')\nclass Evil: pass\n"
    for place in (folder / "evil.py", folder / "unet" / "evil.py", folder / "pipeline.py"):
        place.write_text(code)
    for change in ({"unet": ["evil", "Evil"]}, {"_class_name": ["evil", "Evil"]}, {"vae": ["os", "system"]}):
        (folder / "model_index.json").write_text(json.dumps(index | change))
        with pytest.raises(CheckpointMismatchError):
            ZoomLDM.load(folder)
    assert not (tmp_path / "obeyed").exists()

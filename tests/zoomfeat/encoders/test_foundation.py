"""The encoders to compare, each at its true architecture: facts, layouts of published weights, files of weights.

The networks of hundreds of millions of weights live on PyTorch's meta device, where shapes are computed and no number
is. The published weights themselves cannot be here (gated, or a download), and ../shared/data holds no list of their
names: the layouts below are written out from what is public (timm's names for UNI; what transformers saves for
ViTModel and Dinov2Model; timm 0.5.4's Swin with the authors' ConvStem for CTransPath).
"""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from zoomfeat import load_encoder
from zoomfeat.conf import schema
from zoomfeat.encoders import encoder_info, foundation, layouts, pretrained
from zoomfeat.encoders.pretrained import TimmEncoder, load_network, weights_file
from zoomfeat.errors import CheckpointMismatchError

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BIOPTIMUS = (0.707223, 0.578729, 0.703617), (0.211883, 0.230117, 0.177517)

# name: (dim, input, normalisation, feature, parameters in millions), from the model cards and papers
CARDS = {
    "ctranspath": (768, 224, IMAGENET, "mean", 27.5),
    "dinov2-vitl14-reg": (1024, 224, IMAGENET, "cls", 304.4),
    "h-optimus-0": (1536, 224, BIOPTIMUS, "cls", 1134.8),
    "phikon": (768, 224, IMAGENET, "cls", 85.8),
    "phikon-v2": (1024, 224, IMAGENET, "cls", 303.4),
    "resnet50": (2048, 224, IMAGENET, "mean", 23.5),
    "uni": (1024, 224, IMAGENET, "cls", 303.4),
    "uni2-h": (1536, 224, IMAGENET, "cls", 681.4),
    "virchow2": (2560, 224, IMAGENET, "cls+mean", 631.2),
}


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)


def on_meta(name: str) -> torch.nn.Module:
    with torch.device("meta"):
        return getattr(foundation, name.replace("-", "_"))()


def test_every_encoder_with_weights_of_its_own_is_checked():
    assert {name for name, kind in schema.ENCODERS.items() if kind == "weights"} == set(CARDS)


@pytest.mark.parametrize("name", CARDS)
def test_the_true_architecture_gives_what_the_card_says(name, images, monkeypatch):
    dim, size, (mean, std), feature, millions = CARDS[name]
    info = encoder_info(name)
    assert (info.dim, info.input_size, info.mean, info.std, info.feature) == (dim, size, mean, std, feature)
    network = on_meta(name)
    assert sum(weight.numel() for weight in network.parameters()) == info.parameters
    assert round(info.parameters / 1e6, 1) == millions

    monkeypatch.setattr(pretrained, "hash_weights", lambda modules: "no numbers on the meta device")
    encoder = TimmEncoder(info, network, "20x", "meta")
    inputs = encoder.transform(images)
    assert inputs.shape == (2, 3, size, size)
    assert encoder.embed(inputs.to("meta"), None).shape == (2, dim)
    grey = encoder.transform(np.full((1, 256, 256, 3), 51, np.uint8))
    expected = ((0.2 - np.array(mean)) / std)[:, None, None]
    np.testing.assert_allclose(grey[0], np.broadcast_to(expected, (3, size, size)), atol=1e-5)


@pytest.mark.parametrize("name", CARDS)
def test_facts_are_complete(name):
    info = encoder_info(name)
    assert len(info.revision) == 40
    assert info.licence
    assert info.interpolation in ("bilinear", "bicubic")
    assert info.gated == (name in ("h-optimus-0", "uni", "uni2-h", "virchow2"))


def test_class_token_and_mean_leave_the_registers_out(images, monkeypatch):
    torch.manual_seed(0)
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0, reg_tokens=4, global_pool="", depth=1).eval()
    encoder = TimmEncoder(replace(encoder_info("virchow2"), dim=2 * 192), network, "20x", "cpu")
    tokens = network(encoder.transform(images[:1]))
    expected = torch.cat([tokens[:, 0], tokens[:, 5:].mean(1)], dim=1).detach().numpy()
    np.testing.assert_allclose(encoder(images[:1]), expected, atol=1e-5)


# ----- layouts of the published weights ------------------------------------------------------------------------------


def vit_layout(width: int, depth: int, tokens: int, patch: int, scaled: bool) -> dict[str, tuple[int, ...]]:
    """A vision transformer under timm's names, as UNI is published."""
    names: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, tokens, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for i in range(depth):
        block = f"blocks.{i}"
        names |= {f"{block}.norm{j}.{part}": (width,) for j in (1, 2) for part in ("weight", "bias")}
        names |= {f"{block}.attn.qkv.weight": (3 * width, width), f"{block}.attn.qkv.bias": (3 * width,)}
        names |= {f"{block}.attn.proj.weight": (width, width), f"{block}.attn.proj.bias": (width,)}
        names |= {f"{block}.mlp.fc1.weight": (4 * width, width), f"{block}.mlp.fc1.bias": (4 * width,)}
        names |= {f"{block}.mlp.fc2.weight": (width, 4 * width), f"{block}.mlp.fc2.bias": (width,)}
        if scaled:
            names |= {f"{block}.ls1.gamma": (width,), f"{block}.ls2.gamma": (width,)}
    return names


def transformers_layout(width: int, depth: int, tokens: int, patch: int, dinov2: bool) -> dict[str, tuple[int, ...]]:
    """The same as transformers saves it: ViTModel for Phikon, Dinov2Model for Phikon-v2."""
    names: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.position_embeddings": (1, tokens, width),
        "embeddings.patch_embeddings.projection.weight": (width, 3, patch, patch),
        "embeddings.patch_embeddings.projection.bias": (width,),
        "layernorm.weight": (width,),
        "layernorm.bias": (width,),
    }
    if dinov2:
        names["embeddings.mask_token"] = (1, width)
    norms = ("norm1", "norm2") if dinov2 else ("layernorm_before", "layernorm_after")
    first, second = ("mlp.fc1", "mlp.fc2") if dinov2 else ("intermediate.dense", "output.dense")
    for i in range(depth):
        layer = f"encoder.layer.{i}"
        linear = {f"attention.attention.{part}": (width, width) for part in ("query", "key", "value")}
        linear |= {"attention.output.dense": (width, width), first: (4 * width, width), second: (width, 4 * width)}
        names |= {f"{layer}.{norm}.{part}": (width,) for norm in norms for part in ("weight", "bias")}
        for part, (rows, columns) in linear.items():
            names |= {f"{layer}.{part}.weight": (rows, columns), f"{layer}.{part}.bias": (rows,)}
        if dinov2:
            names |= {f"{layer}.layer_scale{j}.lambda1": (width,) for j in (1, 2)}
    return names


def ctranspath_layout() -> dict[str, tuple[int, ...]]:
    """CTransPath as published: Swin-T of timm 0.5.4, its downsampling at the end of a stage, its buffers stored."""
    names: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.0.weight": (12, 3, 3, 3),
        "patch_embed.proj.3.weight": (24, 12, 3, 3),
        "patch_embed.proj.6.weight": (96, 24, 1, 1),
        "patch_embed.proj.6.bias": (96,),
        "patch_embed.norm.weight": (96,),
        "patch_embed.norm.bias": (96,),
        "norm.weight": (768,),
        "norm.bias": (768,),
    }
    for place, width in ((1, 12), (4, 24)):
        parts = ("weight", "bias", "running_mean", "running_var")
        names |= {f"patch_embed.proj.{place}.{part}": (width,) for part in parts}
        names[f"patch_embed.proj.{place}.num_batches_tracked"] = ()
    for stage, (depth, heads) in enumerate(zip((2, 2, 6, 2), (3, 6, 12, 24), strict=True)):
        width, side = 96 * 2**stage, 56 // 2**stage
        for i in range(depth):
            block = f"layers.{stage}.blocks.{i}"
            linear = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
            linear |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
            names |= {f"{block}.norm{j}.{part}": (width,) for j in (1, 2) for part in ("weight", "bias")}
            for part, (rows, columns) in linear.items():
                names |= {f"{block}.{part}.weight": (rows, columns), f"{block}.{part}.bias": (rows,)}
            names[f"{block}.attn.relative_position_bias_table"] = (169, heads)
            names[f"{block}.attn.relative_position_index"] = (49, 49)
            if i % 2 and side > 7:
                names[f"{block}.attn_mask"] = ((side // 7) ** 2, 49, 49)
        if stage < 3:
            down = f"layers.{stage}.downsample"
            names |= {f"{down}.norm.weight": (4 * width,), f"{down}.norm.bias": (4 * width,)}
            names[f"{down}.reduction.weight"] = (2 * width, 4 * width)
    return names


LAYOUTS = {
    "uni": (vit_layout(1024, 24, 197, 16, scaled=True), None),
    "phikon": (transformers_layout(768, 12, 197, 16, dinov2=False), layouts.from_transformers),
    "phikon-v2": (transformers_layout(1024, 24, 197, 16, dinov2=True), layouts.from_transformers),
    "ctranspath": (ctranspath_layout(), layouts.from_old_swin),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_published_layout_is_the_network(name):
    layout, convert = LAYOUTS[name]
    network = on_meta(name)
    state = {key: torch.empty(shape, device="meta") for key, shape in layout.items()}
    state = convert(state, network) if convert else state
    expected = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    assert {key: tuple(tensor.shape) for key, tensor in state.items()} == expected


def test_layouts_count_what_was_counted():
    """As counted in files that transformers 5.23 and timm 0.5.4 (package timm_ctp) wrote of their own networks."""
    assert {name: len(layout) for name, (layout, _) in LAYOUTS.items()} == {
        "uni": 342,
        "phikon": 198,  # 200 with the pooler, which Phikon is published without
        "phikon-v2": 439,
        "ctranspath": 200,
    }


@pytest.mark.parametrize("dinov2", [False, True])
def test_a_model_of_transformers_gives_the_same_features(dinov2, tmp_path):
    transformers = pytest.importorskip(
        "transformers", reason="transformers, which wrote Phikon's files, is not installed"
    )
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    if dinov2:
        theirs = transformers.Dinov2Model(transformers.Dinov2Config(**sizes))
    else:
        theirs = transformers.ViTModel(transformers.ViTConfig(**sizes, intermediate_size=192, layer_norm_eps=1e-6))
    for weight in theirs.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    theirs.eval().save_pretrained(tmp_path)
    small = {"img_size": 32, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 0}

    def build() -> torch.nn.Module:
        return timm.create_model("vit_tiny_patch16_224", init_values=1.0 if dinov2 else None, **small)

    ours = load_network(build, encoder_info("phikon"), tmp_path / "model.safetensors", layouts.from_transformers)
    inputs = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = theirs(inputs).last_hidden_state[:, 0]
        np.testing.assert_allclose(ours.eval()(inputs), expected, atol=1e-5)


def test_dinov2_as_its_authors_publish_it():
    network = on_meta("dinov2-vitl14-reg")
    layout = vit_layout(1024, 24, 1370, 14, scaled=True) | {"mask_token": (1, 1024), "register_tokens": (1, 4, 1024)}
    state = {key: torch.zeros(shape) if "token" in key or "pos" in key else torch.empty(shape, device="meta")
             for key, shape in layout.items()}  # fmt: skip
    state["pos_embed"][0, :, 0] = torch.arange(1370)
    converted = layouts.from_dinov2(state, network)
    assert converted.keys() == network.state_dict().keys()
    assert all(converted[key].shape == tensor.shape for key, tensor in network.state_dict().items())
    np.testing.assert_array_equal(converted["pos_embed"][0, :, 0], np.arange(1, 1370))  # timm adds the first to cls


# ----- files of weights ----------------------------------------------------------------------------------------------


def random_network(name: str) -> torch.nn.Module:
    torch.manual_seed(3)
    network = getattr(foundation, name)().eval()
    for weight in network.parameters():
        weight.data += 0.02 * torch.randn_like(weight)
    return network


def as_published(name: str, network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A network's weights in the layout of its published file."""
    state = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    if name == "resnet50":
        return state | {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
    published = {}
    if name == "ctranspath":
        for key in ctranspath_layout():
            stage = int(key.split(".")[1]) if "downsample" in key else 0
            key_now = key.replace(f"layers.{stage}.downsample", f"layers.{stage + 1}.downsample")
            published[key] = state.get(key_now, torch.zeros(ctranspath_layout()[key]))
        return published
    matrices = {"attention.output.dense": "attn.proj", "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2"}
    matrices |= {"layernorm_before": "norm1", "layernorm_after": "norm2"}
    outside = {"embeddings.cls_token": "cls_token", "embeddings.position_embeddings": "pos_embed"}
    outside |= {f"embeddings.patch_embeddings.projection.{p}": f"patch_embed.proj.{p}" for p in ("weight", "bias")}
    outside |= {f"layernorm.{p}": f"norm.{p}" for p in ("weight", "bias")}
    published = {theirs: state[ours] for theirs, ours in outside.items()}
    for i in range(12):
        for part in ("weight", "bias"):
            for theirs, ours in matrices.items():
                published[f"encoder.layer.{i}.{theirs}.{part}"] = state[f"blocks.{i}.{ours}.{part}"]
            qkv = zip(("query", "key", "value"), state[f"blocks.{i}.attn.qkv.{part}"].chunk(3), strict=True)
            for theirs, tensor in qkv:
                published[f"encoder.layer.{i}.attention.attention.{theirs}.{part}"] = tensor.clone()
    return published


@pytest.mark.parametrize("name", ["resnet50", "phikon", "ctranspath"])
def test_weights_from_a_file_and_a_folder(name, tmp_path, images):
    network = random_network(name)
    published = as_published(name, network)
    info = encoder_info(name)
    if info.file.endswith(".safetensors"):
        save_file(published, tmp_path / info.file)
    else:
        torch.save({"model": published}, tmp_path / info.file)
    encoder = load_encoder(name, device="cpu", weights=str(tmp_path / info.file))
    with torch.no_grad():
        expected = network(encoder.transform(images[:1])).numpy()
    features = encoder(images[:1])
    assert features.std() > 0
    np.testing.assert_allclose(features, expected, rtol=1e-4, atol=1e-5)
    assert weights_file(info, str(tmp_path)) == tmp_path / info.file


def test_half_precision_files_run_in_single(tmp_path):
    state = {
        key: t.half() if t.is_floating_point() else t for key, t in random_network("resnet50").state_dict().items()
    }
    torch.save(state, tmp_path / "half.pth")
    encoder = load_encoder("resnet50", device="cpu", weights=str(tmp_path))
    assert {weight.dtype for weight in encoder._network.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("conv1.weight"), "not resnet50: 1 of 318 weights are missing, first conv1.weight"),
        (lambda state: state.update(extra=torch.zeros(1)), "1 do not belong to it, first extra"),
        (
            lambda state: state.update({"conv1.weight": torch.zeros(64, 3, 3, 3)}),
            r"conv1.weight is \(64, 3, 3, 3\), expected \(64, 3, 7, 7\)",
        ),
    ],
)
def test_weights_of_another_network_are_refused(change, message, tmp_path):
    with torch.device("meta"):
        state = {key: torch.zeros(t.shape, device="cpu") for key, t in foundation.resnet50().state_dict().items()}
    change(state)
    torch.save(state, tmp_path / "wrong.pth")
    with pytest.raises(CheckpointMismatchError, match=message) as caught:
        load_encoder("resnet50", device="cpu", weights=str(tmp_path / "wrong.pth"))
    assert "model.safetensors of https://huggingface.co/timm/resnet50.tv_in1k" in caught.value.cure


class _Attack:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code from a checkpoint ran')",))


def test_files_that_are_no_weights(tmp_path):
    (tmp_path / "unsafe.pth").write_bytes(pickle.dumps(_Attack(), protocol=2))
    (tmp_path / "damaged.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    torch.save([1, 2], tmp_path / "list.pt")
    for file, message in {
        "unsafe.pth": "not a safe checkpoint",
        "damaged.safetensors": "not readable as safetensors",
        "absent.safetensors": "not readable as safetensors",
        "absent.bin": "no such file",
        "list.pt": "no flat state dict",
        "": "not one other file of weights but damaged.safetensors, list.pt, unsafe.pth",
    }.items():
        with pytest.raises(CheckpointMismatchError, match=message) as caught:
            load_encoder("uni", weights=str(tmp_path / file))
        assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", CARDS)
def test_without_network_a_hub_name_says_how_to_get_it(name, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    info = encoder_info(name)
    with pytest.raises(CheckpointMismatchError, match=r"encoder\.weights=path") as caught:
        load_encoder(name)
    assert f"copy {info.file} of https://huggingface.co/{info.hub}" in caught.value.cure
    gated = f"accept its terms at https://huggingface.co/{info.hub} and log in with `hf auth login`"
    assert (gated in caught.value.cure) == info.gated
    assert "\n" not in str(caught.value)


def test_the_commit_that_is_documented_is_the_one_asked_for(monkeypatch, tmp_path):
    asked = []

    def download(repository, filename, revision):
        asked.append((repository, filename, revision))
        torch.save({}, tmp_path / filename)
        return tmp_path / filename

    monkeypatch.setattr("zoomfeat.models.weights.hf_hub_download", download)
    with pytest.raises(CheckpointMismatchError, match="not uni2-h: 343 of 343 weights are missing"):
        load_encoder("uni2-h")
    assert asked == [("MahmoodLab/UNI2-h", "pytorch_model.bin", "d517a8dd47902dd7c308b3c36f63bce47e7b9a43")]


def test_random_weights_are_the_same_every_time_and_say_so(images):
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first, second = (load_encoder("resnet-random", device="cpu") for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert first.weights_hash == second.weights_hash
    assert "random weights" in first.note
    features = first(images)
    assert np.abs(features[0] - features[1]).max() > 0.01

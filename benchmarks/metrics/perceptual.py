"""Learned perceptual distances: LPIPS, its shift-tolerant kin, and a form of it that needs no weights file."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics.functional.image.lpips import _LPIPS

from benchmarks.metrics.registry import PairMetric, pair_metric
from generation.perceptual import EfficientNetDistance
from zoomfeat.errors import CheckpointMismatchError, ConfigurationError
from zoomfeat.models.weights import read_state_dict


@pair_metric
def lpips(weights: str | Path) -> PairMetric:
    """LPIPS v0.1 over AlexNet (Zhang et al., "The unreasonable effectiveness of deep features", 2018), by torchmetrics.

    torchmetrics brings the linear layers. Its public function fetches the network, so its module is filled here.

    Args:
        weights: torchvision's AlexNet, ``alexnet-owt-7be5be79.pth``.

    Raises:
        CheckpointMismatchError: another file.
    """
    network = _LPIPS(net="alex", pnet_rand=True)
    state = _read(weights, "torchvision's alexnet-owt-7be5be79.pth")
    # torchmetrics cuts the features into five slices and keeps the layers' numbers.
    places = {key.split(".", 1)[1]: key for key in network.net.state_dict()}
    layers = {key.removeprefix("features."): value for key, value in state.items() if key.startswith("features.")}
    if layers.keys() != places.keys():
        raise CheckpointMismatchError(
            "not an AlexNet of torchvision", path=weights, cure="Give alexnet-owt-7be5be79.pth"
        )
    network.net.load_state_dict({places[key]: value for key, value in layers.items()})
    return _distance("LPIPS (AlexNet)", network)


@pair_metric
def st_lpips(weights: str | Path) -> PairMetric:
    """Shift-tolerant LPIPS over AlexNet (Ghildyal and Liu, "Shift-tolerant perceptual similarity metric", ECCV 2022).

    An image moved by a pixel, which a resampling easily does, hardly differs. Its figures are not LPIPS'.

    Args:
        weights: ``alex_shift_tolerant.pth`` of its release, which the PyPI package stlpips-pytorch holds.

    Raises:
        CheckpointMismatchError: another file.
    """
    network = _LPIPS(pretrained=False, net="alex", pnet_rand=True)
    network.net = _ShiftTolerantAlexNet()  # type: ignore[assignment]
    state = _read(weights, "alex_shift_tolerant.pth")
    state = {key: value for key, value in state.items() if not key.startswith("scaling_layer.")}  # constants of LPIPS
    own = {key: value for key, value in network.state_dict().items() if not key.startswith("lins.")}  # lin0... again
    if {key: value.shape for key, value in state.items()} != {key: value.shape for key, value in own.items()}:
        raise CheckpointMismatchError(
            "no shift-tolerant AlexNet", path=weights, cure="Give alex_shift_tolerant.pth of stlpips-pytorch"
        )
    network.load_state_dict(state, strict=False)
    return _distance("ST-LPIPS (AlexNet)", network)


@pair_metric
def efficientnet_distance() -> PairMetric:
    """In the form of LPIPS with equal weights, over EfficientNet-Lite0, which installs with zoomfeat."""
    network = EfficientNetDistance(1.0)

    @torch.inference_mode()
    def score(made: Tensor, real: Tensor) -> Tensor:
        return network(2 * made - 1, 2 * real - 1)

    return PairMetric("perceptual distance (efficientnet-lite0)", False, score)


class _Blur(nn.Module):
    """Every second pixel after a binomial filter with reflected borders; the filter comes with the weights."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("filt", torch.empty(channels, 1, 3, 3))

    def forward(self, images: Tensor) -> Tensor:
        padded = functional.pad(images, (2, 2, 2, 2), mode="reflect")
        return functional.conv2d(padded, self.get_buffer("filt"), stride=2, groups=images.shape[1])


class _ShiftTolerantAlexNet(nn.Module):
    """AlexNet whose strides are blurs, in the paper's order of layers, which have the release's numbers."""

    def __init__(self) -> None:
        super().__init__()
        stages: list[list[nn.Module]] = [
            [nn.Conv2d(3, 64, 11, padding=2), _Blur(64), nn.ReLU()],
            [nn.MaxPool2d(3, 1), _Blur(64), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU()],
            [nn.MaxPool2d(3, 1), _Blur(192), nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()],
            [nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()],
            [nn.Conv2d(256, 256, 3, padding=1), nn.ReLU()],
        ]
        number = itertools.count()
        for stage, layers in enumerate(stages, start=1):
            self.add_module(f"slice{stage}", nn.Sequential(OrderedDict((str(next(number)), layer) for layer in layers)))

    def forward(self, images: Tensor) -> list[Tensor]:
        found = []
        for part in self.children():
            images = part(images)
            found.append(images)
        return found


def _read(weights: str | Path, wanted: str) -> dict[str, Tensor]:
    if not Path(weights).is_file():
        raise ConfigurationError("no such file, and nothing is fetched", path=weights, cure=f"Give {wanted}")
    return read_state_dict(weights)


def _distance(name: str, network: nn.Module) -> PairMetric:
    network.eval().requires_grad_(False)

    @torch.inference_mode()
    def score(made: Tensor, real: Tensor) -> Tensor:
        return network(made, real, normalize=True).reshape(len(made))

    return PairMetric(name, False, score)

"""Small networks that stand in for a ZoomLDM's first stage, or for all of it, and the record of what they were taught.

Both are folders of diffusers (safetensors and ``config.json``); ``zoomfeat distill`` makes them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import timm
import torch
from diffusers import ConfigMixin, ModelMixin, VQModel
from diffusers.configuration_utils import register_to_config
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn

from zoomfeat.errors import CheckpointMismatchError
from zoomfeat.models.weights import hash_weights, load_module


@dataclass(frozen=True)
class DistillationRecord:
    """What a distilled network was taught, JSON-able.

    Attributes:
        teacher: name of the ZoomLDM in the registry.
        weights_hash: of the whole teacher.
        first_stage_hash: of its first stage alone, which is all that latents depend on.
        scaling_factor: of its latents.
        latent_shape: channels, rows and columns of a patch's latent.
        domain: whose magnifications are meant.
        magnifications: names of those that it was taught at, finest first.
        settings: of the teacher's features: taps, pool, timestep, seed, draws, conditioning.
        tap_dims: features of each tap, in order; of several timesteps, the taps of each follow one another.
        fidelity: of each magnification on held-out patches, against the teacher's features: mean ``cosine``, that of
            the ``lowest`` patch, the mean ``between`` different patches (what the cosine is to be read against) and
            the number of ``items``; empty where nothing was held out.
    """

    teacher: str
    weights_hash: str
    first_stage_hash: str
    scaling_factor: float
    latent_shape: list[int]
    domain: str
    magnifications: list[str]
    settings: dict[str, Any]
    tap_dims: list[int]
    fidelity: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def taps(self) -> list[str]:
        """Places in the denoiser that the features are from."""
        return list(self.settings["taps"])

    def describe_fidelity(self) -> str:
        """One line for notes."""
        if not self.fidelity:
            return "its fidelity was not measured (nothing was held out)"
        measured = [name for name in self.magnifications if name in self.fidelity]
        cosines = ", ".join(f"{self.fidelity[name]['cosine']:.3f} at {name}" for name in measured)
        return f"mean cosine to the teacher's features on held-out patches {cosines}"


class _Distilled(ModelMixin, ConfigMixin):
    """What both kinds share: the record in their configuration."""

    @property
    def record(self) -> DistillationRecord:
        """What it was taught.

        Raises:
            KeyError: nothing yet.
        """
        return DistillationRecord(**self.config.record)

    def write_record(self, record: DistillationRecord) -> None:
        """Puts the record into the configuration, which :meth:`save_pretrained` writes."""
        self.register_to_config(record=asdict(record))

    def weights_hash(self) -> str:
        """SHA-256 of its weights."""
        return hash_weights({"network": self})


class LatentEncoder(_Distilled):
    """A small convolutional encoder to the latents of a first stage.

    Two strided convolutions bring the pixels to the latent's resolution, where blocks of ConvNeXt V2 (Woo et al., 2023)
    work. Their response normalisation sees the whole patch, as the group norms and the attention of the first stage do.

    Args:
        latent_channels: of the first stage.
        factor: pixels a latent pixel, a power of two from 2.
        stem_width: channels between the two strided convolutions.
        width: channels at the latent's resolution.
        depth: blocks there.
        mlp_ratio: of each block's hidden width to its width.
        record: what it was taught; see :class:`DistillationRecord`.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int,
        factor: int,
        stem_width: int = 40,
        width: int = 96,
        depth: int = 4,
        mlp_ratio: float = 2.0,
        record: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        stride = min(4, factor)
        self.stem = nn.Sequential(
            nn.Conv2d(3, stem_width, 2 * stride, stride, stride // 2),
            nn.GELU(),
            nn.Conv2d(stem_width, width, factor // stride, factor // stride),
        )
        self.blocks = nn.Sequential(
            *(ConvNeXtBlock(width, mlp_ratio=mlp_ratio, use_grn=True, ls_init_value=None) for _ in range(depth))
        )
        self.head = nn.Conv2d(width, latent_channels, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Latents ``(B, C, H/factor, W/factor)``, scaled as :meth:`ZoomLDM.encode` scales them.

        Args:
            pixels: ``(B, 3, H, W)`` in [-1, 1].
        """
        # The blocks normalise over channels, which lie together in this layout.
        return self.head(self.blocks(self.stem(pixels.contiguous(memory_format=torch.channels_last))))


class FeatureStudent(_Distilled):
    """A timm network straight to the features of a ZoomLDM.

    The network's own features, to which a learned vector of the magnification is added, go through one linear layer to
    features of about mean 0 and deviation 1; the teacher's mean and deviation bring them to its scale.

    Args:
        backbone: its name in timm; never fetched.
        dim: features of the teacher.
        num_magnifications: steps of the teacher's ladder.
        record: what it was taught; see :class:`DistillationRecord`.
    """

    @register_to_config
    def __init__(
        self, backbone: str, dim: int, num_magnifications: int = 8, record: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.network = timm.create_model(backbone, pretrained=False, num_classes=0)
        width = getattr(self.network, "head_hidden_size", None) or self.network.num_features
        self.magnification_embedding = nn.Embedding(num_magnifications, width)
        nn.init.zeros_(self.magnification_embedding.weight)
        self.head = nn.Linear(width, dim)
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    def forward(self, pixels: Tensor, magnifications: Tensor) -> Tensor:
        """Standardised features ``(B, dim)``.

        Args:
            pixels: ``(B, 3, 256, 256)`` in [-1, 1].
            magnifications: ``(B,)`` indices in the ladder.
        """
        return self.head(self.network(pixels) + self.magnification_embedding(magnifications))

    def features(self, pixels: Tensor, magnifications: Tensor) -> Tensor:
        """Features ``(B, dim)`` float32 on the teacher's scale; arguments as those of :meth:`forward`."""
        return self(pixels, magnifications).float() * self.std + self.mean

    def standardised(self, features: Tensor) -> Tensor:
        """The teacher's features ``(B, dim)`` as :meth:`forward` should give them."""
        return (features - self.mean) / self.std


D = TypeVar("D", bound=_Distilled)


def load_distilled(kind: type[D], folder: str | Path) -> D:
    """A distilled network with its record, in evaluation mode.

    Args:
        kind: :class:`LatentEncoder` or :class:`FeatureStudent`.
        folder: the ``model`` of a checkpoint of `zoomfeat distill`.

    Raises:
        CheckpointMismatchError: no such network there, an incomplete one, or one without a record.
    """
    mode = "encoder" if issubclass(kind, LatentEncoder) else "student"
    cure = f"Give the model folder of a `zoomfeat distill mode={mode}` checkpoint"
    found = _stored_class(Path(folder))
    if found is not None and found != kind.__name__:
        raise CheckpointMismatchError(f"holds a {found}; expected a {kind.__name__}", path=folder, cure=cure)
    network = load_module(kind, Path(folder), cure)
    if not network.config.record:
        raise CheckpointMismatchError("says not what it was taught", path=folder, cure=cure)
    return network


def _stored_class(folder: Path) -> str | None:
    try:
        return cast(str, _Distilled.load_config(folder, local_files_only=True).get("_class_name"))
    except (OSError, ValueError):
        return None  # loading says what is wrong


def check_first_stage(encoder: LatentEncoder, vae: VQModel, latent_shape: tuple[int, ...], folder: str | Path) -> None:
    """Refuses an encoder that was taught the latents of another first stage.

    Args:
        encoder: with its record.
        vae: the first stage that it is to stand in for.
        latent_shape: of a patch there: channels, rows, columns.
        folder: where the encoder is from, for the message.

    Raises:
        CheckpointMismatchError: another latent shape, other weights, or another scale of the latents.
    """
    record = encoder.record
    found = hash_weights({"vae": vae})
    problem = ""
    if tuple(record.latent_shape) != tuple(latent_shape):
        problem = f"made for latents of {_shape(record.latent_shape)}, this model's are {_shape(latent_shape)}"
    elif record.first_stage_hash != found:
        problem = (
            f"taught by another first stage (weights hash {record.first_stage_hash[:12]}), this model's is {found[:12]}"
        )
    elif record.scaling_factor != vae.config.scaling_factor:
        problem = (
            f"made for latents scaled by {record.scaling_factor:.6g}, this model's are by "
            f"{vae.config.scaling_factor:.6g}"
        )
    if problem:
        raise CheckpointMismatchError(
            problem, path=folder, cure="Distil this model with `zoomfeat distill mode=encoder`, or leave the key out"
        )


def _shape(shape: list[int] | tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))

"""What a distillation starts from: the network that learns, and the checks that teacher and data go together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from generation.data import TrainingSet
from zoomfeat.conf.schema import DistillConfig
from zoomfeat.encoders.base import PatchEncoder
from zoomfeat.encoders.pretrained import read_weights
from zoomfeat.encoders.zoomldm import ZoomLDMEncoder
from zoomfeat.errors import CheckpointMismatchError, ConfigurationError
from zoomfeat.magnification import PATCH_SIZE
from zoomfeat.models.distilled import FeatureStudent, LatentEncoder, check_first_stage, load_distilled
from zoomfeat.models.weights import hash_weights

ENCODER_SIZES: dict[str, dict[str, Any]] = {
    "full": {"stem_width": 64, "width": 256, "depth": 6, "mlp_ratio": 4.0},
    "tiny": {"stem_width": 40, "width": 96, "depth": 4, "mlp_ratio": 2.0},
}
_BACKBONES = {"full": "convnext_tiny", "tiny": "mobilenetv4_conv_small_050"}
"""By size, what leaves a tenth of the first stage's operations, and a thirtieth of the whole, with some to spare."""


def check_keys(config: DistillConfig) -> None:
    """Refuses keys that do not go together.

    Raises:
        ConfigurationError: the first of them.
    """
    if config.mode not in ("encoder", "student"):
        raise ConfigurationError(f"mode={config.mode!r}; expected encoder or student", cure="The default is encoder")
    if config.mode == "encoder" and config.backbone is not None:
        raise ConfigurationError("backbone= is of mode=student", cure="Leave it out, or set mode=student")
    if config.mode == "student" and config.feature_weight:
        raise ConfigurationError("feature_weight= is of mode=encoder", cure="Leave it out: a student learns features")
    if config.feature_weight < 0:
        raise ConfigurationError(f"feature_weight={config.feature_weight}; expected 0 or more", cure="The default is 0")


def check_teacher(teacher: PatchEncoder, data: TrainingSet, path: str) -> ZoomLDMEncoder:
    """The teacher, if it is one and the data are of its making.

    Args:
        teacher: any encoder.
        data: the training set.
        path: where the set lies, for messages.

    Raises:
        ConfigurationError: not a ZoomLDM, or one whose first stage is itself distilled.
        CheckpointMismatchError: the data's magnifications, latents or embeddings are not the teacher's.
    """
    if not isinstance(teacher, ZoomLDMEncoder):
        raise ConfigurationError(f"{teacher.name} is no ZoomLDM", cure="Give for example encoder=zoomldm-brca")
    if "distilled_encoder" in teacher.settings:
        raise ConfigurationError("the teacher's first stage is distilled itself", cure="Leave out distilled_encoder=")
    if data.ladder != teacher.ladder:
        raise CheckpointMismatchError(
            f"magnifications of {data.ladder.name}, those of {teacher.name} are of {teacher.ladder.name}",
            path=path,
            cure="Prepare data of the teacher's domain",
        )
    made_by = data.configuration.get("first_stage")
    if made_by is not None and made_by != hash_weights({"vae": teacher.bundle.vae}):
        raise CheckpointMismatchError(
            f"latents of another first stage (weights hash {made_by[:12]}) than the teacher's",
            path=path,
            cure="Give the ZoomLDM that `zoomfeat prepare` was given, or prepare the data again",
        )
    embedding = data.configuration.get("ssl_weights_hash")
    if teacher.context_encoder is not None and embedding not in (None, teacher.context_encoder.weights_hash):
        raise CheckpointMismatchError(
            f"embeddings by {data.configuration.get('ssl_encoder')} ({embedding[:12]}), the teacher is conditioned on "
            f"{teacher.context_encoder.name} ({teacher.context_encoder.weights_hash[:12]})",
            path=path,
            cure="Prepare the data with the encoder that the teacher is conditioned on",
        )
    return teacher


def initial_network(config: DistillConfig, teacher: ZoomLDMEncoder) -> LatentEncoder | FeatureStudent:
    """The network that learns: fresh weights of ``seed``, or those of ``init``.

    Args:
        config: ``mode``, ``size``, ``backbone``, ``init`` and ``seed`` count.
        teacher: decides the shape of what it gives.

    Raises:
        ConfigurationError: timm has no such backbone, or it does not take patches of 256 px.
        CheckpointMismatchError: ``init`` does not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return _latent_encoder(config, teacher) if config.mode == "encoder" else _student(config, teacher)


def _latent_encoder(config: DistillConfig, teacher: ZoomLDMEncoder) -> LatentEncoder:
    if config.init is not None:
        encoder = load_distilled(LatentEncoder, config.init)
        check_first_stage(encoder, teacher.bundle.vae, teacher.latent_shape, config.init)
        return encoder
    channels, side, _ = teacher.latent_shape
    return LatentEncoder(channels, PATCH_SIZE // side, **ENCODER_SIZES[config.size])


def _student(config: DistillConfig, teacher: ZoomLDMEncoder) -> FeatureStudent:
    backbone = config.backbone or _BACKBONES[config.size]
    try:
        student = FeatureStudent(backbone, teacher.dim, len(teacher.ladder.steps))
        with torch.no_grad():
            student.eval()(torch.zeros(1, 3, PATCH_SIZE, PATCH_SIZE), torch.zeros(1, dtype=torch.long))
    except (RuntimeError, AssertionError, ValueError, AttributeError) as error:  # timm's own kinds
        raise ConfigurationError(
            f"backbone={backbone!r}: {' '.join(str(error).split())}",
            cure="Give a network of timm.list_models() that takes images of 256 px",
        ) from error
    if config.init is not None:
        _load_backbone(student, Path(config.init), backbone)
    return student


def _load_backbone(student: FeatureStudent, path: Path, backbone: str) -> None:
    wanted = student.network.state_dict()
    found = {name: tensor for name, tensor in read_weights(path).items() if name in wanted}  # not the classifier
    wrong = [name for name in wanted if name not in found or found[name].shape != wanted[name].shape]
    if wrong:
        raise CheckpointMismatchError(
            f"{len(wrong)} of {len(wanted)} weights of {backbone} are missing or of another shape, first {wrong[0]}",
            path=path,
            cure="Give weights of that network in timm's layout, or leave out init=",
        )
    student.network.load_state_dict(found)

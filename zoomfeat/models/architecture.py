"""The sizes of ZoomLDM: its stock diffusers modules and noise schedule, with fresh weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffusers import DDIMScheduler, UNet2DConditionModel, VQModel

FIRST_STAGES: dict[str, dict[str, Any]] = {
    "full": {},
    "tiny": {"block_out_channels": (16, 32, 64, 64), "codes": 8192, "latent_channels": 4, "norm_num_groups": 4},
}
UNETS: dict[str, dict[str, Any]] = {
    "full": {},
    "tiny": {"block_out_channels": (32, 64, 96, 96), "context_dim": 128, "latent_channels": 4, "norm_num_groups": 8},
}
SUMMARIZERS: dict[str, dict[str, int]] = {
    "full": {"hidden_dim": 512, "output_dim": 512, "num_layers": 12, "num_heads": 8, "mlp_dim": 2048},
    "tiny": {"hidden_dim": 128, "output_dim": 128, "num_layers": 4, "num_heads": 4, "mlp_dim": 512},
}
"""The released sizes, and those of `zoomldm-tiny`: arguments of the builders below, and of the Summarizer.

Groups of normalisation hold several channels each: one that is normalised by itself loses its mean, and at the output
that is the mean of the noise (docs/training.md).
"""


def build_unet(
    block_out_channels: Sequence[int] = (192, 384, 576, 960),
    context_dim: int = 512,
    latent_channels: int = 3,
    **more: Any,
) -> UNet2DConditionModel:
    """The denoiser on diffusers' stock blocks; the defaults are the released size (401 M parameters)."""
    levels = len(block_out_channels)
    return UNet2DConditionModel(
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=tuple(block_out_channels),
        layers_per_block=2,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * (levels - 1),
        up_block_types=("CrossAttnUpBlock2D",) * (levels - 1) + ("UpBlock2D",),
        cross_attention_dim=context_dim,
        attention_head_dim=1,  # diffusers' name for the number of heads
        norm_eps=1e-5,
        downsample_padding=1,
        flip_sin_to_cos=True,
        freq_shift=0,
        **more,
    )


def build_first_stage(
    block_out_channels: Sequence[int] = (128, 256, 512), codes: int = 8192, latent_channels: int = 3, **more: Any
) -> VQModel:
    """The VQ autoencoder on diffusers' stock blocks; the defaults are the released VQ-f4 (55 M parameters)."""
    levels = len(block_out_channels)
    return VQModel(
        block_out_channels=tuple(block_out_channels),
        layers_per_block=2,
        latent_channels=latent_channels,
        vq_embed_dim=latent_channels,
        num_vq_embeddings=codes,
        scaling_factor=1.0,  # diffusers' default is that of another model
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        **more,
    )


def build_scheduler(steps: int = 1000, beta_start: float = 0.0015, beta_end: float = 0.0195) -> DDIMScheduler:
    """The noise schedule of the release; steps equal its own DDIM where the step count divides 1000."""
    return DDIMScheduler(
        num_train_timesteps=steps,
        beta_start=beta_start,
        beta_end=beta_end,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
    )

"""The conditioning diffusion model (CDM): Summarizer tokens from a magnification alone, without a reference image.

A DiT (Peebles and Xie, "Scalable Diffusion Models with Transformers", 2023) over the 65 tokens, conditioned on the
magnification; ZoomLDM (CVPR 2025, section 3, "Conditioning diffusion model"). It predicts clean tokens under the
cosine schedule of Nichol and Dhariwal ("Improved Denoising Diffusion Probabilistic Models", 2021). The names of its
weights are the release's own, so a released checkpoint needs no mapping.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import ConfigMixin, DDPMScheduler, DPMSolverMultistepScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import get_1d_sincos_pos_embed_from_grid, get_timestep_embedding
from diffusers.utils.torch_utils import randn_tensor
from timm.layers import Attention, Mlp
from torch import Tensor, nn

from zoomfeat.errors import CheckpointMismatchError, ConfigurationError, MagnificationError
from zoomfeat.models.weights import load_module, read_checkpoint

SIZES: dict[str, dict[str, int]] = {
    "S": {"hidden_dim": 384, "num_layers": 12, "num_heads": 6},
    "B": {"hidden_dim": 768, "num_layers": 12, "num_heads": 12},
    "L": {"hidden_dim": 1024, "num_layers": 24, "num_heads": 16},
    "XL": {"hidden_dim": 1152, "num_layers": 28, "num_heads": 16},
}
"""The sizes of the release, as arguments of :class:`ConditioningDiT`; the published model is B."""

TRAIN_TIMESTEPS = 1000
"""Length of the noise schedule."""

_FREQUENCIES = 256  # width of the sinusoidal embedding of the timestep


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale) + shift


class _Modulation(nn.Sequential):
    """The adaptive part of a layer norm: ``parts`` vectors, each ``(B, 1, dim)``, from the condition ``(B, dim)``."""

    def __init__(self, dim: int, parts: int) -> None:
        super().__init__(nn.SiLU(), nn.Linear(dim, parts * dim))
        self.parts = parts

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        return super().forward(condition)[:, None].chunk(self.parts, dim=-1)


class _Block(nn.Module):
    """A transformer layer whose norms and residual gates follow the condition (adaLN-Zero)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(dim, num_heads=num_heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.mlp = Mlp(dim, hidden_features=4 * dim, act_layer=lambda: nn.GELU(approximate="tanh"))
        self.adaLN_modulation = _Modulation(dim, 6)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(condition)
        x = x + gate1 * self.attn(_modulate(self.norm1(x), shift1, scale1))
        return x + gate2 * self.mlp(_modulate(self.norm2(x), shift2, scale2))


class _FinalLayer(nn.Module):
    def __init__(self, dim: int, output_dim: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(dim, output_dim)
        self.adaLN_modulation = _Modulation(dim, 2)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.linear(_modulate(self.norm_final(x), *self.adaLN_modulation(condition)))


class ConditioningDiT(ModelMixin, ConfigMixin):
    """A DiT over Summarizer tokens. The defaults are the published model, DiT-B (131 M parameters).

    Tokens are ``(B, num_tokens, token_dim)`` here, as the Summarizer makes them and the denoiser reads them; the
    release's own code keeps the channels first. It has no null class: magnifications are never dropped.

    Args:
        num_tokens: length of the sequence, the magnification token included.
        token_dim: width of a token, the Summarizer's ``output_dim``.
        hidden_dim: width of the transformer.
        num_layers: transformer layers.
        num_heads: attention heads.
        num_magnifications: steps of the ladder.
    """

    @register_to_config
    def __init__(
        self,
        num_tokens: int = 65,
        token_dim: int = 512,
        hidden_dim: int = 768,
        num_layers: int = 12,
        num_heads: int = 12,
        num_magnifications: int = 8,
    ) -> None:
        super().__init__()
        positions = get_1d_sincos_pos_embed_from_grid(hidden_dim, torch.arange(num_tokens), output_type="pt")
        self.register_buffer("pos_embed", positions[None].float())
        self.x_embedder = nn.Linear(token_dim, hidden_dim)
        time = nn.Sequential(nn.Linear(_FREQUENCIES, hidden_dim), nn.SiLU(), nn.Linear(hidden_dim, hidden_dim))
        self.t_embedder = nn.Sequential(OrderedDict(mlp=time))
        self.y_embedder = nn.Sequential(OrderedDict(embedding_table=nn.Embedding(num_magnifications, hidden_dim)))
        self.blocks = nn.ModuleList(_Block(hidden_dim, num_heads) for _ in range(num_layers))
        # Twice the width: the release learns a variance beside the clean tokens, which DDIM does not use.
        self.final_layer = _FinalLayer(hidden_dim, 2 * token_dim)
        self._initialise()

    def _initialise(self) -> None:
        """The DiT paper's start: every block is the identity and the output zero, until training opens the gates."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                if "adaLN_modulation" in name or name == "final_layer.linear":
                    nn.init.zeros_(module.weight)
                elif name.startswith("t_embedder"):
                    nn.init.normal_(module.weight, std=0.02)
                else:
                    nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, tokens: Tensor, timestep: Tensor | int, magnification: Tensor | int) -> Tensor:
        """One pass of the network.

        Args:
            tokens: noisy tokens ``(B, num_tokens, token_dim)``.
            timestep: 0 (clean) to 999 (noise), one for all or ``(B,)``.
            magnification: index in the ladder, one for all or ``(B,)``.

        Returns:
            ``(B, num_tokens, 2 * token_dim)``: the prediction of the clean tokens, then the unused variance;
            :func:`clean` takes the former.
        """
        timestep, magnification = (
            torch.as_tensor(value, device=tokens.device).expand(len(tokens)) for value in (timestep, magnification)
        )
        waves = get_timestep_embedding(timestep, _FREQUENCIES, flip_sin_to_cos=True, downscale_freq_shift=0)
        condition = self.t_embedder(waves.to(tokens.dtype)) + self.y_embedder(magnification)
        x = self.x_embedder(tokens) + self.pos_embed
        for block in self.blocks:
            x = block(x, condition)
        return self.final_layer(x, condition)

    @classmethod
    def from_checkpoint(cls, path: str | Path, *, ema: bool = True, num_heads: int | None = None) -> ConditioningDiT:
        """Loads the release's own layout, in float32 and evaluation mode.

        Args:
            path: the checkpoint; it is read without running code from it.
            ema: the averaged weights (what the publication samples with) or the raw ones.
            num_heads: attention heads, which the weights do not show; known for the widths of :data:`SIZES`.

        Raises:
            CheckpointMismatchError: unsafe or damaged, or keys that are missing, extra or of another shape; the
                first ones are named.
        """
        state = _read_release(Path(path), "ema" if ema else "model")
        model = cls(**_sizes(state, Path(path), num_heads))
        expected = {key: tensor.shape for key, tensor in model.state_dict().items()}
        found = {key: tensor.shape for key, tensor in state.items()}
        wrong = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
        if wrong:
            raise CheckpointMismatchError(
                f"{len(wrong)} keys are missing, extra or of another shape: {', '.join(wrong[:3])}",
                path=path,
                cure="Give the checkpoint of a ZoomLDM conditioning model (DiT)",
            )
        model.load_state_dict(state)
        return model.eval()

    @classmethod
    def load(cls, path: str | Path, *, ema: bool = True) -> ConditioningDiT:
        """Loads weights from disk in either layout; fetches nothing.

        Args:
            path: a folder that :meth:`save_pretrained` wrote, or a checkpoint of the release.
            ema: as in :meth:`from_checkpoint`; a folder holds what was saved.

        Raises:
            CheckpointMismatchError: no such file or folder, or one that does not hold a complete model.
        """
        path = Path(path)
        if not path.is_dir():
            return cls.from_checkpoint(path, ema=ema)
        return load_module(cls, path, "Give the folder that `zoomfeat train-cdm` wrote, or the release's checkpoint")


def _read_release(path: Path, weights: str) -> dict[str, Tensor]:
    """One of the state dicts of a released checkpoint (``model``, ``ema``, ``opt``, ``args``)."""
    # The release stores its command line beside the weights: that one class is allowed, and holds data only.
    # Mapped, since the optimiser, two thirds of the file, is never read.
    checkpoint = read_checkpoint(path, allow=[argparse.Namespace], mapped=True)
    state = checkpoint.get(weights) if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointMismatchError(
            f"holds no state dict {weights!r}",
            path=path,
            cure="Give the checkpoint of a ZoomLDM conditioning model, with the keys model and ema",
        )
    return state


def _sizes(state: dict[str, Tensor], path: Path, num_heads: int | None) -> dict[str, int]:
    """Arguments of :class:`ConditioningDiT`, read off the shapes of its weights."""
    try:
        hidden_dim, token_dim = state["x_embedder.weight"].shape
        num_tokens = state["pos_embed"].shape[1]
        num_magnifications = len(state["y_embedder.embedding_table.weight"])
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointMismatchError(
            f"not a conditioning DiT ({error})", path=path, cure="Give the checkpoint of a ZoomLDM conditioning model"
        ) from error
    if num_heads is None:
        num_heads = next((size["num_heads"] for size in SIZES.values() if size["hidden_dim"] == hidden_dim), None)
    if num_heads is None or hidden_dim % num_heads:
        raise CheckpointMismatchError(
            f"{num_heads} attention heads for width {hidden_dim}",
            path=path,
            cure=f"Give num_heads=, a divisor of {hidden_dim}; the weights do not show it",
        )
    return {
        "num_tokens": num_tokens,
        "token_dim": token_dim,
        "hidden_dim": hidden_dim,
        "num_layers": len({key.split(".")[1] for key in state if key.startswith("blocks.")}),
        "num_heads": num_heads,
        "num_magnifications": num_magnifications,
    }


def clean(output: Tensor) -> Tensor:
    """The prediction of the clean tokens ``(B, N, C)`` in an output ``(B, N, 2 * C)`` of the network."""
    return output.chunk(2, dim=-1)[0]


def noise_schedule() -> DDPMScheduler:
    """The schedule that the model is trained under: cosine, 1000 steps, the network predicts the clean sample."""
    return DDPMScheduler(
        num_train_timesteps=TRAIN_TIMESTEPS,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        clip_sample=False,
    )


def ddim_scheduler(steps: int) -> DPMSolverMultistepScheduler:
    """Deterministic DDIM over ``steps`` timesteps from 999 to 0, both included, as the release spaces them.

    DPM-Solver++ of first order is DDIM (Lu et al., "DPM-Solver++", 2022, section 4.1). diffusers' DDIMScheduler takes
    the step before to be an even stride away, which these timesteps (999, 749, 500, 250, 0 for five) are not.

    Raises:
        ConfigurationError: a count outside 2 to 1000.
    """
    if not 2 <= steps <= TRAIN_TIMESTEPS:
        raise ConfigurationError(f"steps is {steps}", cure=f"Use 2 to {TRAIN_TIMESTEPS}; the publication uses 200")
    scheduler = DPMSolverMultistepScheduler.from_config(
        noise_schedule().config, solver_order=1, algorithm_type="dpmsolver++", final_sigmas_type="zero"
    )
    timesteps = np.linspace(TRAIN_TIMESTEPS - 1, 0, steps).round().astype(int)
    scheduler.set_timesteps(timesteps=timesteps.tolist())
    return scheduler


@torch.no_grad()
def sample_tokens(
    model: ConditioningDiT,
    magnification: Sequence[int] | Tensor,
    generator: torch.Generator | list[torch.Generator] | None = None,
    steps: int = 200,
    on_step: Callable[[Tensor], object] | None = None,
) -> Tensor:
    """Draws the tokens that a Summarizer would make of some region at each magnification.

    Args:
        model: the network, in evaluation mode.
        magnification: one index in the ladder a sample, ``(B,)``.
        generator: the source of the starting noise; a list, one a sample, makes a sample independent of its batch.
        steps: denoising steps, 2 to 1000.
        on_step: called with the tokens ``(B, num_tokens, token_dim)`` after every step.

    Returns:
        ``(B, num_tokens, token_dim)``, the denoiser's context, in the model's type and on its device.

    Raises:
        MagnificationError: an index that the model does not know.
        ConfigurationError: a step count out of its range.
    """
    index = torch.as_tensor(magnification, device=model.device)
    known = model.config.num_magnifications
    if index.ndim != 1 or not index.numel() or not ((index >= 0) & (index < known)).all():
        raise MagnificationError(
            f"magnification indices {index.tolist()}",
            cure=f"Give a list of indices; this model knows 0 to {known - 1}",
        )
    scheduler = ddim_scheduler(steps)
    shape = (len(index), model.config.num_tokens, model.config.token_dim)
    tokens = randn_tensor(shape, generator=generator, device=model.device, dtype=torch.float32)
    for timestep in scheduler.timesteps:
        output = model(tokens.to(model.dtype), timestep, index)
        tokens = scheduler.step(clean(output).float(), timestep, tokens).prev_sample
        if on_step is not None:
            on_step(tokens)
    return tokens.to(model.dtype)

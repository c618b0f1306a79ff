"""The Summarizer: a grid of SSL embeddings and a magnification in, 65 context tokens for the denoiser out.

Architecture of ZoomLDM (CVPR 2025, section 3 "Summarizer", and the layout of its released weights).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional

from zoomfeat.magnification import MAX_GRID


def embedding_grid(embeddings: Tensor) -> Tensor:
    """Raw embeddings of the patches under a region, made ready for the Summarizer.

    Grids of more than 8 x 8 are adaptive-average-pooled to 8 x 8; then each embedding is normalised over
    its channels to mean 0 and (unbiased) standard deviation 1.

    Args:
        embeddings: ``(B, C, h, w)``, one embedding a patch of the finest magnification, rows downwards.

    Returns:
        ``(B, C, min(h, 8), min(w, 8))``, same dtype.
    """
    height, width = embeddings.shape[-2:]
    if height > MAX_GRID or width > MAX_GRID:
        size = (min(height, MAX_GRID), min(width, MAX_GRID))
        embeddings = functional.adaptive_avg_pool2d(embeddings, size)
    mean = embeddings.mean(dim=1, keepdim=True)
    return (embeddings - mean) / (embeddings.std(dim=1, keepdim=True) + 1e-8)


class Summarizer(ModelMixin, ConfigMixin):
    """Transformer over SSL embeddings, trained jointly with the denoiser.

    The defaults are those of the released weights: UNI embeddings, 512-d tokens, eight magnifications.

    Args:
        input_dim: width of an SSL embedding.
        hidden_dim: width of the transformer.
        output_dim: width of a context token, the denoiser's ``cross_attention_dim``.
        num_layers: transformer layers.
        num_heads: attention heads.
        mlp_dim: width inside the feed-forward layers.
        num_magnifications: steps of the ladder.
        num_tokens: length of the embedding sequence without the magnification token.
        dropout: dropout inside the layers, in training.
        magnification_token: false, for ablations: token 0 is the same at every magnification. The sequence keeps its
            length, so that everything downstream does too.
    """

    @register_to_config
    def __init__(
        self,
        input_dim: int = 1024,
        hidden_dim: int = 512,
        output_dim: int = 512,
        num_layers: int = 12,
        num_heads: int = 8,
        mlp_dim: int = 2048,
        num_magnifications: int = 8,
        num_tokens: int = MAX_GRID**2,
        dropout: float = 0.0,
        magnification_token: bool = True,
    ) -> None:
        super().__init__()
        self.pad_token = nn.Parameter(torch.zeros(1, 1, hidden_dim))
        self.magnification_embedding = nn.Embedding(num_magnifications, hidden_dim)
        self.proj_in = nn.Linear(input_dim, hidden_dim)
        self.position_embedding = nn.Parameter(torch.empty(1, 1 + num_tokens, hidden_dim).normal_(std=0.02))
        layer = nn.TransformerEncoderLayer(
            hidden_dim,
            num_heads,
            mlp_dim,
            dropout,
            "gelu",
            layer_norm_eps=1e-6,
            batch_first=True,
            norm_first=True,
        )
        self.transformer = nn.TransformerEncoder(
            layer, num_layers, norm=nn.LayerNorm(hidden_dim, eps=1e-6), enable_nested_tensor=False
        )
        self.proj_out = nn.Linear(hidden_dim, output_dim)
        self.norm_out = nn.LayerNorm(output_dim)

    @property
    def context_shape(self) -> tuple[int, int]:
        """Tokens and width of the context: ``(65, 512)`` for the released weights."""
        return 1 + self.config.num_tokens, self.config.output_dim

    def null_context(self, batch: int) -> Tensor:
        """The null condition of classifier-free guidance: zeros *after* the Summarizer, ``(B, 65, output_dim)``."""
        return torch.zeros(batch, *self.context_shape, dtype=self.dtype, device=self.device)

    def place(self, grids: Sequence[Tensor]) -> Tensor:
        """Projects grids and centres each in a padded sequence.

        The n tokens of a grid lie in one row-major run that starts at ``num_tokens // 2 - n // 2``; all other
        places hold the learned pad token.

        Args:
            grids: one normalised ``(C, h, w)`` grid a sample; sizes may differ, since magnifications may.

        Returns:
            ``(B, num_tokens, hidden_dim)``.

        Raises:
            ValueError: a grid of another width, or with more tokens than fit.
        """
        length = self.config.num_tokens
        sequence = self.pad_token.expand(len(grids), length, -1).clone()
        for row, grid in enumerate(grids):
            if grid.ndim != 3 or grid.shape[0] != self.config.input_dim or grid[0].numel() > length:
                raise ValueError(
                    f"an embedding grid of shape {tuple(grid.shape)}; expected ({self.config.input_dim}, h, w) "
                    f"with h * w at most {length}"
                )
            tokens = self.proj_in(grid.flatten(1).T)
            start = length // 2 - len(tokens) // 2
            sequence[row, start : start + len(tokens)] = tokens
        return sequence

    def forward(self, grids: Tensor | Sequence[Tensor], magnification: Tensor | int) -> Tensor:
        """Context tokens; token 0 is the magnification's.

        Args:
            grids: normalised embeddings (see :func:`embedding_grid`), ``(B, C, h, w)`` or a sequence of ``(C, h, w)``.
            magnification: index in the ladder, one for all or ``(B,)``.

        Returns:
            ``(B, 1 + num_tokens, output_dim)``.
        """
        sequence = self.place(list(grids))
        index = torch.as_tensor(magnification, device=sequence.device).expand(len(sequence))
        if not self.config.magnification_token:
            index = torch.zeros_like(index)
        sequence = torch.cat([self.magnification_embedding(index)[:, None], sequence], dim=1)
        sequence = self.transformer(sequence + self.position_embedding)
        return self.norm_out(self.proj_out(sequence))

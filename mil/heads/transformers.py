"""Heads that let instances see each other: TransMIL and attention pooling after a transformer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torchmil.models import TransMIL
from torchmil.nn import AttentionPool, TransformerEncoder, masked_softmax
from torchmil.nn.attention.nystrom_attention import NystromAttention, moore_penrose_iter_pinv

from mil.heads.base import Embedding, Head, HeadOutput, register


@register("transmil")
class TransMILHead(Head):
    """TransMIL of Shao et al. (NeurIPS 2021): a class token, two Nyström layers, and position from convolutions.

    torchmil's layers know no mask, fill the square grid with repeated instances, and take a maximum over the whole
    batch in the pseudo-inverse; so each bag runs by itself, which makes its result independent of the batch.

    Args:
        input_dim: length D of an instance.
        num_outputs: number C of logits.
        width: length of an embedded instance, a multiple of 4.
        dropout: on embedded instances.
        landmarks: most landmarks of the Nyström approximation; a bag with fewer tokens has one for each, which makes
            its attention exact.
    """

    def __init__(
        self, input_dim: int, num_outputs: int, width: int = 128, dropout: float = 0.25, landmarks: int = 64
    ) -> None:
        super().__init__()
        self.vector_width = width
        self.landmarks = landmarks
        self.embed = Embedding(input_dim, width, dropout)
        self.transmil = TransMIL(in_shape=(width,), att_dim=width, n_landmarks=landmarks)
        self.transmil.classifier = nn.Identity()  # so that it gives the class token, as the bag's vector
        self.classifier = nn.Linear(width, num_outputs)

    def forward(self, features: Tensor, mask: Tensor) -> HeadOutput:
        """See ``Head``."""
        instances = self.embed(features)
        attention = instances.new_zeros(mask.shape)
        vectors = []
        for bag, (embedded, real) in enumerate(zip(instances, mask, strict=True)):
            vector, weights = self._run(embedded[real][None])
            vectors.append(vector)
            attention[bag, real] = weights.to(attention.dtype)
        vector = torch.stack(vectors)
        return HeadOutput(self.classifier(vector), attention, vector, instances)

    def _run(self, instances: Tensor) -> tuple[Tensor, Tensor]:
        """Class token (W,) of one bag (1, N, W), and how much it attends to each instance, (N,)."""
        tokens = math.ceil(math.sqrt(instances.shape[1])) ** 2 + 1  # the grid that torchmil fills, and the class token
        for layer in self.transmil.layers:
            layer.att_module.n_landmarks = min(self.landmarks, tokens)
        seen: list[Tensor] = []
        last = self.transmil.layers[-1]
        hook = last.att_module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
        vector = self.transmil(instances).reshape(-1)
        hook.remove()
        with torch.no_grad():
            weights = class_token_attention(last.att_module, seen[0])[0, 1 : instances.shape[1] + 1].clamp(min=0)
        return vector, weights / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)


def class_token_attention(attention: NystromAttention, tokens: Tensor) -> Tensor:
    """(1, T) attention of the first of (1, T, W) tokens, mean over heads.

    What ``NystromAttention`` returns in row 0 with ``return_att=True``, without the T x T matrix that it builds.
    """
    count = tokens.shape[1]
    padding = -count % attention.n_landmarks
    padded = nn.functional.pad(tokens, (0, 0, padding, 0))
    query, key, _ = (
        part.unflatten(-1, (attention.n_heads, -1)).transpose(1, 2)
        for part in attention.qkv_nn(padded).chunk(3, dim=-1)
    )
    query = query * attention.scale_factor
    query_marks, key_marks = (part.unflatten(2, (attention.n_landmarks, -1)).mean(dim=3) for part in (query, key))
    first = (query[:, :, padding : padding + 1] @ key_marks.transpose(2, 3)).softmax(dim=-1)
    between = (query_marks @ key_marks.transpose(2, 3)).softmax(dim=-1)
    last = (query_marks @ key.transpose(2, 3)).softmax(dim=-1)
    row = first @ moore_penrose_iter_pinv(between, attention.pinv_iterations) @ last
    return row[:, :, 0, padding:].mean(dim=1)


@register("transformer-abmil")
class TransformerHead(Head):
    """Self-attention between instances, then attention pooling, as in Castro-Macías et al. (NeurIPS 2024).

    Args:
        input_dim: length D of an instance.
        num_outputs: number C of logits.
        width: length of an embedded instance, a multiple of 8.
        attention_width: length of the hidden layer that pooling attention is computed from.
        dropout: on embedded instances.
        layers: number of transformer layers.
    """

    def __init__(
        self,
        input_dim: int,
        num_outputs: int,
        width: int = 128,
        attention_width: int = 64,
        dropout: float = 0.25,
        layers: int = 1,
    ) -> None:
        super().__init__()
        self.vector_width = width
        self.embed = Embedding(input_dim, width, dropout)
        # torchmil drops attention out in prediction too, so its own dropout stays 0.
        self.encoder = TransformerEncoder(in_dim=width, att_dim=width, n_layers=layers, n_heads=8, add_self=True)
        self.pool = AttentionPool(in_dim=width, att_dim=attention_width, act="tanh", gated=False)
        self.classifier = nn.Linear(width, num_outputs)

    def forward(self, features: Tensor, mask: Tensor) -> HeadOutput:
        """See ``Head``."""
        # Without padding the mask only makes the attention slower, and its N x N copy larger than anything else.
        instances = self.encoder(self.embed(features), None if mask.all() else mask)
        vector, scores = self.pool(instances, mask, return_att=True)
        return HeadOutput(self.classifier(vector), masked_softmax(scores, mask), vector, instances)

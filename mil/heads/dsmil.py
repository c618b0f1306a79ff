"""DSMIL: attention towards the instance that looks most like the class."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torchmil.models import DSMIL
from torchmil.nn import masked_softmax

from mil.heads.base import Embedding, Head, HeadOutput, register


@register("dsmil")
class DsmilHead(Head):
    """Dual-stream MIL of Li, Li and Eliceiri (CVPR 2021), section 3.2.

    One stream scores instances; the highest score of each class, its critical instance, is a prediction of the bag.
    The other attends by similarity to the critical instance. Both are trained; the second predicts. With several
    classes each has a critical instance and a bag vector of its own; attention is the mean over them.

    Args:
        input_dim: length D of an instance.
        num_outputs: number C of logits.
        width: length of an embedded instance.
        attention_width: length of queries.
        dropout: on embedded instances.
    """

    def __init__(
        self, input_dim: int, num_outputs: int, width: int = 128, attention_width: int = 64, dropout: float = 0.25
    ) -> None:
        super().__init__()
        self.vector_width = width * num_outputs
        self.embed = Embedding(input_dim, width, dropout)
        streams = DSMIL(in_shape=(width,), att_dim=attention_width, nonlinear_q=True, nonlinear_v=True)
        self.query, self.value = streams.q_nn, streams.v_nn
        self.instance_classifier = nn.Linear(width, num_outputs)
        # A convolution over all classes' vectors in the release, which is a linear layer.
        self.classifier = nn.Linear(self.vector_width, num_outputs)

    def forward(self, features: Tensor, mask: Tensor) -> HeadOutput:
        """See ``Head``."""
        instances = self.embed(features)
        scores = self.instance_classifier(instances).masked_fill(~mask[..., None], float("-inf"))  # (B, N, C)
        best, critical = scores.max(dim=1)  # (B, C) each
        queries = self.query(instances)
        critical_queries = torch.gather(queries, 1, critical[..., None].expand(-1, -1, queries.shape[2]))  # (B, C, Q)
        similarity = queries @ critical_queries.transpose(1, 2) / math.sqrt(queries.shape[2])
        attention = masked_softmax(similarity, mask)  # (B, N, C)
        vector = (attention.transpose(1, 2) @ self.value(instances)).flatten(1)
        return HeadOutput(
            self.classifier(vector),
            attention.mean(dim=2),
            vector,
            instances,
            side_logits=best[:, None],
            side_weights=torch.ones_like(best[:, :1]),
        )

"""DTFD-MIL: attention within random groups of instances, then attention over the groups."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchmil.nn import AttentionPool, masked_softmax

from mil.heads.base import Embedding, Head, HeadOutput, register


@register("dtfd")
class DtfdHead(Head):
    """Double-tier feature distillation MIL of Zhang et al. (CVPR 2022), with aggregated features (AFS).

    The instances of a bag are dealt into pseudo-bags, at random in training and in turn otherwise. The first tier
    pools each and predicts the bag's label from it; the second pools the pseudo-bags' vectors. torchmil's own forward
    pass deals padding too, and draws from NumPy's global state at each prediction, so that only its parts are used.

    Args:
        input_dim: length D of an instance.
        num_outputs: number C of logits.
        width: length of an embedded instance.
        attention_width: length of the hidden layers that attention is computed from.
        dropout: on embedded instances.
        groups: number of pseudo-bags; a bag with fewer instances has one for each.
    """

    def __init__(
        self,
        input_dim: int,
        num_outputs: int,
        width: int = 128,
        attention_width: int = 64,
        dropout: float = 0.25,
        groups: int = 5,
    ) -> None:
        super().__init__()
        self.vector_width = width
        self.groups = groups
        self.embed = Embedding(input_dim, width, dropout)
        self.first_pool = AttentionPool(in_dim=width, att_dim=attention_width, act="tanh", gated=True)
        self.first_classifier = nn.Linear(width, num_outputs)
        self.second_pool = AttentionPool(in_dim=width, att_dim=attention_width, act="tanh", gated=True)
        self.classifier = nn.Linear(width, num_outputs)

    def forward(self, features: Tensor, mask: Tensor) -> HeadOutput:
        """See ``Head``."""
        instances = self.embed(features)
        group = self._deal(mask)  # (B, N)
        member = mask[..., None] & (group[..., None] == torch.arange(self.groups, device=mask.device))  # (B, N, G)
        used = member.any(dim=1)  # (B, G)
        # A group without an instance takes all of them, which keeps its softmax finite; the second tier ignores it.
        pooled_from = member | (~used[:, None] & mask[..., None])

        _, scores = self.first_pool(instances, mask, return_att=True)
        within = masked_softmax(scores[..., None].expand_as(member), pooled_from)  # (B, N, G)
        vectors = within.transpose(1, 2) @ instances  # (B, G, W)
        vector, second_scores = self.second_pool(vectors, used, return_att=True)
        between = masked_softmax(second_scores, used)  # (B, G)
        weights = used.to(vector.dtype)
        return HeadOutput(
            self.classifier(vector),
            torch.einsum("bng,bg->bn", within, between),
            vector,
            instances,
            side_logits=self.first_classifier(vectors),
            side_weights=weights / weights.sum(dim=1, keepdim=True),
        )

    def _deal(self, mask: Tensor) -> Tensor:
        """(B, N) the group of each instance; groups of a bag differ by one instance at most."""
        order = (
            torch.rand(mask.shape, device=mask.device) if self.training else torch.zeros(mask.shape, device=mask.device)
        )
        place = order.masked_fill(~mask, 2).argsort(dim=1, stable=True).argsort(dim=1, stable=True)
        return place % self.groups

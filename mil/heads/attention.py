"""Attention pooling (ABMIL), and CLAM, which adds a loss on the instances attended most and least."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torchmil.nn import AttentionPool, masked_softmax

from mil.heads.base import Embedding, Head, HeadOutput, register


class AttentionHead(Head):
    """Attention-based MIL of Ilse, Tomczak and Welling (ICML 2018), equations 8 and 9.

    Args:
        input_dim: length D of an instance.
        num_outputs: number C of logits.
        width: length of an embedded instance.
        attention_width: length of the hidden layer that attention is computed from.
        dropout: on embedded instances.
        gated: multiply the hidden layer by a sigmoid gate.
    """

    def __init__(
        self,
        input_dim: int,
        num_outputs: int,
        width: int = 128,
        attention_width: int = 64,
        dropout: float = 0.25,
        gated: bool = False,
    ) -> None:
        super().__init__()
        self.vector_width = width
        self.embed = Embedding(input_dim, width, dropout)
        self.pool = AttentionPool(in_dim=width, att_dim=attention_width, act="tanh", gated=gated)
        self.classifier = nn.Linear(width, num_outputs)

    def forward(self, features: Tensor, mask: Tensor) -> HeadOutput:
        """See ``Head``."""
        instances = self.embed(features)
        vector, scores = self.pool(instances, mask, return_att=True)
        return HeadOutput(self.classifier(vector), masked_softmax(scores, mask), vector, instances)


@register("abmil")
def abmil(
    input_dim: int, num_outputs: int, width: int = 128, attention_width: int = 64, dropout: float = 0.25
) -> AttentionHead:
    """Attention pooling."""
    return AttentionHead(input_dim, num_outputs, width, attention_width, dropout, gated=False)


@register("abmil-gated")
def abmil_gated(
    input_dim: int, num_outputs: int, width: int = 128, attention_width: int = 64, dropout: float = 0.25
) -> AttentionHead:
    """Gated attention pooling."""
    return AttentionHead(input_dim, num_outputs, width, attention_width, dropout, gated=True)


@register("clam-sb")
class ClamHead(AttentionHead):
    """CLAM with a single attention branch, of Lu et al. (Nature Biomedical Engineering 2021).

    In training of a classifier, the instances attended most are held to belong to the bag's class and to no
    other, those attended least not to belong to it ("Instance-level clustering" in the paper's Methods). Other
    estimators have no classes, and train it as gated attention.

    Args:
        input_dim: length D of an instance.
        num_outputs: number C of classes.
        width: length of an embedded instance.
        attention_width: length of the hidden layer that attention is computed from.
        dropout: on embedded instances.
        samples: how many instances are taken from either end of the attention.
        instance_weight: weight of the loss on instances beside the loss on bags, which has 1.
    """

    def __init__(
        self,
        input_dim: int,
        num_outputs: int,
        width: int = 128,
        attention_width: int = 64,
        dropout: float = 0.25,
        samples: int = 8,
        instance_weight: float = 0.43,  # 0.3 to 0.7, as in the release
    ) -> None:
        super().__init__(input_dim, num_outputs, width, attention_width, dropout, gated=True)
        self.samples = samples
        self.instance_weight = instance_weight
        self.instance_classifiers = nn.Linear(width, 2 * num_outputs)  # out and in, for each class

    def instance_loss(self, output: HeadOutput, mask: Tensor, labels: Tensor) -> Tensor:
        """See ``Head``."""
        count = min(self.samples, mask.shape[1])
        attention = output.attention.detach()
        most, top = attention.masked_fill(~mask, -1).topk(count, dim=1)
        _, bottom = attention.masked_fill(~mask, 2).topk(count, dim=1, largest=False)
        top_margin = self._margin(output.instances, top)  # (B, K, C): in less out
        bottom_margin = self._margin(output.instances, bottom)

        own = nn.functional.one_hot(labels, top_margin.shape[2]).to(top_margin.dtype)  # (B, C)
        valid = (most >= 0).to(top_margin.dtype)  # bags with fewer instances than samples; the same at both ends
        # The smooth top-1 SVM of the release at temperature and margin 1 is, for two classes, a softplus. (torchmil's
        # broadcasts each instance against all the others' labels.)
        inside = (softplus(1 - top_margin) + softplus(1 + bottom_margin)) / 2
        outside = softplus(1 + top_margin)
        each = (inside * own[:, None] + outside * (1 - own)[:, None]).sum(dim=2)
        return self.instance_weight * ((each * valid).sum(dim=1) / valid.sum(dim=1)).mean()

    def _margin(self, instances: Tensor, rows: Tensor) -> Tensor:
        """How far each class's classifier holds the instances in those rows for its own, (B, K, C)."""
        chosen = torch.gather(instances, 1, rows[..., None].expand(-1, -1, instances.shape[2]))
        outside, inside = self.instance_classifiers(chosen).unflatten(-1, (-1, 2)).unbind(dim=-1)
        return inside - outside

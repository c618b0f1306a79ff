"""Mean and max pooling: the baselines that every table of attention heads needs."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import one_hot
from torchmil.nn import MaxPool

from mil.heads.base import Embedding, Head, HeadOutput, masked_mean, register, uniform


@register("mean")
class MeanHead(Head):
    """The mean of the embedded instances; its attention is equal for all.

    Args:
        input_dim: length D of an instance.
        num_outputs: number C of logits.
        width: length of an embedded instance.
        dropout: on embedded instances.
    """

    def __init__(self, input_dim: int, num_outputs: int, width: int = 128, dropout: float = 0.25) -> None:
        super().__init__()
        self.vector_width = width
        self.embed = Embedding(input_dim, width, dropout)
        self.classifier = nn.Linear(width, num_outputs)

    def forward(self, features: Tensor, mask: Tensor) -> HeadOutput:
        """See ``Head``."""
        instances = self.embed(features)
        vector = masked_mean(instances, mask)
        return HeadOutput(self.classifier(vector), uniform(mask, vector.dtype), vector, instances)


@register("max")
class MaxHead(Head):
    """The largest value of each embedded feature; attention is the share of features that an instance decides.

    Args:
        input_dim: length D of an instance.
        num_outputs: number C of logits.
        width: length of an embedded instance.
        dropout: on embedded instances.
    """

    def __init__(self, input_dim: int, num_outputs: int, width: int = 128, dropout: float = 0.25) -> None:
        super().__init__()
        self.vector_width = width
        self.embed = Embedding(input_dim, width, dropout)
        self.pool = MaxPool()
        self.classifier = nn.Linear(width, num_outputs)

    def forward(self, features: Tensor, mask: Tensor) -> HeadOutput:
        """See ``Head``."""
        instances = self.embed(features)
        vector = self.pool(instances, mask)
        winners = instances.detach().masked_fill(~mask[..., None], float("-inf")).argmax(dim=1)  # (B, W)
        share = one_hot(winners, instances.shape[1]).to(vector.dtype).mean(dim=1)
        return HeadOutput(self.classifier(vector), share, vector, instances)

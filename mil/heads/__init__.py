"""MIL heads: torchmil's models behind one interface, ``(B, N, D)`` and a mask to logits and attention.

    head = build_head("abmil-gated", input_dim=960, num_outputs=2)
    output = head(features, mask)      # output.logits (B, 2), output.attention (B, N)

docs/mil-heads.md lists them with their options.
"""

from mil.heads import attention, dsmil, dtfd, pooling, transformers  # noqa: F401 (each registers its heads)
from mil.heads.base import Head, HeadOutput, build_head, head_names
from mil.heads.network import FUSIONS, Network, NetworkOutput

__all__ = ["FUSIONS", "Head", "HeadOutput", "Network", "NetworkOutput", "build_head", "head_names"]

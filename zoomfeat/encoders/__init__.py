"""Patch encoders behind one registry; nothing else in the system knows which one runs."""

from zoomfeat.encoders.base import PatchEncoder
from zoomfeat.encoders.registry import encoder_names, encoder_summary, load_encoder, register

__all__ = ["PatchEncoder", "encoder_names", "encoder_summary", "load_encoder", "register"]

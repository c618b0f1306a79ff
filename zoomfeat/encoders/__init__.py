"""Patch encoders behind one registry; nothing else in the system knows which one runs."""

from zoomfeat.encoders.base import PatchEncoder
from zoomfeat.encoders.info import EncoderInfo
from zoomfeat.encoders.registry import encoder_info, encoder_names, encoder_options, load_encoder, register

__all__ = [
    "EncoderInfo",
    "PatchEncoder",
    "encoder_info",
    "encoder_names",
    "encoder_options",
    "load_encoder",
    "register",
]

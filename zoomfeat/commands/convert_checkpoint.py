"""``zoomfeat convert-checkpoint``: a released checkpoint to diffusers' layout."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path

from rich.console import Console

from zoomfeat.conf.schema import ConvertCheckpointConfig
from zoomfeat.errors import ConfigurationError
from zoomfeat.models.zoomldm import PARTS, ZoomLDM


def run(config: ConvertCheckpointConfig) -> int:
    """Writes the folder whole or not at all."""
    out = Path(config.out)
    if out.exists():
        raise ConfigurationError("exists already", path=out, cure="Choose another out=")
    console = Console()
    with console.status(f"reading {config.weights}"):
        bundle = ZoomLDM.from_checkpoint(config.weights, config.config, ema=config.ema)
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}.tmp")
    try:
        with console.status(f"writing {out}"):
            bundle.save_pretrained(temporary)
            temporary.rename(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for part in PARTS:
        console.print(f"{part}: {sum(p.numel() for p in getattr(bundle, part).parameters()):,} parameters")
    console.print(f"weights hash {bundle.weights_hash()}", soft_wrap=True)
    console.print(f"Use it as encoder=zoomldm-brca encoder.weights={out}", soft_wrap=True, highlight=False)
    return 0

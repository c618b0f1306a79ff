"""``zoomfeat fetch``: an encoder's weights into the hub cache, before a cluster without a network needs them."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import constants
from rich.console import Console

from zoomfeat.conf.schema import FetchConfig
from zoomfeat.encoders import encoder_info
from zoomfeat.encoders.pretrained import weights_file
from zoomfeat.encoders.zoomldm import RELEASED, released_checkpoint


def run(config: FetchConfig) -> int:
    """Fetches what is missing, and says where it lies and how a machine without a network uses it."""
    info = encoder_info(config.model)
    console = Console()
    if info.hub is None:
        console.print(f"{info.name} needs no download: it comes with zoomfeat.", highlight=False)
        return 0
    with console.status(f"fetching {info.name} from {info.hub}"):
        path = released_checkpoint(RELEASED[info.name]) if info.name in RELEASED else weights_file(info, None)
    size = path.stat().st_size / 1e6
    console.print(f"{info.name}: {info.file} of {info.hub}, revision {info.revision}, {size:.1f} MB", highlight=False)
    console.print(str(path), soft_wrap=True, highlight=False)
    console.print(
        f"Elsewhere: copy {Path(constants.HF_HUB_CACHE)} there, set HF_HUB_CACHE to it and HF_HUB_OFFLINE=1, "
        f"and use encoder={info.name}",
        soft_wrap=True,
        highlight=False,
    )
    return 0

"""``zoomfeat train-ldm``: denoiser and Summarizer, trained jointly."""

from __future__ import annotations

from rich.console import Console

from generation.data import TrainingSet
from generation.initial import initial_model
from generation.loop import check_config
from generation.train import train_ldm
from zoomfeat.conf.schema import TrainLDMConfig
from zoomfeat.errors import CheckpointMismatchError
from zoomfeat.models.weights import hash_weights
from zoomfeat.models.zoomldm import ZoomLDM


def run(config: TrainLDMConfig) -> int:
    """Trains, or goes on from the newest checkpoint of ``out``."""
    check_config(config)  # before anything is loaded
    console = Console()
    data = TrainingSet.open(config.data)
    bundle, fresh = initial_model(config, data.embedding_dim, len(data.ladder.steps))
    _check_first_stage(data, bundle, config)
    if fresh:
        console.print(f"fresh, since {config.init_unet} has no weights that fit: {', '.join(fresh)}", soft_wrap=True)
    latest = train_ldm(config, data, bundle, console)
    console.print(f"trained: {latest / 'model'} is a ZoomLDM folder (encoder.weights, init)", soft_wrap=True)
    return 0


def _check_first_stage(data: TrainingSet, bundle: ZoomLDM, config: TrainLDMConfig) -> None:
    """Latents mean nothing to another first stage than the one that made them, and nothing else would show it."""
    made_by = data.configuration.get("first_stage")
    if made_by is not None and made_by != hash_weights({"vae": bundle.vae}):
        raise CheckpointMismatchError(
            f"another first stage than that of the latents in {config.data} (weights hash {made_by[:12]})",
            path=config.init or config.first_stage,
            cure="Give the one that `zoomfeat prepare` was given, or prepare the data again",
        )

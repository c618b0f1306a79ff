"""``zoomfeat train-first-stage``: a VQ autoencoder, fresh or fine-tuned."""

from __future__ import annotations

from rich.console import Console

from generation.data import TrainingSet
from generation.first_stage import train_first_stage
from generation.initial import initial_first_stage
from zoomfeat.conf.schema import TrainFirstStageConfig


def run(config: TrainFirstStageConfig) -> int:
    """Trains, or goes on from the newest checkpoint of ``out``."""
    console = Console()
    data = TrainingSet.open(config.data)
    vae = initial_first_stage(config.size, config.init, config.seed)
    latest = train_first_stage(config, data, vae, console)
    console.print(f"trained: first_stage={latest / 'model'}", soft_wrap=True, highlight=False)
    return 0

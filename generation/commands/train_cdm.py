"""``zoomfeat train-cdm``: the conditioning model that draws Summarizer tokens from a magnification."""

from __future__ import annotations

from rich.console import Console

from generation.data import TrainingSet
from generation.loop import check_config
from generation.train_cdm import initial_cdm, train_cdm
from zoomfeat.conf.schema import TrainCDMConfig
from zoomfeat.models.zoomldm import ZoomLDM


def run(config: TrainCDMConfig) -> int:
    """Trains, or goes on from the newest checkpoint of ``out``."""
    check_config(config)
    console = Console()
    data = TrainingSet.open(config.data)
    with console.status(f"loading the Summarizer of {config.model}"):
        summarizer = ZoomLDM.load(config.model).summarizer
    model = initial_cdm(config, summarizer, data.embedding_dim)
    latest = train_cdm(config, data, summarizer, model, console)
    console.print(f"trained: {latest / 'model'} is a folder for ConditioningDiT.load", soft_wrap=True, highlight=False)
    return 0

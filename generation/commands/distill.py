"""``zoomfeat distill``: a small network in place of a ZoomLDM's first stage, or of all of it."""

from __future__ import annotations

from dataclasses import asdict

from rich.console import Console

from generation.data import TrainingSet
from generation.distill import distill
from generation.initial_distilled import check_keys, check_teacher, initial_network
from generation.loop import check_config
from zoomfeat.conf.schema import DistillConfig
from zoomfeat.encoders import load_encoder


def run(config: DistillConfig) -> int:
    """Teaches, or goes on from the newest checkpoint of ``out``."""
    check_config(config)  # before anything is loaded
    check_keys(config)
    console = Console()
    data = TrainingSet.open(config.data)
    options = {key: value for key, value in asdict(config.encoder).items() if key != "name"}
    with console.status(f"loading {config.encoder.name}"):
        loaded = load_encoder(config.encoder.name, device=config.device, **options)
    teacher = check_teacher(loaded, data, config.data)
    network = initial_network(config, teacher)
    folder = distill(config, data, teacher, network, console) / "model"
    console.print(network.record.describe_fidelity(), soft_wrap=True, highlight=False)
    use = (
        f"encoder={config.encoder.name} encoder.distilled_encoder={folder}"
        if config.mode == "encoder"
        else f"encoder=zoomldm-student encoder.weights={folder}"
    )
    console.print(f"taught: {use}", soft_wrap=True, highlight=False)
    return 0

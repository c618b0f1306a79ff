"""What ZoomLDM's features cost at full size: parameters, FLOPs, seconds a patch, and what stopping early saves.

Weights are random: cost does not depend on them. Run with ``make bench`` or ``python -m benchmarks.speed.network``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before PyTorch is imported

import torch
from rich.console import Console
from rich.table import Table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from zoomfeat.conf.schema import ZoomLDMConfig
from zoomfeat.encoders.zoomldm import untrained_tiny
from zoomfeat.files import make_folder, replacing
from zoomfeat.models.architecture import build_first_stage, build_scheduler, build_unet
from zoomfeat.models.denoiser import activations
from zoomfeat.models.summarizer import Summarizer
from zoomfeat.models.zoomldm import PARTS, ZoomLDM

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Cost:
    """The cost of one part for one 256 px patch.

    Attributes:
        part: what was run.
        gflop: floating-point operations, counted by PyTorch, in 1e9.
        seconds: median of the repeats.
    """

    part: str
    gflop: float
    seconds: float


def full_size() -> ZoomLDM:
    """The released architecture with random weights."""
    return ZoomLDM(build_first_stage(), build_unet(), Summarizer(), build_scheduler())


@torch.inference_mode()
def measure(bundle: ZoomLDM, repeats: int) -> list[Cost]:
    """Costs of the parts, timed in turns so that a slow minute of the machine hits all of them."""
    side = bundle.unet.config.sample_size or 64
    pixels = torch.rand(1, 3, 256, 256) * 2 - 1
    latents = torch.randn(1, bundle.unet.config.in_channels, side, side)
    tokens = bundle.summarizer.null_context(1)
    taps = ZoomLDMConfig(name="full size").taps
    parts: dict[str, Callable[[], object]] = {
        "first stage, encode": lambda: bundle.encode(pixels),
        "denoiser, whole": lambda: bundle.unet(latents, 100, tokens),
        f"denoiser, up to {taps[-1]} (default)": lambda: activations(bundle.unet, latents, 100, tokens, taps),
        "denoiser, up to mid": lambda: activations(bundle.unet, latents, 100, tokens, ["mid"]),
    }
    times: dict[str, list[float]] = {part: [] for part in parts}
    for _ in range(repeats + 1):
        for part, call in parts.items():
            start = time.perf_counter()
            call()
            times[part].append(time.perf_counter() - start)
    return [Cost(part, _gflop(call), statistics.median(times[part][1:])) for part, call in parts.items()]


def _gflop(call: Callable[[], object]) -> float:
    # PyTorch does not count its fused attention on a CPU; written out as two products, it does.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e9


def main() -> None:
    """Prints the table and writes results/network.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the tiny model, to see that the benchmark runs")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each part, after one that warms up")
    options = parser.parse_args()
    bundle = untrained_tiny() if options.quick else full_size()
    bundle.set_progress_bar_config(disable=True)
    parameters = {part: sum(p.numel() for p in getattr(bundle, part).parameters()) for part in PARTS}
    encode, whole, default, mid = measure(bundle, options.repeats)
    ratios = {
        "denoiser_default_tap_vs_whole": whole.seconds / default.seconds,
        "denoiser_mid_vs_whole": whole.seconds / mid.seconds,
        "patch_default_tap_vs_whole": (encode.seconds + whole.seconds) / (encode.seconds + default.seconds),
    }
    table = Table(
        title=f"{'tiny' if options.quick else 'full'} size, one 256 px patch, {torch.get_num_threads()} threads"
    )
    for heading in ("part", "GFLOP", "seconds", "GFLOP/s"):
        table.add_column(heading, justify="left" if heading == "part" else "right")
    for cost in (encode, whole, default, mid):
        table.add_row(cost.part, f"{cost.gflop:.1f}", f"{cost.seconds:.3f}", f"{cost.gflop / cost.seconds:.0f}")
    console = Console()
    console.print(table)
    console.print("parameters: " + ", ".join(f"{part} {count / 1e6:.1f} M" for part, count in parameters.items()))
    console.print(", ".join(f"{name} {ratio:.2f}x" for name, ratio in ratios.items()))
    record = {
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__},
        "size": "tiny" if options.quick else "full",
        "parameters": parameters,
        "costs": [asdict(cost) for cost in (encode, whole, default, mid)],
        "ratios": ratios,
    }
    with replacing(make_folder(RESULTS) / "network.json") as path:
        path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

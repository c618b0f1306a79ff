"""What ZoomLDM's features cost at full size: parameters, FLOPs, seconds a patch, and what stopping early saves.

Weights are random: cost does not depend on them. The peak of the machine is measured in the same run: its best rate on
a large matrix product and on a convolution of the first stage. Run with ``python -m benchmarks.speed.network``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before PyTorch is imported

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed import report
from zoomfeat.conf.schema import ZoomLDMConfig
from zoomfeat.encoders.zoomldm import untrained_tiny
from zoomfeat.models.architecture import build_first_stage, build_scheduler, build_unet
from zoomfeat.models.denoiser import activations, without_condition
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

    @property
    def rate(self) -> float:
        """GFLOP a second."""
        return self.gflop / self.seconds


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
    lean = without_condition(bundle.unet)
    parts: dict[str, Callable[[], object]] = {
        "first stage, encode": lambda: bundle.encode(pixels),
        "denoiser, whole": lambda: bundle.unet(latents, 100, tokens),
        f"denoiser, up to {taps[-1]} (default)": lambda: activations(bundle.unet, latents, 100, tokens, taps),
        "the same without cross-attention": lambda: activations(lean, latents, 100, tokens, taps),
        "denoiser, up to mid": lambda: activations(bundle.unet, latents, 100, tokens, ["mid"]),
    }
    return [
        Cost(part, gflop(call), seconds)
        for (part, call), seconds in zip(parts.items(), timed(parts, repeats), strict=True)
    ]


def peaks(repeats: int) -> list[Cost]:
    """The best that this machine does: a matrix product, and convolutions as the first stage has them."""
    a, b = torch.rand(2, 2048, 2048)
    calls: dict[str, Callable[[], object]] = {"matrix product, 2048 x 2048": lambda: a @ b}
    for channels, side in ((128, 256), (256, 128), (512, 64)):
        image, kernel = torch.rand(1, channels, side, side), torch.rand(channels, channels, 3, 3)
        calls[f"convolution, {channels} channels, {side} px"] = partial(functional.conv2d, image, kernel, padding=1)
    with torch.inference_mode():
        return [
            Cost(name, gflop(call), seconds)
            for (name, call), seconds in zip(calls.items(), timed(calls, repeats), strict=True)
        ]


def timed(calls: Mapping[str, Callable[[], object]], repeats: int) -> list[float]:
    """Median seconds of each call, in turns, after one round that warms up."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats + 1):
        for found, call in zip(times, calls.values(), strict=True):
            start = time.perf_counter()
            call()
            found.append(time.perf_counter() - start)
    return [statistics.median(found[1:]) for found in times]


def gflop(call: Callable[[], object]) -> float:
    """Operations of a call in 1e9, a multiplication and an addition counting as two."""
    # PyTorch does not count its fused attention on a CPU; written out as two products, it does.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e9


def main() -> None:
    """Prints the table and writes results/network.json and network.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two timed runs of each part")
    parser.add_argument("--tiny", action="store_true", help="the tiny model, to see that the benchmark runs")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each part, after one that warms up")
    options = parser.parse_args()
    if options.quick:
        options.repeats = 2
    machine = report.conditions()
    bundle = untrained_tiny() if options.tiny else full_size()
    bundle.set_progress_bar_config(disable=True)
    parameters = {part: sum(p.numel() for p in getattr(bundle, part).parameters()) for part in PARTS}
    best = peaks(options.repeats)
    peak = max(cost.rate for cost in best[1:])
    costs = measure(bundle, options.repeats)
    encode, whole, default, lean, mid = costs
    ratios = {
        "denoiser_default_tap_vs_whole": whole.seconds / default.seconds,
        "denoiser_without_cross_attention_vs_with": default.seconds / lean.seconds,
        "denoiser_mid_vs_whole": whole.seconds / mid.seconds,
        "patch_default_tap_vs_whole": (encode.seconds + whole.seconds) / (encode.seconds + lean.seconds),
        "patch_share_of_convolution_peak": (encode.gflop + lean.gflop) / (encode.seconds + lean.seconds) / peak,
    }
    headings = ("part", "GFLOP", "seconds", "GFLOP/s", "share of the convolution peak")
    rows = [
        (cost.part, f"{cost.gflop:.1f}", f"{cost.seconds:.3f}", f"{cost.rate:.0f}", f"{cost.rate / peak:.2f}")
        for cost in (*best, *costs)
    ]
    lead = (
        f"One 256 px patch, float32, random weights, {torch.get_num_threads()} threads, median of {options.repeats} "
        f"runs in turns; {report.described(machine)}.\n\n"
    )
    per_patch = encode.gflop + lean.gflop
    closing = "\nParameters: " + ", ".join(f"{part} {count / 1e6:.1f} M" for part, count in parameters.items())
    closing += f". A patch at the default tap: {per_patch:.0f} GFLOP, {encode.seconds + lean.seconds:.2f} s.\n"
    report.show("network", headings, rows)
    record = {
        "machine": machine,
        "size": "tiny" if options.tiny else "full",
        "threads": torch.get_num_threads(),
        "parameters": parameters,
        "peaks": [asdict(cost) for cost in best],
        "costs": [asdict(cost) for cost in costs],
        "patch": [encode.part, lean.part],
        "gflop_per_patch": per_patch,
        "ratios": ratios,
    }
    report.save(RESULTS, "network", record, lead + report.markdown(headings, rows) + closing)


if __name__ == "__main__":
    main()

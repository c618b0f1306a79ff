"""What ZoomLDM's features cost at full size: parameters, FLOPs, seconds a patch, and what stopping early saves.

Weights are random: cost does not depend on them. The peak of the machine is measured in the same run: its best rate on
a large matrix product and on a convolution of the first stage. Run with ``python -m benchmarks.speed.network``.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before PyTorch is imported

import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed import report
from generation.initial_distilled import ENCODER_SIZES
from zoomfeat.conf.schema import ZoomLDMConfig
from zoomfeat.encoders.zoomldm import untrained_tiny
from zoomfeat.models import onednn
from zoomfeat.models.architecture import build_first_stage, build_scheduler, build_unet
from zoomfeat.models.denoiser import activations, without_condition
from zoomfeat.models.distilled import LatentEncoder
from zoomfeat.models.summarizer import Summarizer
from zoomfeat.models.zoomldm import PARTS, ZoomLDM

RESULTS = Path(__file__).parent / "results"

Clock = Callable[[], float]
"""Gives seconds."""


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


FIRST_STAGE, WHOLE, LEAN = "first stage, encode", "denoiser, whole", "the same without cross-attention"
FAST_FIRST_STAGE, FAST_LEAN = f"{FIRST_STAGE}, by oneDNN", "denoiser, default without cross-attention, by oneDNN"
DISTILLED = "distilled encoder"


@torch.inference_mode()
def measure(bundle: ZoomLDM, repeats: int, clock: Clock = time.perf_counter) -> list[Cost]:
    """Costs of the parts, timed in turns so that a slow minute of the machine hits all of them.

    Args:
        bundle: the model, as `ZoomLDMEncoder` lays it out in memory.
        repeats: timed runs of each part.
        clock: gives seconds.
    """
    pixels, latents, tokens = _inputs(bundle)
    taps = ZoomLDMConfig(name="full size").taps
    lean = without_condition(bundle.unet)
    first_stage, denoiser = onednn.accelerated(bundle.vae), onednn.accelerated(lean)
    factor = pixels.shape[-1] // latents.shape[-1]
    size = "tiny" if factor == 8 else "full"
    distilled = LatentEncoder(latents.shape[1], factor, **ENCODER_SIZES[size]).eval().requires_grad_(False)
    distilled = onednn.accelerated(distilled)
    parts: dict[str, Callable[[], object]] = {
        FIRST_STAGE: lambda: bundle.encode(pixels),
        WHOLE: lambda: bundle.unet(latents, 100, tokens),
        f"denoiser, up to {taps[-1]} (default)": lambda: activations(bundle.unet, latents, 100, tokens, taps),
        LEAN: lambda: activations(lean, latents, 100, tokens, taps),
        "denoiser, up to mid": lambda: activations(bundle.unet, latents, 100, tokens, ["mid"]),
        FAST_FIRST_STAGE: lambda: first_stage.encode(pixels),
        FAST_LEAN: lambda: activations(denoiser, latents, 100, tokens, taps),
        DISTILLED: lambda: distilled(pixels),
    }
    return [
        Cost(part, gflop(call), seconds)
        for (part, call), seconds in zip(parts.items(), timed(parts, repeats, clock), strict=True)
    ]


def _inputs(bundle: ZoomLDM) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pixels, noisy latents and the null condition of a patch."""
    channels_last = torch.channels_last
    side = bundle.unet.config.sample_size or 64
    pixels = (torch.rand(1, 3, 256, 256) * 2 - 1).contiguous(memory_format=channels_last)
    latents = torch.randn(1, bundle.unet.config.in_channels, side, side).contiguous(memory_format=channels_last)
    return pixels, latents, bundle.summarizer.null_context(1)


@torch.inference_mode()
def convolutions(bundle: ZoomLDM, repeats: int, clock: Clock = time.perf_counter) -> Cost:
    """All convolutions of a patch, each by itself on its own shape: what the network's own layers allow.

    The rate of one favourable convolution is a bound that its other layers cannot reach.
    """
    pixels, latents, tokens = _inputs(bundle)
    first_stage = onednn.accelerated(bundle.vae)
    denoiser = onednn.accelerated(without_condition(bundle.unet))
    seen: list[tuple[nn.Module, torch.Tensor]] = []

    def note(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append((layer, inputs[0]))

    hooks = [
        layer.register_forward_pre_hook(note)
        for network in (first_stage, denoiser)
        for layer in network.modules()
        if isinstance(layer, onednn.Convolution)
    ]
    first_stage.encode(pixels)
    activations(denoiser, latents, 100, tokens, ZoomLDMConfig(name="full size").taps)
    for hook in hooks:
        hook.remove()
    calls: dict[str, Callable[[], object]] = {str(i): partial(layer, x) for i, (layer, x) in enumerate(seen)}
    seconds = sum(timed(calls, repeats, clock))
    return Cost("all convolutions of a patch, one by one", sum(gflop(call) for call in calls.values()), seconds)


def peaks(repeats: int, clock: Clock = time.perf_counter) -> list[Cost]:
    """The best that this machine does: a matrix product, and convolutions as the first stage has them."""
    a, b = torch.rand(2, 2048, 2048)
    calls: dict[str, Callable[[], object]] = {"matrix product, 2048 x 2048": lambda: a @ b}
    for channels, side in ((128, 256), (256, 128), (512, 64)):
        image, kernel = torch.rand(1, channels, side, side), torch.rand(channels, channels, 3, 3)
        calls[f"convolution, {channels} channels, {side} px"] = partial(functional.conv2d, image, kernel, padding=1)
    with torch.inference_mode():
        return [
            Cost(name, gflop(call), seconds)
            for (name, call), seconds in zip(calls.items(), timed(calls, repeats, clock), strict=True)
        ]


def timed(calls: Mapping[str, Callable[[], object]], repeats: int, clock: Clock = time.perf_counter) -> list[float]:
    """Median seconds of each call, in turns, after one round that warms up."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats + 1):
        for found, call in zip(times, calls.values(), strict=True):
            start = clock()
            call()
            found.append(clock() - start)
    return [statistics.median(found[1:]) for found in times]


def _counted() -> dict[Any, Any]:
    """Operations of the operators of :mod:`zoomfeat.models.onednn`, which PyTorch does not count."""

    def linear(x: Sequence[int], weight: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
        return 2 * math.prod(out_shape) * x[-1]

    def convolution(x: Sequence[int], weight: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
        return 2 * math.prod(out_shape) * math.prod(weight[1:])

    if not onednn.available():
        return {}
    operators = torch.ops.mkldnn
    return {operators._linear_pointwise: linear, operators._convolution_pointwise: convolution}


def gflop(call: Callable[[], object]) -> float:
    """Operations of a call in 1e9, a multiplication and an addition counting as two."""
    # PyTorch does not count its fused attention on a CPU; written out as two products, it does.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=_counted()) as counter:
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
    for part in (bundle.vae, bundle.unet, bundle.summarizer):  # as the encoder has them
        part.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    clock, unit = report.clock(machine)
    onednn.keep_memory()
    best = peaks(options.repeats, clock)
    peak = max(cost.rate for cost in best[1:])
    costs = measure(bundle, options.repeats, clock)
    own = convolutions(bundle, options.repeats, clock)
    by_part = {cost.part: cost for cost in costs}
    encode, whole, default, lean, mid = costs[:5]
    fast_encode, fast_lean, distilled = (by_part[part] for part in (FAST_FIRST_STAGE, FAST_LEAN, DISTILLED))
    per_patch, seconds = fast_encode.gflop + fast_lean.gflop, fast_encode.seconds + fast_lean.seconds
    ratios = {
        "denoiser_default_tap_vs_whole": whole.seconds / default.seconds,
        "denoiser_without_cross_attention_vs_with": default.seconds / lean.seconds,
        "denoiser_mid_vs_whole": whole.seconds / mid.seconds,
        "patch_default_tap_vs_whole": (encode.seconds + whole.seconds) / (encode.seconds + lean.seconds),
        "patch_by_onednn_vs_plain": (encode.seconds + lean.seconds) / seconds,
        "patch_share_of_convolution_peak": per_patch / seconds / peak,
        "patch_share_of_its_own_convolutions_rate": per_patch / seconds / own.rate,
        "patch_with_distilled_encoder_vs_plain": (encode.seconds + whole.seconds)
        / (distilled.seconds + fast_lean.seconds),
        "patch_with_distilled_encoder_vs_exact": seconds / (distilled.seconds + fast_lean.seconds),
    }
    headings = ("part", "GFLOP", "seconds", "GFLOP/s", "share of the convolution peak")
    rows = [
        (cost.part, f"{cost.gflop:.1f}", f"{cost.seconds:.3f}", f"{cost.rate:.0f}", f"{cost.rate / peak:.2f}")
        for cost in (*best, *costs, own)
    ]
    lead = (
        f"One 256 px patch, float32, random weights, {torch.get_num_threads()} threads, {unit}, median of "
        f"{options.repeats} runs in turns; {report.described(machine)}.\n\n"
    )
    closing = "\nParameters: " + ", ".join(f"{part} {count / 1e6:.1f} M" for part, count in parameters.items())
    closing += (
        f". A patch at the default tap: {per_patch:.0f} GFLOP, {seconds:.2f} s, of which the convolutions one by "
    )
    closing += f"one take {own.seconds:.2f} s at {own.rate:.0f} GFLOP/s.\n"
    report.show("network", headings, rows)
    record = {
        "machine": machine,
        "size": "tiny" if options.tiny else "full",
        "threads": torch.get_num_threads(),
        "parameters": parameters,
        "peaks": [asdict(cost) for cost in best],
        "costs": [asdict(cost) for cost in (*costs, own)],
        "patch": [fast_encode.part, fast_lean.part],
        "gflop_per_patch": per_patch,
        "ratios": ratios,
    }
    report.save(RESULTS, "network", record, lead + report.markdown(headings, rows) + closing)


if __name__ == "__main__":
    main()

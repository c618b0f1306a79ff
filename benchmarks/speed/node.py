"""A node and a cohort on paper, from what was measured: 16 cores and a GPU, 1,000 slides, what holds them up.

Nothing here is measured but the stage times that go in (`bench.json`); the rest is arithmetic with assumptions that
stand in `Node`. A GPU's rate is taken as a share of its data sheet's peak; which share the network reaches was not
measured, so two are shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.speed import report


@dataclass(frozen=True)
class Node:
    """The assumptions.

    Attributes:
        cores: that read slides.
        peak_tflops: of the GPU, dense bfloat16.
        slides: of the cohort.
        patches: 20x patches of a slide.
        coarse: 5x patches for each of them.
        bytes_per_patch: of a slide file, for each 20x patch: a scan of 1 GB has about 12,000.
        disk: bytes a second that the storage delivers.
    """

    cores: int = 16
    peak_tflops: float = 989
    slides: int = 1000
    patches: int = 12_000
    coarse: float = 1 / 13
    bytes_per_patch: float = 85_000
    disk: float = 1e9


SHARES = (0.3, 0.5)
GPUS = {"H100": 989.0, "A100": 312.0}
"""Peaks in TFLOP/s, dense bfloat16, of the SXM modules (NVIDIA's data sheets)."""


def stages(record: dict[str, Any], node: Node, share: float) -> dict[str, float]:
    """Hours of the whole cohort by stage, were it alone: reading exactly, by DCT, the disk, the network.

    Args:
        record: of `bench.json`, with the parts ``reading`` and ``network``.
        node: the assumptions.
        share: of the GPU's peak that the network reaches.
    """
    reading = record["parts"]["reading"]
    rates = {run["way"]: run["rate"] for run in reading["runs"] if run["case"] == reading["runs"][0]["case"]}
    patches = node.slides * node.patches
    gflop = record["parts"]["network"]["gflop_per_patch"] * patches * (1 + node.coarse)
    hours = {
        "reading, exact": patches / rates["zoomfeat, exact"] / node.cores,
        "reading, DCT": patches / rates["zoomfeat, DCT"] / node.cores,
        "reading, OpenSlide patch by patch": patches / rates["OpenSlide, patch by patch"] / node.cores,
        "storage": patches * node.bytes_per_patch / node.disk,
        "network": gflop / (node.peak_tflops * 1e3 * share),
    }
    return {stage: seconds / 3600 for stage, seconds in hours.items()}


def page(record: dict[str, Any]) -> str:
    """The table, and what it says."""
    node, network = Node(), record["parts"]["network"]
    columns = {f"{gpu}, {share:.0%} of its peak": (gpu, share) for gpu in GPUS for share in SHARES}
    found = {name: _on(record, gpu, share) for name, (gpu, share) in columns.items()}
    rows = [(stage, *(f"{hours[stage]:.2f}" for hours in found.values())) for stage in next(iter(found.values()))]
    best, worst = (choose(found.values(), key=lambda hours: hours["network"]) for choose in (min, max))
    bound = "the network" if best["network"] > best["reading, exact"] else "reading"
    gpus = best["network"] / best["reading, exact"]
    here = sum(cost["seconds"] for cost in network["costs"] if cost["part"] in network["patch"])
    years = here * node.slides * node.patches * (1 + node.coarse) / 3600 / 24 / 365
    lead = (
        f"{node.slides:,} slides of {node.patches:,} 20x patches and the 5x patches above them; {node.cores} cores "
        f"read {node.cores} times as fast as one does here; storage gives {node.disk / 1e9:g} GB/s; bfloat16 on the "
        "GPU at a share of its data sheet's peak. Hours of each stage alone; they overlap, so the longest one that is "
        "used is the run.\n\n"
    )
    buy = "GPUs are what to buy, not cores" if gpus > 1 else "cores are what to buy, not GPUs"
    closing = (
        f"\nWith one GPU {bound} holds the cohort up: {best['network']:.1f} to {worst['network']:.1f} h of network "
        f"beside {best['reading, exact']:.1f} h of exact reading. {node.cores} cores keep {gpus:.1f} GPUs of the "
        f"fastest column busy: {buy}. Read patch by patch, the same cores would take "
        f"{best['reading, OpenSlide patch by patch']:.1f} h. Without a GPU, {network['threads']} threads like those "
        f"here would take {years:.1f} years.\n"
    )
    return lead + report.markdown(("stage", *columns), rows) + closing


def write(record: dict[str, Any], folder: Path) -> None:
    """Writes the page, where the parts that it needs were measured."""
    if {"reading", "network"} <= record["parts"].keys():
        hours = {f"{gpu}, {share}": _on(record, gpu, share) for gpu in GPUS for share in SHARES}
        report.save(folder, "node", hours, page(record))


def _on(record: dict[str, Any], gpu: str, share: float) -> dict[str, float]:
    return stages(record, Node(peak_tflops=GPUS[gpu]), share)

"""ZoomLDM's features end to end, against the plain way: ``python -m benchmarks.speed.extraction``.

The plain way reads every patch by itself through OpenSlide, each magnification in a pass of its own, and runs the
whole UNet of diffusers with a hook at the tap. zoomfeat's is that of ``zoomfeat extract``: one region for both
magnifications, read by threads while the network runs, and a denoiser that stops at the tap and has no
cross-attention. The same patches of the same synthetic slide, the same network with random weights, in turns.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before PyTorch is imported

import numpy as np
import openslide
import torch
from numpy.typing import NDArray

from benchmarks.speed import network, report
from benchmarks.speed.textured_slide import usual_texture, write_textured_slide
from zoomfeat.conf.schema import ZoomLDMConfig
from zoomfeat.encoders.zoomldm import ZoomLDMEncoder, untrained_tiny
from zoomfeat.encoding import encode_grid
from zoomfeat.magnification import PATCH_SIZE, parse
from zoomfeat.models.zoomldm import ZoomLDM
from zoomfeat.slides import Grid, Slide, find_tissue, make_grid, read_region, regions

RESULTS = Path(__file__).parent / "results"
PLAIN, OURS, HALF = "plain", "zoomfeat", "zoomfeat, bfloat16"
SIDE = 4096
WORKERS = 2


def few_patches(slide: Slide, count: int) -> Grid:
    """So many 20x patches of the slide, and the 5x patches that contain them."""
    grid = make_grid(slide, find_tissue(slide), parse(["20x", "5x"]))
    middle = np.abs(grid.scales[1].coords + grid.scales[1].size[0] / 2 - SIDE / 2).sum(1).argsort(kind="stable")
    rows = np.argsort(np.argsort(middle)[grid.parents["5x"]], kind="stable")[:count]
    rows = np.sort(rows)
    parents, own = np.unique(grid.parents["5x"][rows], return_inverse=True)
    chosen = (rows, parents)
    scales = tuple(
        replace(scale, coords=scale.coords[kept], tissue=scale.tissue[kept])
        for scale, kept in zip(grid.scales, chosen, strict=True)
    )
    return Grid(scales, {"5x": own.astype(np.int32)}, {})


@torch.inference_mode()
def plain(path: Path, grid: Grid, bundle: ZoomLDM, options: ZoomLDMConfig, noise: torch.Tensor) -> list[NDArray]:
    """Features of each scale, read and encoded patch by patch, the whole UNet every time."""
    seen: list[torch.Tensor] = []
    (tap,) = options.taps
    handle = bundle.unet.get_submodule(tap).register_forward_hook(lambda module, args, output: seen.append(output))
    step, tokens = torch.tensor([options.timestep]), bundle.summarizer.null_context(1)
    features = []
    with openslide.OpenSlide(path) as slide:
        for scale in grid.scales:
            level = slide.get_best_level_for_downsample(scale.size[0] / PATCH_SIZE * 1.01)
            size = tuple(round(side / slide.level_downsamples[level]) for side in scale.size)
            for corner in scale.coords.tolist():
                patch = slide.read_region(tuple(corner), level, size).convert("RGB").resize((PATCH_SIZE, PATCH_SIZE))
                pixels = torch.from_numpy(np.array(patch)).permute(2, 0, 1)[None].float() / 127.5 - 1
                bundle.unet(bundle.scheduler.add_noise(bundle.encode(pixels), noise, step), step, tokens)
            features.append(torch.cat(seen).mean((2, 3)).numpy())
            seen.clear()
    handle.remove()
    return features


def cosines(a: NDArray, b: NDArray) -> NDArray:
    """Of the rows of two arrays."""
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def measure(
    build: Callable[[], ZoomLDM], count: int, repeats: int, clock: network.Clock = time.perf_counter
) -> dict[str, float | int]:
    """All ways on one slide.

    Args:
        build: makes the model.
        count: of 20x patches.
        repeats: of each way, after a patch that warms up.
        clock: gives seconds.

    Returns:
        ``patches``, median seconds of each way, and how far bfloat16 features are from those of float32.
    """
    options = ZoomLDMConfig(name="full size")
    torch.manual_seed(0)
    bundle = build().to("cpu")
    for part in (bundle.vae, bundle.unet, bundle.summarizer):
        part.eval().requires_grad_(False)
    texture, _ = usual_texture()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.svs"
        write_textured_slide(path, texture, SIDE, 0.25)
        with Slide.open(path) as slide:
            grid = few_patches(slide, count)
            as_it_comes = copy.deepcopy(bundle)  # the encoder lays its own out in another way
            ours = ZoomLDMEncoder(bundle, options, "20x", "cpu")
            half = ZoomLDMEncoder(bundle, replace(options, precision="bfloat16"), "20x", "cpu")
            ways: dict[str, Callable[[], object]] = {
                PLAIN: lambda: plain(path, grid, as_it_comes, options, ours._noises[0]),
                OURS: lambda: encode_grid(slide, grid, [ours], 16, WORKERS, lambda done, total: None),
                HALF: lambda: encode_grid(slide, grid, [half], 16, WORKERS, lambda done, total: None),
            }
            times: dict[str, list[float]] = {way: [] for way in ways}
            patches = np.concatenate([part[2] for region in regions(grid)[:1] for part in read_region(slide, region)])
            exact, rough = ours(patches[:2]), half(patches[:2])
            for _ in range(repeats):
                for way, run in ways.items():
                    start = clock()
                    run()
                    times[way].append(clock() - start)
    found: dict[str, float | int] = {"patches": sum(len(scale.coords) for scale in grid.scales)}
    found |= {way: statistics.median(seconds) for way, seconds in times.items()}
    return found | {"bfloat16_cosine": float(cosines(exact, rough).min())}


def main() -> None:
    """Prints the table and writes results/extraction.json and extraction.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer patches")
    parser.add_argument("--tiny", action="store_true", help="the tiny model alone, to see that the benchmark runs")
    options = parser.parse_args()
    machine = report.conditions()
    clock, unit = report.clock(machine)
    count, repeats = (1 if options.quick else 2), 2
    sizes = {} if options.tiny else {"full": measure(network.full_size, count, repeats, clock)}
    sizes["tiny"] = measure(untrained_tiny, 16, repeats, clock)
    rows = [
        (size, way, f"{found['patches'] / found[way]:.3g}", f"{found[PLAIN] / found[way]:.2f}")
        for size, found in sizes.items()
        for way in (PLAIN, OURS, HALF)
    ]
    headings = ("network", "way", "patches/s", "x plain")
    lead = (
        f"20x and 5x patches counted together, {torch.get_num_threads()} threads, {unit}, random weights, the default "
        f"tap `up_blocks.0`, median of {repeats} runs in turns; {report.described(machine)}.\n\n"
    )
    closing = "\nFeatures in bfloat16 against float32, least cosine: "
    closing += ", ".join(f"{found['bfloat16_cosine']:.5f} ({size})" for size, found in sizes.items()) + ".\n"
    report.show("extraction", headings, rows)
    ratios = {f"extraction_vs_plain: {size}": found[PLAIN] / found[OURS] for size, found in sizes.items()}
    if "full" in sizes:
        ratios = {"extraction_vs_plain": ratios.pop("extraction_vs_plain: full")} | ratios
    record = {"machine": machine, "repeats": repeats, "sizes": sizes, "ratios": ratios}
    report.save(RESULTS, "extraction", record, lead + report.markdown(headings, rows) + closing)


if __name__ == "__main__":
    main()

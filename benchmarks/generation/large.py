"""Large images from the command line: ``python -m benchmarks.generation.large --guide 10x 5x 2.5x 1.25x``.

For each guide ``zoomfeat generate-large`` runs twice, side by side with one thread each: once through, and once killed
(SIGKILL) in the middle and started again; the two files must be identical. Reported are CPU time and peak memory of the
run without a kill, what OpenSlide says of its file, and the measure of seams. Without a slide, the conditioning model
draws the guide.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import openslide
from numpy.typing import NDArray
from rich.console import Console
from safetensors import SafetensorError, safe_open

from benchmarks.generation.regions import load
from benchmarks.generation.results import FOLDER, Results, facts
from generation.commands.generate_large import PREVIEW
from generation.joint_sampling import SEAM_STRIDE
from generation.sampling_progress import duration
from zoomfeat.files import make_folder, replacing
from zoomfeat.magnification import BRCA, PATCH_SIZE

_SETTINGS = ("steps", "pulls", "rate", "guidance", "clip", "seams", "seed")


def main() -> None:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path, nargs="?", help="whose region's embeddings are the condition")
    parser.add_argument("--x", type=int, default=0, help="left edge of the region, level-0 px")
    parser.add_argument("--y", type=int, default=0)
    parser.add_argument("--model", default="zoomldm-tiny")
    parser.add_argument("--guide", nargs="+", default=["10x", "5x", "2.5x", "1.25x"])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--pulls", type=int, default=1)
    parser.add_argument("--rate", type=float, default=0.5)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--clip", action="store_true", help="keep predicted latents within the box of all codes")
    parser.add_argument("--seams", type=int, default=300, help="timestep that the pass against seams starts from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the images; default: they are not kept")
    parser.add_argument("--out", type=Path, default=FOLDER / "large.json")
    options = parser.parse_args()
    pipe = load(options.model)
    words = [
        *(sys.executable, "-m", "zoomfeat.cli", "generate-large", f"model={options.model}", "device=cpu"),
        *(f"{name}={getattr(options, name)}" for name in _SETTINGS),
    ]
    condition = "drawn"
    if options.slide is not None:
        condition = f"{options.slide.name} x={options.x} y={options.y}"
        encoder = pipe.config.ssl_encoder
        words += [f"slide={options.slide}", f"x={options.x}", f"y={options.y}", "mpp=0.5", f"ssl_encoder={encoder}"]
    settings = facts(pipe, options.model) | {"condition": condition}
    settings |= {name: getattr(options, name) for name in _SETTINGS}
    results = Results.open(options.out, settings)
    for guide in options.guide:
        if not results.find(guide=guide):
            with Console(stderr=True).status(f"guide at {guide}"):
                results.add({"guide": guide} | measure([*words, f"guide={guide}"], options.steps, options.keep))
    show(results)


def measure(words: list[str], steps: int, keep: Path | None) -> dict[str, float | int | bool]:
    """Runs the command whole, and killed and resumed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        process = _start(words, folder / "whole")
        _kill_in_the_middle(words, folder / "killed", max(steps // 2, 1))
        resumed = _start(words, folder / "killed")
        _, status, usage = os.wait4(process.pid, 0)
        if status or resumed.wait():
            raise SystemExit("the command failed; run it alone to see why")
        (whole,) = (folder / "whole").glob("*.tiff")
        content = whole.read_bytes()
        identical = content == (folder / "killed" / whole.name).read_bytes()
        with openslide.OpenSlide(whole) as slide:
            width, height = slide.dimensions
            mpp = float(slide.properties["openslide.mpp-x"])
            image = np.asarray(slide.read_region((0, 0), 0, (width, height)).convert("RGB"))
        if keep is not None:
            for path in (whole, whole.with_name(PREVIEW)):
                with replacing(make_folder(keep) / path.name) as temporary:
                    temporary.write_bytes(path.read_bytes())
    return {
        "width": width,
        "height": height,
        "mpp": mpp,
        "cpu": usage.ru_utime + usage.ru_stime,
        "memory": usage.ru_maxrss / 1024,
        "seam_ratio": seam_ratio(image),
        "identical": identical,
    }


def _start(words: list[str], out: Path) -> subprocess.Popen[bytes]:
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return subprocess.Popen([*words, f"out={out}"], stdout=subprocess.DEVNULL, env=os.environ | threads)


def _kill_in_the_middle(words: list[str], out: Path, steps: int) -> None:
    """Runs the command and kills it, without a warning, soon after its state holds so many steps."""
    process = _start(words, out)
    while process.poll() is None:
        if any(_steps(path) >= steps for path in out.glob("*.state")):
            time.sleep(0.3)  # into the next step
            process.send_signal(signal.SIGKILL)
            process.wait()
        time.sleep(0.05)
    if process.returncode != -signal.SIGKILL:
        raise SystemExit("the command ended before it could be killed; give it more --steps")


def _steps(path: Path) -> int:
    try:
        with safe_open(path, framework="np") as state:
            return int(state.metadata()["done"])
    except (OSError, SafetensorError):  # gone in this moment
        return 0


def seam_ratio(image: NDArray[np.uint8], unit: int = PATCH_SIZE) -> float:
    """Mean absolute difference of neighbouring pixels across patch borders, against that anywhere else."""
    across, inside = [], []
    for axis in (0, 1):
        steps = np.abs(np.diff(image.astype(np.int16), axis=axis)).mean(axis=(1 - axis, 2))
        border = np.arange(1, len(steps) + 1) % unit == 0
        across.append(steps[border].mean())
        inside.append(steps[~border].mean())
    return float(np.mean(across) / np.mean(inside))


def passes(guide: str, steps: int, pulls: int, seams: int) -> int:
    """Forward passes of the denoiser: guide, patches with their pulls, windows of the pass against seams."""
    side = BRCA[guide].grid
    return steps * (1 + side**2 * (1 + 2 * pulls)) + seams // SEAM_STRIDE * (2 * side - 1) ** 2


def show(results: Results) -> None:
    """A row a guide."""
    steps, pulls, seams = (int(results.settings[name]) for name in ("steps", "pulls", "seams"))
    rows = [
        (
            row["guide"],
            f"{row['width']:,} x {row['height']:,}",
            f"{BRCA[row['guide']].grid ** 2:,}",
            f"{passes(row['guide'], steps, pulls, seams):,}",
            duration(row["cpu"]) if row["cpu"] > 90 else f"{row['cpu']:.0f} s",
            f"{row['memory'] / 1024:.2f} GB",
            f"{row['mpp']:g}",
            f"{row['seam_ratio']:.3f}",
            "yes" if row["identical"] else "NO",
        )
        for row in results.rows
    ]
    columns = (
        *("guide", "px", "patches", "denoiser passes", "CPU time, one thread", "peak memory"),
        *("um/px in OpenSlide", "gradient across borders / inside", "same file after a kill"),
    )
    results.report(columns, rows, ["CPU time and memory are those of the whole command: starting, embedding, writing"])


if __name__ == "__main__":
    main()

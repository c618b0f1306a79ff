"""A large image from the command line: time, peak memory, seams, its um/px in OpenSlide, and a kill in the middle.

``zoomfeat generate-large`` runs twice on a region of a slide: once through, and once killed at a third and started
again; the two files must be identical.

``python -m benchmarks.generation.large SLIDE --guide 1.25x`` (about an hour on two cores; ``--guide 5x`` is a minute)
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import openslide
from numpy.typing import NDArray
from rich.console import Console
from safetensors import safe_open

from zoomfeat.magnification import PATCH_SIZE

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Outcome:
    """What was found.

    Attributes:
        width: px.
        height: px.
        mpp: um/px as OpenSlide says.
        seconds: of the run without a kill.
        memory: its peak, MB.
        seam_ratio: mean absolute difference of neighbouring pixels across the borders of 20x patches, against all
            others.
        identical: whether the run that was killed ended with the same file.
    """

    width: int
    height: int
    mpp: float
    seconds: float
    memory: float
    seam_ratio: float
    identical: bool | None


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path)
    parser.add_argument("--model", default="zoomldm-tiny")
    parser.add_argument("--guide", default="1.25x")
    parser.add_argument("--x", type=int, default=0)
    parser.add_argument("--y", type=int, default=0)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pulls", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("large"), help="folder for the images")
    parser.add_argument("--once", action="store_true", help="without the run that is killed")
    parser.add_argument("--out", type=Path, default=RESULTS / "large.json")
    arguments = parser.parse_args()
    words = [
        sys.executable, "-m", "zoomfeat.cli", "generate-large", f"guide={arguments.guide}", f"model={arguments.model}",
        f"slide={arguments.slide}", f"x={arguments.x}", f"y={arguments.y}", "mpp=0.5", f"steps={arguments.steps}",
        f"pulls={arguments.pulls}", "device=cpu", "ssl_encoder=efficientnet-lite0",
    ]  # fmt: skip
    began = time.monotonic()
    memory = _run(words, arguments.work / "whole")
    seconds = time.monotonic() - began
    (whole,) = (arguments.work / "whole").glob("*.tiff")
    identical = None
    if not arguments.once:
        _kill_after(words, arguments.work / "killed", arguments.steps // 3)
        _run(words, arguments.work / "killed")
        identical = whole.read_bytes() == (arguments.work / "killed" / whole.name).read_bytes()
    with openslide.OpenSlide(whole) as slide:
        width, height = slide.dimensions
        mpp = float(slide.properties["openslide.mpp-x"])
        image = np.asarray(slide.read_region((0, 0), 0, (width, height)).convert("RGB"))
    outcome = Outcome(width, height, mpp, seconds, memory, seam_ratio(image), identical)
    Console().print(outcome)
    arguments.out.parent.mkdir(exist_ok=True)
    facts = {name: str(value) for name, value in vars(arguments).items() if name not in ("out", "work", "slide")}
    arguments.out.write_text(json.dumps({"settings": facts, "outcome": asdict(outcome)}, indent=1))


def _run(words: list[str], out: Path) -> float:
    """Runs the command to its end; its peak memory in MB."""
    process = subprocess.Popen([*words, f"out={out}"], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"the command failed ({status})")
    return usage.ru_maxrss / 1024


def _kill_after(words: list[str], out: Path, steps: int) -> None:
    """Runs the command and kills it, without a warning, once its state holds so many steps."""
    process = subprocess.Popen([*words, f"out={out}"], stdout=subprocess.DEVNULL)
    while process.poll() is None:
        states = list(out.glob("*.state"))
        if states:
            with safe_open(states[0], framework="np") as state:
                if int(state.metadata()["done"]) >= steps:
                    process.send_signal(signal.SIGKILL)
        time.sleep(0.2)
    if process.returncode != -signal.SIGKILL:
        raise SystemExit("the command ended before it could be killed")


def seam_ratio(image: NDArray[np.uint8], unit: int = PATCH_SIZE) -> float:
    """Mean absolute difference of neighbouring pixels across patch borders, against that anywhere else."""
    across, inside = [], []
    for axis in (0, 1):
        steps = np.abs(np.diff(image.astype(np.int16), axis=axis)).mean(axis=(1 - axis, 2))
        border = np.arange(1, len(steps) + 1) % unit == 0
        across.append(steps[border].mean())
        inside.append(steps[~border].mean())
    return float(np.mean(across) / np.mean(inside))


if __name__ == "__main__":
    main()

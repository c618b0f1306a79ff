"""Distilled networks against their teacher: ``python -m benchmarks.speed.distillation SET DATA --encoder FOLDER``.

SET is a training set whose held-out slides neither network was taught, DATA the folder of the labelled patches of
:mod:`benchmarks.tiny.probe`. Fidelity is the cosine between features; since the mean of all features alone gives a high
one, it also stands there with that mean (over the patches compared) taken out of both. Times are CPU times of one
patch, the ways in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does, before PyTorch is imported

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from benchmarks.speed.network import gflop
from benchmarks.tiny.probe import Patches, colorectal, lung, tested
from generation.batches import Levels, choose_items
from generation.data import TrainingSet
from zoomfeat.encoders import PatchEncoder, load_encoder
from zoomfeat.encoders.student import StudentEncoder
from zoomfeat.encoders.zoomldm import ZoomLDMEncoder
from zoomfeat.errors import CheckpointMismatchError
from zoomfeat.files import make_folder, replacing
from zoomfeat.progress import progress_bar

RESULTS = Path(__file__).parent / "results"
PROBES = {"lung": lung, "colorectal": colorectal}
_Z = 1.96  # half of a 95 % interval in standard errors


@dataclass(frozen=True)
class Fidelity:
    """How near features are to the teacher's, on held-out patches of one magnification.

    Attributes:
        magnification: its name.
        patches: compared.
        cosine: mean over the patches.
        lowest: of a patch.
        centred: mean cosine once the teacher's mean over these patches is taken out of both.
        between: mean cosine of the teacher's features of different patches.
    """

    magnification: str
    patches: int
    cosine: float
    lowest: float
    centred: float
    between: float


@dataclass(frozen=True)
class Probe:
    """A linear probe's balanced accuracy on test patches, with its 95 % interval.

    Attributes:
        data: name of the data set.
        score: balanced accuracy.
        low: of the interval.
        high: of the interval.
    """

    data: str
    score: float
    low: float
    high: float

    @property
    def standard_error(self) -> float:
        """Of the bootstrap."""
        return (self.high - self.low) / (2 * _Z)


@dataclass(frozen=True)
class Way:
    """One way to the features.

    Attributes:
        name: of the way.
        first_stage_gflop: of what makes the latents; 0 where there are none.
        gflop: of a patch in all.
        seconds: CPU time of a patch, median.
        fidelity: by magnification; empty for the teacher.
        probes: by data set.
    """

    name: str
    first_stage_gflop: float
    gflop: float
    seconds: float
    fidelity: list[Fidelity]
    probes: list[Probe]


def compare(found: NDArray[np.float32], expected: NDArray[np.float32], magnification: str) -> Fidelity:
    """Fidelity of features ``(N, dim)`` to the teacher's, N at least 2."""
    mean = expected.mean(0)
    cosines = _cosines(found, expected)
    units = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    n = len(units)
    between = (float(np.square(units.sum(0)).sum()) - n) / (n * (n - 1))
    centred = float(_cosines(found - mean, expected - mean).mean())
    return Fidelity(magnification, n, float(cosines.mean()), float(cosines.min()), centred, between)


def _cosines(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    return (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


def load_ways(name: str, weights: str | None, encoder: str | None, student: str | None) -> dict[str, PatchEncoder]:
    """The teacher, and what was taught by it.

    Raises:
        CheckpointMismatchError: a student of another teacher, or of other taps, timestep or condition.
    """
    options = {} if weights is None else {"weights": weights}
    teacher = load_encoder(name, device="cpu", **options)
    ways = {"teacher": teacher}
    if encoder is not None:
        ways["distilled encoder"] = load_encoder(name, device="cpu", distilled_encoder=encoder, **options)
    if student is not None:
        found = load_encoder("zoomldm-student", device="cpu", weights=student)
        assert isinstance(found, StudentEncoder)
        if (found.record.weights_hash, found.record.settings) != (teacher.weights_hash, teacher.settings):
            raise CheckpointMismatchError(
                f"taught by {found.record.teacher} {found.record.weights_hash[:12]} with {found.record.settings}; "
                f"the teacher here is {teacher.name} {teacher.weights_hash[:12]} with {teacher.settings}",
                path=student,
                cure="Give the --weights that it was distilled from",
            )
        ways["student"] = found
    return ways


@torch.inference_mode()
def operations(encoder: PatchEncoder) -> tuple[float, float]:
    """GFLOP of a patch: of what makes the latents (0 where nothing does), and in all."""
    inputs = encoder.transform(np.full((1, 256, 256, 3), 128, np.uint8))
    first = gflop(lambda: encoder._encode(inputs)) if isinstance(encoder, ZoomLDMEncoder) else 0.0
    return first, gflop(lambda: encoder.embed(inputs, None))


def times(ways: dict[str, PatchEncoder], repeats: int) -> dict[str, float]:
    """CPU seconds of a patch, the ways in turns after one warm-up each."""
    patch = np.random.default_rng(0).integers(0, 256, (1, 256, 256, 3), np.uint8)
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, encoder in ways.items():
            start = time.process_time()
            encoder(patch)
            taken[name].append(time.process_time() - start)
    return {name: statistics.median(seconds[1:]) for name, seconds in taken.items()}


def fidelities(
    ways: dict[str, PatchEncoder], data: TrainingSet, held_out: Levels, items: int, console: Console
) -> dict[str, list[Fidelity]]:
    """Fidelity of each way but the teacher's on held-out patches of each magnification."""
    found: dict[str, list[Fidelity]] = {name: [] for name in ways}
    with progress_bar(console) as progress:
        task = progress.add_task("held-out patches", total=len(held_out), unit="magnifications")
        for level, places in held_out.items():
            chosen = np.random.default_rng(0).permutation(places)[:items]
            images = np.stack([data[int(item)].image for item in chosen])
            step = data.ladder.steps[level]
            features = {name: encoder.at(step)(images) for name, encoder in ways.items()}
            for name in ways.keys() - {"teacher"}:
                found[name].append(compare(features[name], features["teacher"], str(step)))
            progress.advance(task)
    return found


def probes(ways: dict[str, PatchEncoder], sets: Sequence[Patches], console: Console) -> dict[str, list[Probe]]:
    """The linear probe of each way on each data set."""
    found: dict[str, list[Probe]] = {}
    with progress_bar(console) as progress:
        task = progress.add_task("probes", total=len(ways) * len(sets), unit="probes")
        for name, encoder in ways.items():
            found[name] = []
            for patches in sets:
                found[name].append(Probe(patches.name, *tested(encoder(patches.images), patches)))
                progress.advance(task)
    return found


def markdown(ways: Sequence[Way]) -> str:
    """The table of the guide."""
    teacher = ways[0]
    sets = [probe.data for probe in teacher.probes]
    header = ["", "encoder GFLOP", "GFLOP in all", "CPU time a patch", *(f"probe, {name}" for name in sets)]
    lines = [_line(header), _line(["---"] * len(header))]
    for way in ways:
        first = f"{way.first_stage_gflop:.3f}" if way.first_stage_gflop else "-"
        if way is not teacher and way.first_stage_gflop:
            first += f" (1/{teacher.first_stage_gflop / way.first_stage_gflop:.1f})"
        cells = [
            way.name,
            first,
            _share(way.gflop, teacher.gflop, "{:.2f}"),
            _share(way.seconds, teacher.seconds, "{:.3f} s"),
        ]
        cells += [f"{p.score:.3f} ({p.low:.3f} to {p.high:.3f})" for p in way.probes]
        lines.append(_line(cells))
    lines += [
        "",
        _line(["", "at", "patches", "cosine", "lowest", "mean taken out", "between patches"]),
        _line(["---"] * 7),
    ]
    for way in ways:
        for row in way.fidelity:
            values = [f"{value:.4f}" for value in (row.cosine, row.lowest, row.centred, row.between)]
            lines.append(_line([way.name, row.magnification, str(row.patches), *values]))
    return "\n".join(lines)


def _share(value: float, whole: float, form: str) -> str:
    return form.format(value) + (f" (1/{whole / value:.1f})" if value != whole else "")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measures, prints the tables and writes them as results/distillation.md and .json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("set", type=Path, help="training set with held-out slides")
    parser.add_argument("data", type=Path, help="folder of the test data, for the probes")
    parser.add_argument("--teacher", default="zoomldm-tiny", help="name in the registry")
    parser.add_argument("--weights", help="of the teacher; default: its own")
    parser.add_argument("--encoder", help="folder of a distilled encoder")
    parser.add_argument("--student", help="folder of a student")
    parser.add_argument("--held-out", default="held-out-*", help="names of the slides that nobody was taught")
    parser.add_argument(
        "--probes", nargs="*", default=list(PROBES), choices=PROBES, help="data sets of the linear probe"
    )
    parser.add_argument("--items", type=int, default=32, help="held-out patches of each magnification")
    parser.add_argument("--repeats", type=int, default=9, help="timed patches of each way, after one that warms up")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder to write to")
    arguments = parser.parse_args()
    console, out = Console(), make_folder(arguments.out)
    ways = load_ways(arguments.teacher, arguments.weights, arguments.encoder, arguments.student)
    data = TrainingSet.open(arguments.set)
    _, held_out = choose_items(data, [], [arguments.held_out], 0)
    taken = times(ways, arguments.repeats)
    near = fidelities(ways, data, held_out, arguments.items, console)
    scores = probes(ways, [PROBES[name](arguments.data) for name in arguments.probes], console)
    table = [Way(name, *operations(encoder), taken[name], near[name], scores[name]) for name, encoder in ways.items()]
    with replacing(out / "distillation.json") as path:
        path.write_text(json.dumps([asdict(way) for way in table], indent=1), encoding="utf-8")
    with replacing(out / "distillation.md") as path:
        path.write_text(markdown(table) + "\n", encoding="utf-8")
    console.print(markdown(table), soft_wrap=True, highlight=False)
    for way in table[1:]:
        for probe, reference in zip(way.probes, table[0].probes, strict=True):
            lost = (reference.score - probe.score) / reference.standard_error
            console.print(f"{way.name}, {probe.data}: {lost:+.1f} standard errors lost", highlight=False)


if __name__ == "__main__":
    main()

"""What a stranger does in the first hour: ``python -m benchmarks.first_hour SLIDE``.

Builds wheel and sdist of the checkout, installs the wheel into a new, empty virtual environment, and runs the demo and
the recipes of the README there, in order, in an empty folder with synthetic slides and the given one. Then the sdist is
installed in the wheel's place, and runs the demo too. Time and output go to docs/first-hour.md.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import venv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from zoomfeat.files import replacing
from zoomfeat.slides.synthetic import draw_tissue, make_slide

ROOT = Path(__file__).parents[1]
SLIDES = 22
"""Synthetic ones beside the given; enough for ten folds of two classes."""
_SHOWN = 14  # lines of output of a command


@dataclass(frozen=True)
class Step:
    """A command and what became of it.

    Attributes:
        command: as typed.
        code: its exit code.
        seconds: that it took.
        output: what it printed, bars left out.
    """

    command: str
    code: int
    seconds: float
    output: str


def recipes(readme: str) -> list[str]:
    """The commands of a README's ``sh`` fences, in order, but for ``make`` and those that are marked as not run."""
    commands = []
    for comment, code in re.findall(r"(<!--[^\n]*-->\n)?```sh\n(.*?)```", readme, re.S):
        if "not run" not in comment:
            lines = code.replace("\\\n", " ").splitlines()
            commands += [line for line in lines if line.strip() and not line.startswith(("#", "make "))]
    return commands


def furnish(folder: Path, slide: Path) -> None:
    """What the recipes name: ``slides/``, ``labels.csv`` and ``region.png``.

    Args:
        folder: an empty folder.
        slide: a real slide that joins the synthetic ones.
    """
    (folder / "slides").mkdir()
    for number in range(SLIDES):
        make_slide(folder / "slides" / f"synthetic-{number:02d}.tiff", seed=number, size=(640, 640), mpp=0.5)
    shutil.copy(slide, folder / "slides")
    names = sorted(path.stem for path in (folder / "slides").iterdir())
    table = pd.DataFrame({"slide_id": names, "patient_id": [f"patient-{name}" for name in names]})
    table["subtype"] = np.where(np.arange(len(names)) % 2, "B", "A")  # made up: there is nothing to learn
    table.to_csv(folder / "labels.csv", index=False)
    Image.fromarray(draw_tissue((64, 64), 2.0, seed=1)).save(folder / "region.png")


def run(command: str, folder: Path, binaries: Path) -> Step:
    """Runs a command as a shell does, with the environment's programs first.

    Args:
        command: as typed; ``pip install 'zoomfeat[...]'`` installs that archive's extras (see `install`).
        folder: where.
        binaries: of the virtual environment.
    """
    hidden = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL"))}
    environment = hidden | {"PATH": f"{binaries}:{os.environ['PATH']}", "COLUMNS": "110", "HF_HUB_OFFLINE": "1"}
    print(f"$ {command}", flush=True)
    start = time.monotonic()
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    step = Step(command, done.returncode, time.monotonic() - start, _plain(done.stdout))
    print(f"{step.output}\n-> {step.code} after {step.seconds:.0f} s", flush=True)
    return step


def _plain(output: str) -> str:
    lines = [line.rstrip() for line in output.splitlines()]
    return "\n".join(line for line in lines if line and "━━" not in line)


def install(command: str, archive: Path) -> str:
    """``pip install 'zoomfeat[mil]'`` of the README, as the archive that was just built."""
    return re.sub(r"^pip install 'zoomfeat(\[[\w,]+\])?'", rf"pip install -qq '{archive}\1'", command)


def first_hour(slide: Path, python: str, readme: Path, work: Path) -> list[Step]:
    """All steps, until one fails.

    Args:
        slide: a real slide.
        python: the interpreter of the new environment.
        readme: whose recipes are run.
        work: an empty folder, outside the checkout.
    """
    environment, folder = work / "environment", work / "empty"
    folder.mkdir()
    archives = work / "dist"
    steps = [run(f"{sys.executable} -m build --outdir {archives} {ROOT}", folder, Path(sys.executable).parent)]
    if steps[-1].code:
        return steps
    (wheel,), (sdist,) = archives.glob("*.whl"), archives.glob("*.tar.gz")
    if python == sys.executable:
        venv.create(environment, with_pip=True)
    else:
        subprocess.run([python, "-m", "venv", environment], check=True)
    furnish(folder, slide)
    commands = ["python --version", f"pip install -qq {wheel}", "zoomfeat --version", "zoomfeat demo"]
    commands += [install(command, wheel) for command in recipes(readme.read_text(encoding="utf-8"))]
    commands += ["du -sh ../environment bags maps"]
    commands += [f"pip install -qq --force-reinstall --no-deps {sdist}", "zoomfeat demo out=demo-sdist"]
    for command in commands:
        steps.append(run(command, folder, environment / "bin"))
        if steps[-1].code:
            break
    return [_anonymous(step, work) for step in steps]


def _anonymous(step: Step, work: Path) -> Step:
    """Without the folders of this machine."""

    def without(text: str) -> str:
        for found, shown in ((sys.executable, "python"), (f"{work}/dist", "dist"), (work, "work"), (ROOT, ".")):
            text = text.replace(str(found), shown)
        return text

    return Step(without(step.command), step.code, step.seconds, without(step.output))


def page(steps: list[Step], slide: Path) -> str:
    """The page of the documentation."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    total, cores = sum(step.seconds for step in steps), len(os.sched_getaffinity(0))
    lines = [
        "# The first hour", "",
        "What a stranger meets: wheel and sdist are built, the wheel is installed into an empty virtual environment,",
        f"and the recipes of the README run there, in a folder with {SLIDES} synthetic slides and `{slide.name}`.",
        "The labels are made up: there is nothing to learn, and whatever AUROC, difference or p there is, is chance.",
        "`python -m benchmarks.first_hour` wrote this page; the slow tests run it.", "",
        f"zoomfeat {version}, {cores} CPU cores that were shared with other work, no GPU, no network but for packages:",
        f"{total / 60:.0f} min in all.", "",
        "| step | seconds |", "|---|---|",
        *(f"| `{step.command}` | {step.seconds:.0f} |" for step in steps),
    ]  # fmt: skip
    for step in steps:
        shown = step.output.splitlines()
        if len(shown) > _SHOWN:
            shown = [*shown[: _SHOWN // 2], "...", *shown[-_SHOWN // 2 :]]
        lines += ["", "```text", f"$ {step.command}", *shown, "```"]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Runs all steps and writes the page; 1 where a step failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_hour", description=__doc__)
    parser.add_argument("slide", type=Path, help="a real slide: CMU-1-Small-Region.svs")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "first-hour.md", help="the page to write")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the new environment")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="whose recipes are run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="first-hour-") as work:
        steps = first_hour(options.slide.resolve(), options.python, options.readme, Path(work))
    failed = [step for step in steps if step.code]
    if not failed:
        with replacing(options.out) as temporary:
            temporary.write_text(page(steps, options.slide), encoding="utf-8")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())

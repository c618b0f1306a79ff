"""Errors that users meet, each provoked by what a user does, and the page that they make."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import h5py
import numpy as np
import pandas as pd
import torch
from PIL import Image

from tests.mil.bags import make_bag, saved
from tests.releases import write_release
from zoomfeat import cli
from zoomfeat.errors import ZoomfeatError
from zoomfeat.slides.synthetic import draw_tissue, make_slide

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Provocation:
    """What a user does, and what it is about.

    Attributes:
        command: as typed.
        error: name of the class.
        prepare: what is odd about the folder; None where the command alone is wrong.
        given: what the folder holds, where the command does not say it.
        reported: whether the error is a row of the report of a run that goes on, and not its end.
    """

    command: str
    error: str
    prepare: Callable[[], object] | None = None
    given: str = ""
    reported: bool = False


@dataclass(frozen=True)
class Met:
    """An error as the user met it.

    Attributes:
        error: name of its class.
        problem: what was found.
        cure: what helps.
    """

    error: str
    problem: str
    cure: str


def slide(name: str = "slide.tiff", mpp: float | None = 0.5, side: int = 600) -> None:
    """A slide in ``slides/``; without um/px where ``mpp`` is None."""
    path = Path("slides") / name
    path.parent.mkdir(exist_ok=True)
    if mpp is not None:
        make_slide(path, seed=0, size=(side, side), mpp=mpp)
    else:
        Image.fromarray(draw_tissue((side, side), 0.5, 0)).save(path)


def bags(count: int = 12, **changes: object) -> None:
    """``bags/`` and ``labels.csv``."""
    Path("bags").mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        saved(make_bag(rng.normal(size=(5, 4)), slide_id=f"s{number}", **changes), Path("bags"))  # type: ignore[arg-type]
    labels([f"p{number}" for number in range(count)], ["IDC", "ILC"] * (count // 2))


def labels(patients: list[str], values: list[str], slides: list[str] | None = None) -> None:
    """``labels.csv``."""
    names = slides or [f"s{number}" for number in range(len(patients))]
    table = pd.DataFrame({"slide_id": names, "patient_id": patients, "subtype": values})
    table.to_csv("labels.csv", index=False)


def _shared_patients() -> None:
    bags()
    rows = [(f"s{n}", part) for part in ("train", "test") for n in range(12)]
    table = pd.DataFrame(
        {"seed": 0, "fold": "0", "part": [part for _, part in rows], "slide_id": [name for name, _ in rows]}
    )
    table.to_csv("splits.csv", index=False)


def _cut_bag() -> None:
    bags(2)
    path = Path("bags/s0.h5")
    path.write_bytes(path.read_bytes()[:2000])


def _unfinished_bag() -> None:
    bags(2)
    with h5py.File("bags/s0.h5", "r+") as file:
        file.attrs["complete"] = False


def _nan() -> None:
    bags()
    with h5py.File("bags/s3.h5", "r+") as file:
        file["features"][0, 0] = np.nan


def _other_encoder() -> None:
    bags()
    rng = np.random.default_rng(0)
    saved(make_bag(rng.normal(size=(5, 4)), slide_id="s3", encoder="another"), Path("bags"))


def _other_bags() -> None:
    """Bags of another configuration in the place of those that are asked for."""
    slide()
    assert _quietly([*EXTRACT.split()[1:], "min_tissue=0.2"]) == 0


def _pickle() -> None:
    slide()
    write_release(Path(), width=16, magnifications=8)
    torch.save({"weights": Path("x")}, "weights.ckpt")


def _state(content: object) -> Callable[[], None]:
    def make() -> None:
        slide()
        torch.save(content, "weights.pt")

    return make


def _record() -> None:
    Path("record.json").write_text(json.dumps({"task": "phantom", "metrics": {}}))


def _glass() -> None:
    Path("slides").mkdir()
    Image.fromarray(np.full((600, 600, 3), 243, np.uint8)).save("slides/glass.png")


def _twice() -> None:
    slide("a.tiff")
    Path("slides/other").mkdir()
    shutil.copy("slides/a.tiff", "slides/other/a.tiff")


TINY = "zoomfeat extract slides=slides/ out=bags/ encoder=zoomldm-tiny"
EXTRACT = "zoomfeat extract slides=slides/ out=bags/ encoder=color-stats"
CROSSVAL = "zoomfeat crossval bags=bags/ labels=labels.csv label=subtype out=run/ folds=3"
CONFIGURATION, SLIDE, MAGNIFICATION = "ConfigurationError", "SlideUnreadableError", "MagnificationError"
TISSUE, BAG, CHECKPOINT = "NoTissueError", "BagInvalidError", "CheckpointMismatchError"

PROVOCATIONS = {
    "The command line": [
        Provocation("zoomfeat extrakt slides=slides/ out=bags/", CONFIGURATION),
        Provocation("zoomfeat extract slides=slides/ out=bags/", CONFIGURATION, slide),
        Provocation("zoomfeat extract out=bags/ encoder=color-stats", CONFIGURATION),
        Provocation("zoomfeat extract slides=slides/ out=bags/ encoder=unii", CONFIGURATION),
        Provocation(f"{EXTRACT} magnification=20x", CONFIGURATION),
        Provocation(f"{EXTRACT} batch_size=many", CONFIGURATION),
        Provocation(f"{EXTRACT} min_tissue=50", CONFIGURATION, slide),
        Provocation(f"{EXTRACT} device=cuda:9", CONFIGURATION, slide),
        Provocation(f"{TINY} encoder.taps=middle", CONFIGURATION, slide),
        Provocation(f"{TINY} encoder.timestep=2000", CONFIGURATION, slide),
        Provocation("zoomfeat convert bags/ to=clamm out=clam/", CONFIGURATION, bags),
    ],
    "Slides": [
        Provocation("zoomfeat extract slides=slidez/ out=bags/ encoder=color-stats", CONFIGURATION),
        Provocation(EXTRACT, CONFIGURATION, lambda: Path("slides").mkdir(), given="no slides there"),
        Provocation(EXTRACT, CONFIGURATION, _twice, given="two of one name"),
        Provocation("zoomfeat extract slides=slides/ out=slides/bags/ encoder=color-stats", CONFIGURATION, slide),
        Provocation(f"{EXTRACT} encoder.weights=x", CONFIGURATION, slide),
        Provocation(EXTRACT, BAG, _other_bags, given="a bag made with `min_tissue=0.2`", reported=True),
        Provocation(
            EXTRACT,
            SLIDE,
            lambda: (slide(), Path("slides/slide.tiff").write_bytes(b"no slide")),
            given="a file that is no slide",
            reported=True,
        ),
        Provocation(EXTRACT, MAGNIFICATION, lambda: slide("a.png", mpp=None), given="no um/px", reported=True),
        Provocation(EXTRACT, MAGNIFICATION, lambda: slide(mpp=0.6), given="0.6 um/px", reported=True),
        Provocation(f"{EXTRACT} magnifications=[20x,7x]", MAGNIFICATION, slide),
        Provocation(f"{EXTRACT} slide_timeout=0.01", "ZoomfeatError", slide, reported=True),
        Provocation(f"{EXTRACT} mpp=0.5", TISSUE, _glass, given="a slide without tissue", reported=True),
    ],
    "Bags": [
        Provocation("zoomfeat inspect bags/slide.h5", BAG),
        Provocation("zoomfeat verify bagz/", CONFIGURATION),
        Provocation("zoomfeat inspect bags/s0.h5", BAG, _cut_bag, given="its second half is missing"),
        Provocation("zoomfeat inspect bags/s0.h5", BAG, _unfinished_bag, given="writing did not end"),
        Provocation(CROSSVAL, BAG, _nan, given="a NaN in a bag"),
        Provocation(CROSSVAL, CONFIGURATION, _other_encoder, given="bags of two encoders"),
        Provocation(f"{CROSSVAL} scales=[5x]", MAGNIFICATION, bags),
    ],
    "Labels and splits": [
        Provocation("zoomfeat crossval bags=bags/ labels=labels.csv label=hrd out=run/", CONFIGURATION, bags),
        Provocation(
            CROSSVAL,
            CONFIGURATION,
            lambda: (bags(), labels(["p"] * 12, ["IDC", "ILC"] * 6)),
            given="two labels of a patient",
        ),
        Provocation(
            CROSSVAL,
            CONFIGURATION,
            lambda: (bags(), labels([f"p{n}" for n in range(12)], ["IDC"] * 12)),
            given="one class",
        ),
        Provocation(
            CROSSVAL,
            CONFIGURATION,
            lambda: (
                bags(),
                labels([f"p{n}" for n in range(12)], ["IDC", "ILC"] * 6, [f"case-{n}" for n in range(12)]),
            ),
            given="labels of other slides",
        ),
        Provocation(CROSSVAL.replace("=3", "=20"), CONFIGURATION, bags),
        Provocation(
            f"{CROSSVAL} split=splits.csv", CONFIGURATION, _shared_patients, given="a split that shares patients"
        ),
        Provocation(f"{CROSSVAL} head=abmill", CONFIGURATION, bags),
        Provocation("zoomfeat compare run/ other/", CONFIGURATION),
        Provocation("zoomfeat predict model=run/ bags=bags/ out=predictions.csv", CONFIGURATION, bags),
    ],
    "Weights": [
        Provocation("zoomfeat extract slides=slides/ out=bags/ encoder=uni", CHECKPOINT, slide),
        Provocation(
            "zoomfeat extract slides=slides/ out=bags/ encoder=uni encoder.weights=weights.pt", CHECKPOINT, slide
        ),
        Provocation(
            "zoomfeat extract slides=slides/ out=bags/ encoder=resnet50 encoder.weights=weights.pt",
            CHECKPOINT,
            _state({"a": torch.zeros(1)}),
            given="weights of something else",
        ),
        Provocation(
            "zoomfeat extract slides=slides/ out=bags/ encoder=zoomldm-brca encoder.weights=weights.ckpt",
            CHECKPOINT,
            _pickle,
            given="a pickle that holds more than tensors",
        ),
        Provocation("zoomfeat generate magnification=5x out=drawn/ model=zoomldm-brca", CHECKPOINT),
    ],
    "Pictures and training": [
        Provocation("zoomfeat generate magnification=7x out=drawn/", MAGNIFICATION),
        Provocation("zoomfeat generate magnification=5x out=drawn/ steps=0", CONFIGURATION),
        Provocation("zoomfeat generate magnification=5x out=drawn/ slide=slides/slide.tiff", CONFIGURATION, slide),
        Provocation(
            "zoomfeat superres image=region.png scale=3 out=fine/",
            CONFIGURATION,
            lambda: Image.new("RGB", (64, 64)).save("region.png"),
        ),
        Provocation(
            "zoomfeat train-ldm data=set/ out=run/ first_stage=zoomldm-tiny",
            "ZoomfeatError",
            lambda: Path("set").mkdir(),
        ),
    ],
    "Benchmarks": [
        Provocation("zoomfeat benchmark task=fantom", CONFIGURATION),
        Provocation("zoomfeat benchmark task=brca_hrd", CONFIGURATION),
        Provocation("zoomfeat submit-check record.json", "RecordInvalidError", _record, reported=True),
    ],
}


def provoke(provocation: Provocation) -> Met:
    """Does it, in an empty folder.

    Raises:
        AssertionError: nothing went wrong, or otherwise than by an error of the tree.
    """
    met: list[ZoomfeatError] = []
    make = ZoomfeatError.__init__

    def noticed(self: ZoomfeatError, *words: object, **facts: object) -> None:
        make(self, *words, **facts)  # type: ignore[arg-type]
        met.append(self)

    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), mock.patch.dict("os.environ", _OFFLINE):
        if provocation.prepare is not None:
            provocation.prepare()
        with (
            mock.patch.object(ZoomfeatError, "__init__", noticed),
            mock.patch("huggingface_hub.constants.HF_HUB_OFFLINE", True),
        ):
            said = io.StringIO()
            code = _quietly(provocation.command.split()[1:], said)
    assert code in (1, 2), f"{provocation.command} ended with {code}"
    assert met, f"{provocation.command} said {said.getvalue()!r}"
    error = met[-1]
    if not provocation.reported:
        assert f"zoomfeat: {error}" in said.getvalue(), f"{error} was not what {said.getvalue()!r} says"
    assert "\n" not in str(error)
    return Met(type(error).__name__, _anywhere(error.problem, folder), _anywhere(error.cure, folder))


def _anywhere(text: str, folder: str) -> str:
    """Without what differs between machines and versions: folders, what HDF5 says of damage, the rest of long lists."""
    text = re.sub(r"((?:[\w./-]+, ){3})(?:[\w./-]+, ){3,}([\w./-]+)", r"\1..., \2", text)
    return re.sub(r" \(Unable to .*\)$", " (HDF5's words)", text.replace(folder, ".").replace(f"{ROOT}/", ""))


_OFFLINE = {"HF_HUB_OFFLINE": "1", "COLUMNS": "200"}


def _quietly(words: list[str], said: io.StringIO | None = None) -> int:
    said = said or io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        return cli.main(words)


def page(met_by: Callable[[Provocation], Met]) -> str:
    """The whole page, of errors as they were met."""
    lines = [
        "# Errors", "",
        "What can go wrong. A test provokes each by what the first column says, in a folder with synthetic slides",
        "or bags, and makes this page. A message says what was found and what was expected; the cure is what helps.",
        "The exit code is 2 where the command line or the configuration is wrong (nothing was done), 1 where something",
        "failed, else 0. *In the report*: the slide is a row of the report with this error, and the others go on.", "",
        "| class | what it is about |", "|---|---|",
    ]  # fmt: skip
    known = {provocation.error for group in PROVOCATIONS.values() for provocation in group}
    lines += [f"| `{name}` | {_about(name)} |" for name in sorted(known)]
    for title, group in PROVOCATIONS.items():
        lines += ["", f"## {title}", "", "| command | error | message | cure |", "|---|---|---|---|"]
        for provocation in group:
            met = met_by(provocation)
            where = ", in the report" if provocation.reported else ""
            given = f", {provocation.given}" if provocation.given else ""
            cells = (f"`{provocation.command}`{given}", f"`{met.error}`{where}", met.problem, met.cure)
            lines.append("| " + " | ".join(_as_text(cell) for cell in cells) + " |")
    return re.sub(r"`([^`]*)\\\|([^`]*)`", r"`\1|\2`", "\n".join(lines)) + "\n"


def _as_text(cell: str) -> str:
    """A cell in which nothing opens a column, a tag or a link."""
    return cell.replace("|", "\\|").replace("<", "&lt;").replace("][", "]\\[")


def _about(name: str) -> str:
    import benchmarks.record
    import zoomfeat.errors

    kind = getattr(zoomfeat.errors, name, None) or getattr(benchmarks.record, name)
    return (kind.__doc__ or "").splitlines()[0].rstrip(".")

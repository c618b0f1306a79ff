"""``zoomfeat verify``: every bag of a run checked to the last value, and the run's report beside what is there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from zoomfeat.apart import Apart, OvertimeError
from zoomfeat.bags import Bag, validate
from zoomfeat.conf.schema import VerifyConfig
from zoomfeat.configuration import configuration_hash
from zoomfeat.errors import BagInvalidError, ConfigurationError, ZoomfeatError
from zoomfeat.files import unguarded
from zoomfeat.progress import progress_bar
from zoomfeat.run_folder import read_report
from zoomfeat.words import counted


@dataclass(frozen=True)
class Finding:
    """What is wrong with a file.

    Attributes:
        path: the file.
        problem: what was found, one line.
        cure: what helps.
    """

    path: Path
    problem: str
    cure: str


def run(config: VerifyConfig) -> int:
    """Prints what is wrong; 1 where anything is."""
    folder = Path(config.bags)
    if not folder.exists():
        raise ConfigurationError(
            "no such file or folder", path=folder, cure="Give a bag, or the out= folder of an extraction"
        )
    paths = sorted(p for p in folder.rglob("*.h5") if not p.name.startswith(".")) if folder.is_dir() else [folder]
    if not paths and not (folder / "report.csv").is_file():
        raise ConfigurationError(
            "holds no .h5 file", path=folder, cure="Give a bag, or the out= folder of an extraction"
        )
    console = Console()
    findings: list[Finding] = []
    apart = Apart()
    with progress_bar(console) as progress:
        task = progress.add_task("bags", total=len(paths), unit="bags")
        for path in paths:
            findings += check_apart(path, apart, config.bag_timeout)
            progress.advance(task)
    apart.stop()
    if folder.is_dir():
        findings += check_folder(folder)
    if findings:
        table = Table("file", "problem", "cure", title="not as it should be", title_justify="left", title_style="red")
        for finding in findings:
            name = finding.path.relative_to(folder) if finding.path != folder else folder
            table.add_row(escape(str(name)), escape(finding.problem), escape(finding.cure))
        console.print(table)
    wrong = len({finding.path for finding in findings})
    verdict = f"{wrong} file not as it should be" if wrong == 1 else f"{wrong} files not as they should be"
    console.print(f"{counted(len(paths), 'bag')} checked, {verdict}.", highlight=False)
    return 1 if findings else 0


def check_apart(path: Path, apart: Apart, seconds: float) -> list[Finding]:
    """`check_bag` in a process of its own: from some damaged bags libhdf5 does not return."""
    try:
        return apart.call(check_bag, path, seconds)
    except OvertimeError as error:
        cure = "Damaged, or slow to read: extract the slide again, or give bag_timeout= more seconds"
        return [Finding(path, error.problem, cure)]
    except ZoomfeatError as error:
        return [Finding(path, error.problem, error.cure)]


def check_bag(path: Path) -> list[Finding]:
    """Checks one bag: layout, types, coordinates within the slide, parents, finite features, configuration hash."""
    try:
        validate(path)
        metadata = Bag.open(path).metadata
        if metadata.configuration and metadata.config_hash != configuration_hash(metadata.configuration):
            raise BagInvalidError(
                "its configuration is not the one that its hash was made of", cure="Extract the slide again", path=path
            )
        if metadata.slide_id != path.stem:
            raise BagInvalidError(
                f"holds the slide {metadata.slide_id}", cure="Give the file the name of its slide again", path=path
            )
    except ZoomfeatError as error:
        return [Finding(path, error.problem.removeprefix(f"{path}: "), error.cure)]
    return []


def check_folder(folder: Path) -> list[Finding]:
    """Compares ``report.csv`` with the bags of a run, and finds what killed runs left behind."""
    findings = [
        Finding(path, "left behind by a run that was killed", "The next `zoomfeat extract` there sweeps it")
        for path in sorted(folder.rglob(".*.tmp"))
    ]
    for row in read_report(folder):
        name = f"{unguarded(row.get('slide_id', ''))}.h5"
        nested = folder / row.get("encoder", "") / name  # of a run with several encoders
        path = nested if nested.parent.is_dir() else folder / name
        if row.get("status") in ("done", "exists", "kept") and not path.exists():
            findings.append(Finding(path, "reported as done, and not there", "Run the same `zoomfeat extract` again"))
    return findings

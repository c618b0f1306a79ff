"""A bench for faults: slides, the bags of an undisturbed run of them, and what is held against them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from zoomfeat.bags import validate
from zoomfeat.commands.extract import extract_all
from zoomfeat.conf.compose import compose_config
from zoomfeat.conf.schema import ExtractConfig
from zoomfeat.encoders import PatchEncoder, load_encoder
from zoomfeat.errors import ZoomfeatError
from zoomfeat.report import SlideReport
from zoomfeat.run_folder import read_run
from zoomfeat.slides import slides
from zoomfeat.slides.synthetic import make_slide

SLIDES = 4


@dataclass
class Tally:
    """What became of the bags of a fault's trials.

    Attributes:
        trials: how often the fault was injected.
        lost: bags that were missing in the end.
        duplicated: slides that were extracted twice though a bag was there.
        corrupt: bags that were not whole at any moment, or differed in the end.
    """

    trials: int = 0
    lost: int = 0
    duplicated: int = 0
    corrupt: int = 0

    @property
    def is_clean(self) -> bool:
        return self.trials > 0 and (self.lost, self.duplicated, self.corrupt) == (0, 0, 0)


class Bench:
    """Slides, the bags of an undisturbed run of them, and folders for disturbed ones.

    Args:
        folder: for everything.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.slides = folder / "slides"
        self.slides.mkdir()
        for seed in range(SLIDES):
            make_slide(self.slides / f"slide-{seed}.tiff", seed=seed, size=(768, 768), mpp=0.5)
        self.random = random.Random(0)
        self.runs = 0
        undisturbed = self.config()
        assert all(report.status == "done" for report in self.run(undisturbed))
        self.seconds = read_run(Path(undisturbed.out))["seconds"]
        self.bags = read_bags(Path(undisturbed.out))

    def config(self, *words: str, out: Path | None = None, slides: Path | None = None) -> ExtractConfig:
        """Of a run in a fresh folder."""
        self.runs += 1
        out = out or self.folder / f"run-{self.runs}"
        given = [f"slides={slides or self.slides}", f"out={out}", "encoder=color-stats", "preview=false"]
        return compose_config("extract", [*given, "device=cpu", *words])

    def run(self, config: ExtractConfig, encoder: PatchEncoder | None = None) -> list[SlideReport]:
        """In this process."""
        encoders = [encoder or load_encoder("color-stats", device="cpu")]
        return extract_all(slides(config.slides), config, encoders, Console(quiet=True))

    def look(self, config: ExtractConfig, tally: Tally) -> None:
        """At bags in the middle of things: each is whole."""
        for path in Path(config.out).glob("*.h5"):
            try:
                validate(path)
            except ZoomfeatError:
                tally.corrupt += 1

    def compare(self, config: ExtractConfig, tally: Tally) -> None:
        """Bags in the end with those of the undisturbed run."""
        found = read_bags(Path(config.out))
        tally.lost += len(self.bags.keys() - found.keys())
        tally.corrupt += sum(found[name] != self.bags.get(name) for name in found)
        logs = [path.read_text() for path in (Path(config.out) / "logs").glob("slide-*.log")]
        tally.duplicated += sum(max(0, text.count("; done; ") - 1) for text in logs)


def read_bags(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.h5"))}

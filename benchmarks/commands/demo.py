"""``zoomfeat demo``: three synthetic slides through the main job, offline."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from benchmarks.phantom import SlidePlan, write_slide
from zoomfeat.bags import Bag, inspect_table
from zoomfeat.commands import extract
from zoomfeat.conf.schema import DemoConfig, ExtractConfig
from zoomfeat.files import make_folder
from zoomfeat.slides.synthetic import MARK

# A 20x slide, a 40x slide, and one whose um/px is no power of two times another's; each of another stain.
_SLIDES = (
    SlidePlan("phantom-20x", "patient-1", "both", (1,), mpp=0.5, stain="A"),
    SlidePlan("phantom-40x", "patient-2", "architecture", (2,), mpp=0.25, stain="B", pen="green"),
    SlidePlan("phantom-0.4601", "patient-3", "nuclei", (3,), mpp=0.4601, stain="C"),
)


def run(config: DemoConfig) -> int:
    """Draws the slides, extracts 20x and 5x, and prints what came out."""
    console = Console()
    out = Path(config.out)
    for folder in ("slides", "truth"):
        make_folder(out / folder)
    with console.status("drawing synthetic slides"):
        for plan in _SLIDES:
            write_slide(out, plan)
    console.print(f"{len(_SLIDES)} slides in {out / 'slides'} ({MARK})", highlight=False)
    bags = out / config.encoder.name
    job = ExtractConfig(slides=str(out / "slides"), out=str(bags), encoder=config.encoder)
    words = f"slides={job.slides} out={job.out} encoder={config.encoder.name} magnifications=[20x,5x]"
    console.print(f"zoomfeat extract {words}", style="bold", highlight=False, soft_wrap=True, markup=False)
    code = extract.run(job)
    first = bags / f"{_SLIDES[0].slide_id}.h5"
    console.print(inspect_table(first))
    fused = Bag.open(first).fused()
    console.print(f"fused: {fused.shape[0]} x {fused.shape[1]}, each 20x patch beside its 5x parent", highlight=False)
    console.print(f"look at {bags / 'previews' / first.stem}.png", highlight=False, soft_wrap=True)
    return code

"""``zoomfeat demo``: synthetic slides through the main job, offline."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from zoomfeat.bags import Bag, inspect_table
from zoomfeat.commands import extract
from zoomfeat.conf.schema import DemoConfig, ExtractConfig
from zoomfeat.files import make_folder
from zoomfeat.slides.synthetic import MARK, make_slide

# A 20x slide, a 40x slide, and one whose um/px is no power of two times another's.
_SLIDES = {
    "synthetic-20x": (0.5, (4096, 3072)),
    "synthetic-40x": (0.25, (6144, 6144)),
    "synthetic-0.2639": (0.2639, (5120, 5120)),
}


def run(config: DemoConfig) -> int:
    """Makes the slides, extracts 20x and 5x, and prints what came out."""
    console = Console()
    out = Path(config.out)
    folder = make_folder(out / "slides")
    with console.status("drawing synthetic slides"):
        for seed, (name, (mpp, size)) in enumerate(_SLIDES.items()):
            path = folder / f"{name}.tiff"
            if not path.exists():
                make_slide(path, seed=seed, size=size, mpp=mpp)
    console.print(f"{len(_SLIDES)} slides in {folder} ({MARK})", highlight=False)
    bags = out / config.encoder.name
    job = ExtractConfig(slides=str(folder), out=str(bags), encoder=config.encoder)
    words = f"slides={job.slides} out={job.out} encoder={config.encoder.name} magnifications=[20x,5x]"
    console.print(f"zoomfeat extract {words}", style="bold", highlight=False, soft_wrap=True, markup=False)
    code = extract.run(job)
    first = bags / f"{next(iter(_SLIDES))}.h5"
    console.print(inspect_table(first))
    fused = Bag.open(first).fused()
    console.print(f"fused: {fused.shape[0]} x {fused.shape[1]}, each 20x patch beside its 5x parent", highlight=False)
    console.print(f"look at {bags / 'previews' / first.stem}.png", highlight=False, soft_wrap=True)
    return code

"""Meets broken files as a run does, one a line of standard input, and answers each with a line of JSON.

A process of its own, so that who started it sees a crash of a decoder, or that it hangs. Address space is bounded, and
with it the memory that a file can ask for.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path

from zoomfeat.bags import Bag, validate
from zoomfeat.conf.compose import compose_config
from zoomfeat.encoders import load_encoder
from zoomfeat.encoders.pretrained import read_weights
from zoomfeat.errors import ZoomfeatError
from zoomfeat.extraction import extract_slide
from zoomfeat.slides import slides

SPARE = 4 * 2**30
"""Bytes of address space beyond what the libraries take: room for honest files, not for absurd ones."""

encoder = load_encoder("color-stats", device="cpu")
config = compose_config(
    "extract", ["slides=.", "out=.", "encoder=color-stats", "mpp=0.5", "min_tissue=0.2", "workers=1"]
)


def meet_slide(path: Path) -> str:
    """Extracts it, from the listing of its folder to the bag."""
    out = path.parent.parent / "out"
    config.slides, config.out = str(path.parent), str(out)
    for entry in slides(config.slides):
        report = extract_slide(entry, config, encoder)
        if report.details:
            raise AssertionError(report.details)
        bag = out / f"{entry.slide_id}.h5"
        if report.status == "done":
            validate(bag)
        elif bag.exists() or not report.error or "\n" in report.error or not report.cure:
            raise AssertionError(f"{report}")
    return report.status


def meet_bag(path: Path) -> str:
    """Opens and checks it, and computes what is computed of it."""
    validate(path)
    Bag.open(path).fused()
    return "done"


def meet_weights(path: Path) -> str:
    """Reads its tensors."""
    read_weights(path)
    return "done"


MEETINGS: dict[str, Callable[[Path], str]] = {"slides": meet_slide, "bags": meet_bag, "weights": meet_weights}
"""By the name of the folder that a file lies in."""


def main() -> None:
    """Answers until standard input ends."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + SPARE, used + SPARE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        path = Path(line.rstrip("\n"))
        try:
            answer = {"status": MEETINGS[path.parent.name](path)}
        except ZoomfeatError as error:
            answer = {"status": "refused", "error": str(error)}
        except Exception as error:
            answer = {"status": "broke", "error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

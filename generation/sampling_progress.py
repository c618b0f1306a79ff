"""Progress of long sampling: bars, and one line early on that says how long it will take in all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from zoomfeat.progress import progress_bar

_ENOUGH = 5.0  # seconds after which a rate is worth a forecast
_LONG = 60.0  # seconds: what takes less needs none

Report = Callable[[str, int, int], None]
"""What is going on, steps done, and their number."""


@contextmanager
def sampling_progress(console: Console, units: dict[str, str]) -> Iterator[Report]:
    """Bars for what is going on, one after the other.

    Args:
        console: where.
        units: of each activity, for example ``{"sampling": "passes"}``.
    """
    started: dict[str, tuple[float, int]] = {}
    announced: set[str] = set()
    with progress_bar(console) as progress:
        tasks = {}

        def report(activity: str, done: int, total: int) -> None:
            if activity not in tasks:
                tasks[activity] = progress.add_task(activity, total=total, unit=units[activity])
                started[activity] = time.monotonic(), done
            progress.update(tasks[activity], completed=done, total=total)
            began, before = started[activity]
            elapsed = time.monotonic() - began
            if activity not in announced and elapsed > _ENOUGH and done > before:
                announced.add(activity)
                left = elapsed * (total - done) / (done - before)
                if left > _LONG:
                    progress.console.print(
                        f"{activity}: {total - done:,} {units[activity]} to go, {duration(left)} at this rate",
                        highlight=False,
                    )

        yield report


def duration(seconds: float) -> str:
    """Seconds as people say them: ``about 3 h 20 min``."""
    minutes = max(round(seconds / 60), 1)
    hours, minutes = divmod(minutes, 60)
    return f"about {hours} h {minutes:02d} min" if hours else f"about {minutes} min"

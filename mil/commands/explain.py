"""``zoomfeat explain``: where saved models look on each slide, as files that people and QuPath open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TaskID

from mil.commands.predict import conclude, failure, write_table
from mil.ensemble import Ensemble, load_ensemble
from mil.explain import check_config, explain_slide
from zoomfeat.bags import StoredBag, stored_bags
from zoomfeat.bags.files import trying_first
from zoomfeat.conf.schema import ExplainConfig
from zoomfeat.files import make_folder
from zoomfeat.progress import progress_bar
from zoomfeat.slides import SlideEntry, slides


@trying_first()
def run(config: ExplainConfig) -> int:
    """Explains every bag; 1 when any failed."""
    check_config(config)
    console = Console()
    ensemble = load_ensemble(config.model, config.device)
    found = stored_bags(
        config.bags, mpp=config.mpp, magnification=config.magnification, encoder_name=config.encoder_name
    )
    entries = {entry.slide_id: entry for entry in slides(config.slides)} if config.slides else {}
    out = make_folder(Path(config.out))
    rows = []
    with progress_bar(console) as progress:
        task = progress.add_task("slides", total=len(found), unit="slides")
        resamples = progress.add_task("", total=None, unit="resamples", visible=False)
        for stored in found:
            rows.append(_explain(stored, ensemble, config, entries.get(stored.slide), progress, resamples))
            write_table(pd.DataFrame(rows), out / "report.csv")
            progress.advance(task)
    bare = sum(row.get("slide_file") == "missing" for row in rows)
    if bare:
        where = f"none of that name in {escape(config.slides)}" if config.slides else "give them with slides="
        console.print(
            f"{bare} without a slide file ({where}): maps on an empty outline, no pictures of patches.",
            highlight=False,
            soft_wrap=True,
        )
    return conclude(rows, out, console)


def _explain(
    stored: StoredBag,
    ensemble: Ensemble,
    config: ExplainConfig,
    entry: SlideEntry | None,
    progress: Progress,
    resamples: TaskID,
) -> dict[str, Any]:
    """The row of one slide; an error is a row as well."""

    def advance(done: int, total: int) -> None:
        progress.update(resamples, completed=done, total=total)

    progress.reset(resamples, description=escape(stored.slide), total=None, visible=True)
    try:
        explained = explain_slide(stored.open(), ensemble, config, entry, advance)
    except Exception as error:  # one slide never ends a run
        return {"slide_id": stored.slide, **failure(error)}
    return {
        "slide_id": stored.slide,
        **explained.prediction.row(),
        "training": explained.training,
        "slide_file": "found" if explained.with_slide else "missing",
        "page": f"{stored.slide}.html",
    }

"""``zoomfeat predict``: bags and saved models in, a table out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mil.cohort import find_bags
from mil.dataset import PLAIN, BagSource
from mil.ensemble import Ensemble, load_ensemble
from mil.labels import slide_name
from zoomfeat.bags import stored_bags
from zoomfeat.bags.files import trying_first
from zoomfeat.conf.schema import PredictConfig
from zoomfeat.errors import ConfigurationError, ZoomfeatError
from zoomfeat.files import make_folder, replacing
from zoomfeat.progress import progress_bar
from zoomfeat.words import counted

SUFFIXES = (".csv", ".parquet")


@trying_first()
def run(config: PredictConfig) -> int:
    """Predicts every bag; 1 when any failed."""
    out = Path(config.out)
    if out.suffix not in SUFFIXES:
        raise ConfigurationError(f"out={config.out} ends in neither .csv nor .parquet", cure="Use out=predictions.csv")
    console = Console()
    ensemble = load_ensemble(config.model, config.device)
    sources = find_sources(config, ensemble)
    make_folder(out.parent)
    rows = []
    with progress_bar(console) as progress:
        task = progress.add_task("bags", total=len(sources), unit="bags")
        for slide_id, read in sources:
            rows.append(predict_slide(ensemble, slide_id, read))
            progress.advance(task)
    write_table(pd.DataFrame(rows), out)
    return conclude(rows, out, console)


def find_sources(config: PredictConfig, ensemble: Ensemble) -> list[tuple[str, Callable[[], BagSource]]]:
    """The name of each slide, and what reads its bag.

    Raises:
        ConfigurationError: no bag there.
    """
    if ensemble.scales != (PLAIN,):
        found = stored_bags(
            config.bags, mpp=config.mpp, magnification=config.magnification, encoder_name=config.encoder_name
        )
        return [(stored.slide, stored.open) for stored in found]
    path = Path(config.bags)
    files = {slide_name(path.name): path} if path.is_file() else find_bags(path)
    return [(name, partial(_path, file)) for name, file in files.items()]


def _path(path: Path) -> BagSource:
    return path


def predict_slide(ensemble: Ensemble, slide_id: str, read: Callable[[], BagSource]) -> dict[str, Any]:
    """The row of one slide; an error is a row as well."""
    try:
        models = ensemble.for_slide(slide_id)
        return {"slide_id": slide_id, **models.predict(read()).row(), "training": models.training}
    except Exception as error:  # one bag never ends a run
        return {"slide_id": slide_id, **failure(error)}


def failure(error: Exception) -> dict[str, str]:
    """What a table says of an error: what was found, and what helps."""
    if isinstance(error, ZoomfeatError):
        return {"error": error.problem, "cure": error.cure}
    text = " ".join(str(error).split())
    return {"error": f"{type(error).__name__}: {text}", "cure": "Not an error that zoomfeat knows; please report it"}


def write_table(table: pd.DataFrame, out: Path) -> None:
    """Writes CSV or Parquet by the suffix, ``error`` and ``cure`` last where any bag failed.

    Raises:
        ZoomfeatError: the file cannot be written.
    """
    last = [name for name in ("error", "cure") if name in table]
    table = table[[name for name in table if name not in last] + last]
    if "models" in table:
        table = table.astype({"models": "Int64"})
    with replacing(out) as temporary:
        if out.suffix == ".csv":
            table.to_csv(temporary, index=False)
        else:
            table.to_parquet(temporary, index=False)


def conclude(rows: list[dict[str, Any]], out: Path, console: Console) -> int:
    """Prints what failed and where the results are; the exit code, 1 where any failed."""
    failed = [row for row in rows if "error" in row]
    if failed:
        table = Table(title="failed", title_justify="left", title_style="red")
        for heading in ("slide_id", "error", "cure"):
            table.add_column(heading, overflow="fold")
        for row in failed:
            table.add_row(*(escape(str(row[heading])) for heading in ("slide_id", "error", "cure")))
        console.print(table)
    console.print(
        f"{counted(len(rows), 'slide')}: {len(rows) - len(failed)} done, {len(failed)} failed. Results: {out}",
        soft_wrap=True,
        highlight=False,
    )
    return 1 if failed else 0

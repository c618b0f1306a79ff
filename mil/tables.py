"""Cells of CSV and Parquet tables, read without surprises: text first, numbers only where numbers are meant."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from zoomfeat.errors import ConfigurationError


def read_table(path: Path) -> pd.DataFrame:
    """A CSV (comma, semicolon or tab) or Parquet table with every cell as text, NaN where it is empty.

    Raises:
        ConfigurationError: it does not read as one, or has no rows.
    """
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            table = pd.read_parquet(path)
            table = (
                table.astype(object).where(table.notna(), None).map(lambda cell: None if cell is None else str(cell))
            )
        else:
            with path.open(encoding="utf-8-sig") as file:
                header = file.readline()
            separator = next((mark for mark in (",", ";", "\t") if mark in header), ",")
            table = pd.read_csv(path, sep=separator, dtype=str, encoding="utf-8-sig", index_col=False)
    except (OSError, ValueError, pd.errors.ParserError) as error:  # UnicodeDecodeError and pyarrow's are ValueErrors
        raise ConfigurationError(
            f"not a readable table ({' '.join(str(error).split())})", cure="Give a CSV or Parquet file", path=path
        ) from error
    table.columns = table.columns.astype(str).str.strip()
    if table.empty:
        raise ConfigurationError("no rows, expected one a slide", cure="Check the file", path=path)
    return table.apply(lambda cells: cells.str.strip())


def require(table: pd.DataFrame, name: str, path: Path, meaning: str) -> None:
    """Refuses a table without a column.

    Raises:
        ConfigurationError: so it is.
    """
    if name not in table:
        raise ConfigurationError(
            f"no column {name!r} ({meaning}) among {', '.join(table.columns[:20])}",
            cure="Name the right one" + (" with label=" if meaning == "the label" else " with time= and event="),
            path=path,
        )


def column(table: pd.DataFrame, name: str, usual: tuple[str, ...], path: Path, key: str) -> str:
    """The column of that name, or of a usual one where that name is itself the first usual one.

    Raises:
        ConfigurationError: there is none.
    """
    candidates = usual if name == usual[0] else (name,)
    for candidate in candidates:
        if candidate in table:
            return candidate
    hint = ", or give slide_table= where rows are patients" if key == "slide_column" else ""
    raise ConfigurationError(
        f"no column {' or '.join(map(repr, candidates))} among {', '.join(table.columns[:20])}",
        cure=f"Name it with {key}={hint}",
        path=path,
    )


def class_names(cells: pd.Series) -> pd.Series:
    """Whole numbers without their ``.0``, so that a column with gaps has the same classes as one without."""
    numbers = pd.to_numeric(cells, errors="coerce")
    if cells.notna().any() and (numbers.notna() == cells.notna()).all() and (numbers.dropna() % 1 == 0).all():
        return numbers.astype("Int64").astype(str).where(cells.notna())
    return cells


def numbers(cells: pd.Series, path: Path) -> NDArray[np.float64]:
    """Cells as float64.

    Raises:
        ConfigurationError: a cell is no finite number.
    """
    values = pd.to_numeric(cells, errors="coerce").to_numpy(dtype=np.float64)
    bad = ~np.isfinite(values)
    if bad.any():
        raise ConfigurationError(
            f"{cells.name} is {cells.iloc[int(bad.argmax())]!r} in {int(bad.sum())} rows, expected a number",
            cure="Leave the cell empty where it is not known, or use task=classification",
            path=path,
        )
    return values


def events(cells: pd.Series, path: Path) -> NDArray[np.bool_]:
    """Cells as bool: 1, true, 0 and false are known.

    Raises:
        ConfigurationError: a cell is something else.
    """
    known = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
    values = cells.str.lower().map(known)
    if values.isna().any():
        bad = cells[values.isna()]
        raise ConfigurationError(
            f"{cells.name} is {bad.iloc[0]!r} in {len(bad)} rows, expected 1 (event) or 0 (censored)",
            cure="Write the event as 1 and censoring as 0",
            path=path,
        )
    return values.to_numpy(dtype=bool)

"""Results on disk: JSON that a killed run goes on from, and the tables that are printed, as Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from generation.pipelines.patch import ZoomLDMPipeline
from zoomfeat.files import make_folder, replacing

FOLDER = Path(__file__).parent / "results"


@dataclass
class Results:
    """Measurements that were made with one set of settings.

    Attributes:
        path: the JSON file.
        settings: what decides the measurements; a file of others is begun anew.
        rows: the measurements.
    """

    path: Path
    settings: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def open(cls, path: Path, settings: dict[str, Any]) -> Results:
        """Those in a file, if they were made with these settings; else none."""
        results = cls(path, json.loads(json.dumps(settings, default=str)))
        if path.is_file():
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["settings"] == results.settings:
                results.rows = kept["rows"]
        return results

    def find(self, **key: Any) -> list[dict[str, Any]]:
        """Measurements with these values."""
        return [row for row in self.rows if all(row[name] == value for name, value in key.items())]

    def add(self, row: dict[str, Any]) -> None:
        """Keeps a measurement, on disk at once."""
        self.rows.append(row)
        make_folder(self.path.parent)
        with replacing(self.path) as temporary:
            record = {"settings": self.settings, "rows": self.rows}
            temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    def report(self, columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str]) -> None:
        """Prints a table with notes below, and writes it beside the JSON as Markdown."""
        console, table = Console(), Table()
        for column in columns:
            table.add_column(column, justify="left" if column == columns[0] else "right")
        for row in rows:
            table.add_row(*row)
        console.print(table)
        for note in notes:
            console.print(note, highlight=False)
        lines = ["| " + " | ".join(row) + " |" for row in (columns, ["---"] * len(columns), *rows)]
        made_by = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        text = "\n".join([*lines, "", *(f"- {note}" for note in notes), f"- made with: {made_by}"])
        with replacing(self.path.with_suffix(".md")) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")


def facts(pipe: ZoomLDMPipeline, model: str) -> dict[str, Any]:
    """What a measurement has to say of its model."""
    return {"model": model, "weights": pipe.weights_hash()[:16]}

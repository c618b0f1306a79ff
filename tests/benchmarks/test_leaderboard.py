"""Records of many hands merged and ranked, and what their leaderboard leaves on disk."""

from __future__ import annotations

import csv
import io
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console

from benchmarks.leaderboard import collect
from benchmarks.site import make_site
from benchmarks.submission import known_tasks
from tests.benchmarks.records import HOSTILE, SMALL, drawn, generation_task, save
from zoomfeat.cli import main
from zoomfeat.errors import ConfigurationError

# ---- merging ----


def test_records_of_two_submitters_merge(site, board):
    collection = site.collection
    assert len(collection.entries) == 9 + 4
    assert [file.split("/")[0] for file, _ in collection.duplicates] == ["there"]
    assert [other.split("/")[0] for _, other in collection.duplicates] == ["here"]
    assert collection.others == ("here/metrics.json",)
    refused = {each.file: each.problems for each in collection.refused}
    assert refused.keys() == {"there/deep/tampered.json", "there/deep/cut-off.json"}
    assert any("metric brier is" in line for line in refused["there/deep/tampered.json"])
    assert "Invalid JSON" in refused["there/deep/cut-off.json"][0]
    # Two results of one encoder, head and magnification are both there, and are told apart.
    names = [row.name for row in board.standings]
    assert len(set(names)) == len(names) == 9
    assert {"first-encoder · 20x · mean (tests)", "first-encoder · 20x · mean (another lab)"} <= set(names)
    assert "first-encoder · 20x+5x · mean" in names


def test_standings_are_ranked_and_tested(board):
    values = [row.entry.record.metrics["auroc"].value for row in board.standings]
    assert values == sorted(values, reverse=True)
    assert [row.rank for row in board.standings] == [1 + sum(other > value for other in values) for value in values]
    assert len(board.pairs) == 9 * 8 / 2
    assert [row.against_best is None for row in board.standings] == [True] + 8 * [False]
    last = board.standings[-1].against_best
    assert last.differs
    assert last.tested.difference.difference < 0


def test_lower_is_better_and_magnifications_of_images_apart(site):
    found = [board for board in site.boards if board.task.name == "restoring"]
    assert [board.magnification for board in found] == ["20x", "5x"]
    values = [row.entry.record.metrics["rmse"].value for row in found[0].standings]
    assert values == sorted(values)
    assert values[0] < values[1]
    assert {pair.tested.test for pair in found[0].pairs} == {"paired bootstrap"}
    assert found[1].pairs == ()


def test_sets_of_images_have_no_paired_test_and_other_distances_no_rank(tmp_path):
    task = generation_task(tmp_path / "drawing.yaml")
    for record in (drawn(task, 2.0), drawn(task, 1.0), drawn(task, 0.1, "distance_over_another_network")):
        save(record, tmp_path / "results")
    made = make_site(tmp_path / "results", tmp_path / "site", Console(quiet=True), [str(task)])
    (board,) = made.boards
    assert [row.rank for row in board.standings] == [1, 2, None]
    assert [row.entry.record.encoder.settings["shift"] for row in board.standings] == [1.0, 2.0, 0.1]
    assert board.pairs == ()
    assert made.collection.refused == ()
    text = made.page.read_text(encoding="utf-8")
    assert "1 result without a rank: no distance" in text
    assert "No paired tests: the results of this task are of whole sets of images" in text
    assert len(re.findall(r'<rect class="point"', text)) == 2
    assert pd.read_csv(made.table)["rank"].isna().tolist() == [False, False, True]

    only = tmp_path / "only"
    save(drawn(task, 0.1, "distance_over_another_network"), only)
    assert "<svg" not in make_site(only, tmp_path / "site", Console(quiet=True), [str(task)]).page.read_text("utf-8")


def test_folder_without_records(tmp_path, capsys):
    with pytest.raises(ConfigurationError, match="no records"):
        collect(tmp_path, known_tasks(), Console(quiet=True))
    (tmp_path / "broken.json").write_text("{")
    assert main(["leaderboard", str(tmp_path), f"out={tmp_path / 'site'}"]) == 1
    assert "REFUSED broken.json: " in capsys.readouterr().out
    assert "broken.json" in (tmp_path / "site" / "index.html").read_text(encoding="utf-8")


def test_command_is_repeatable_and_passes_over_its_own_site(results, tmp_path, capsys):
    folder = shutil.copytree(results / "there", tmp_path / "my results (2)")
    made: list[dict[Path, bytes]] = []
    for _ in range(2):
        assert main(["leaderboard", str(folder), f"out={folder / 'site'}", "records=true", f"tasks={SMALL}"]) == 0
        out = capsys.readouterr().out
        assert "3 results of 1 task" in out
        assert "REFUSED deep/tampered.json: hash is" in out
        made.append({path: path.read_bytes() for path in sorted((folder / "site").rglob("*.*"))})
    assert made[0] == made[1]
    assert len(made[0]) == 2 + 3
    copies = folder / "site" / "records"
    assert main(["leaderboard", str(copies), f"out={folder / 'site'}", "records=true", f"tasks={SMALL}"]) == 0
    assert "3 results of 1 task" in capsys.readouterr().out
    assert main(["submit-check", *map(str, copies.iterdir()), f"tasks={SMALL}"]) == 0


# ---- CSV ----


def tables_of(path: Path) -> list[pd.DataFrame]:
    return [
        pd.read_csv(io.StringIO(text), float_precision="round_trip")
        for text in path.read_text(encoding="utf-8").split("\n\n")
    ]


def test_csv_has_every_row_with_full_precision(site, board):
    table, *restoring = tables_of(site.table)
    assert table["rank"].tolist() == [row.rank for row in board.standings]
    assert table["auroc"].tolist() == [row.entry.metrics["auroc"].value for row in board.standings]
    assert table["brier_by_fold_low"].tolist() == [row.entry.metrics["brier_by_fold"].low for row in board.standings]
    assert table["hash"].tolist() == [row.entry.record.hash for row in board.standings]
    assert [len(each) for each in restoring] == [3, 1]


def test_csv_runs_no_formula(site):
    cells = [cell for row in csv.reader(site.table.read_text(encoding="utf-8").splitlines()) for cell in row]
    assert f"'{HOSTILE}" in cells
    assert "'@lab" in cells
    numbers = re.compile(r"-?\d+(\.\d+)?(e-?\d+)?")
    assert not [cell for cell in cells if cell[:1] in ("=", "+", "-", "@", "\t") and not numbers.fullmatch(cell)]


# ---- the file ----


class _Structure(HTMLParser):
    """Every element with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.elements.append((tag, dict(attrs)))

    def of(self, tag: str) -> list[dict]:
        return [given for name, given in self.elements if name == tag]


def test_page_is_self_contained_and_escaped(site):
    text = site.page.read_text(encoding="utf-8")
    page = _Structure(text)
    assert len(page.of("script")) == 2
    assert page.of("img") == []
    assert not [name for _, given in page.elements for name in given if name.startswith("on")]
    assert "&lt;img src=x onerror=alert(1)&gt;" in text
    assert "Bicubic &lt;b&gt;" in text
    addresses = [given[name] for _, given in page.elements for name in ("src", "href") if name in given]
    assert all(address.startswith(("data:", "#", "records/")) for address in addresses)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest", text)
    policy = next(given["content"] for given in page.of("meta") if given.get("http-equiv"))
    assert policy.startswith("default-src 'none'")
    ids = [given["id"] for _, given in page.elements if "id" in given]
    assert len(ids) == len(set(ids))


def test_page_can_be_read_by_machines(site):
    page = _Structure(site.page.read_text(encoding="utf-8"))
    assert len(page.of("caption")) == len(page.of("table"))
    sortable = [given for given in page.of("th") if "aria-sort" in given]
    assert {given["aria-sort"] for given in sortable} == {"none", "ascending", "descending"}
    assert all("scope" in given for given in page.of("th"))
    labelled = {given["for"] for given in page.of("label") if "for" in given}
    named = [given["id"] for tag in ("select", "input") for given in page.of(tag) if "id" in given]
    assert named
    assert set(named) <= labelled
    ids = {given["id"] for _, given in page.elements if "id" in given}
    for name in ("aria-controls", "aria-labelledby"):
        assert {given[name] for _, given in page.elements if name in given} <= ids

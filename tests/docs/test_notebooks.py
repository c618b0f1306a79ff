"""The notebooks of the site run as they stand, and hold the outputs of a whole run."""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.docs.blocks import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder of its own, with the commands and packages that the tests run on."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(notebook, here):
    made = nbformat.read(notebook, as_version=4)
    resources = {"metadata": {"path": str(here)}}
    NotebookClient(made, timeout=1500, resources=resources).execute()  # raises where a cell does
    assert all("outputs" in cell for cell in made.cells if cell.cell_type == "code")


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_show_a_whole_run(notebook):
    cells = [cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert notebook.stat().st_size < 1_000_000


def test_there_are_notebooks():
    assert [path.stem for path in NOTEBOOKS] == ["bags-to-auc", "guidance-and-superres"]

"""What a stranger does in the first hour works: all of it in the slow suite, its parts here."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.first_hour import SLIDES, Step, _anonymous, first_hour, furnish, install, page, recipes
from tests.docs.blocks import ROOT
from zoomfeat.slides.synthetic import make_slide

README = """
```sh
make demo    # not a recipe
```

<!-- small: folds=2 -->
```sh
pip install 'zoomfeat[mil]'
zoomfeat crossval bags=bags/ \\
    out=run/
```

<!-- not run: needs a cluster -->
```sh
zoomfeat extract engine=slurm
```
"""


def test_recipes_are_the_commands_that_can_run_here():
    assert recipes(README) == ["pip install 'zoomfeat[mil]'", "zoomfeat crossval bags=bags/      out=run/"]


def test_extras_are_installed_from_the_archive_that_was_built():
    wheel = Path("dist/zoomfeat-0.1.0-py3-none-any.whl")
    assert install("pip install 'zoomfeat[mil]'", wheel) == f"pip install -qq '{wheel}[mil]'"
    assert install("zoomfeat demo", wheel) == "zoomfeat demo"


def test_the_folder_holds_what_recipes_name(tmp_path):
    make_slide(tmp_path / "real.tiff", seed=0, size=(300, 300))
    folder = tmp_path / "empty"
    folder.mkdir()
    furnish(folder, tmp_path / "real.tiff")
    table = pd.read_csv(folder / "labels.csv")
    assert len(table) == SLIDES + 1
    assert table["subtype"].value_counts().min() >= 10  # ten folds
    assert {path.stem for path in (folder / "slides").iterdir()} == set(table["slide_id"])
    assert (folder / "region.png").exists()


def test_the_page_has_times_and_the_ends_of_long_outputs():
    steps = [Step("zoomfeat demo", 0, 61.4, "\n".join(f"line {number}" for number in range(40)))]
    text = page(steps, Path("slide.svs"))
    assert "| `zoomfeat demo` | 61 |" in text
    assert "line 0\n" in text
    assert "line 39\n" in text
    assert "line 20" not in text


def test_steps_name_no_folder_of_this_machine(tmp_path):
    step = Step(f"{sys.executable} -m build --outdir {tmp_path}/dist {ROOT}", 0, 1.0, f"{tmp_path}/empty {ROOT}/a")
    found = _anonymous(step, tmp_path)
    assert (found.command, found.output) == ("python -m build --outdir dist .", "work/empty ./a")
    shown = (ROOT / "docs" / "first-hour.md").read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.])/\w|https?:|file:", shown)


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.timeout(7200)
def test_a_stranger_gets_through_the_first_hour(shared, tmp_path):
    slide = shared / "slides" / "CMU-1-Small-Region.svs"
    steps = first_hour(slide, sys.executable, ROOT / "README.md", tmp_path)
    assert not [step for step in steps if step.code]
    assert sum(step.command.startswith("zoomfeat demo") for step in steps) == 2

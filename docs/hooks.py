"""Pages of the documentation that follow from something else: the command line, the model card, changes, notebooks."""

from __future__ import annotations

import io
import re
import textwrap
from contextlib import redirect_stdout
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

from zoomfeat.cli import COMMANDS, main

ROOT = Path(__file__).parent.parent
CARD = "zoomfeat/weights/zoomldm-tiny/MODEL_CARD.md"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what is written elsewhere."""
    card = (ROOT / CARD).read_text(encoding="utf-8").replace("../../../docs/", "")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    for path, text in {"zoomldm-tiny.md": card, "changes.md": changes, "reference/cli.md": _commands()}.items():
        files.append(File.generated(config, path, content=text))
    for notebook in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        text, resources = MarkdownExporter().from_filename(str(notebook), {"unique_key": notebook.stem})
        files.remove(next(file for file in files if file.src_uri == f"notebooks/{notebook.name}"))
        files.append(File.generated(config, f"notebooks/{notebook.stem}.md", content=text))
        for name, picture in resources["outputs"].items():
            files.append(File.generated(config, f"notebooks/{name}", content=picture))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links that lead out of docs/ for who reads the repository lead to the pages here."""
    return markdown.replace(f"(../{CARD})", "(zoomldm-tiny.md)")


def _commands() -> str:
    """What ``zoomfeat COMMAND --help`` prints, for every command."""
    parts = ["# Command line", "", "```", _printed("--help"), "```", ""]
    for name in COMMANDS:
        parts += [f"## {name}", "", "```", _printed(name, "--help"), "```", ""]
    return "\n".join(parts)


def _printed(*words: str) -> str:
    with redirect_stdout(io.StringIO()) as text:
        main(list(words))
    return "\n".join(_wrapped(line) for line in text.getvalue().strip().splitlines())


def _wrapped(line: str, width: int = 100) -> str:
    """A line as it fits the page, its rest under the text that follows a name and two spaces or more."""
    indent = re.match(r" *(?:\S+ {2,})?", line)
    assert indent is not None  # it may be empty
    return textwrap.fill(
        line, width, subsequent_indent=" " * indent.end(), break_long_words=False, break_on_hyphens=False,
        drop_whitespace=True,
    )  # fmt: skip

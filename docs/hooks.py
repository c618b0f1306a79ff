"""Pages of the documentation that follow from the project itself: the command line, the model card, the changes."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from zoomfeat.cli import COMMANDS, main

ROOT = Path(__file__).parent.parent
CARD = "zoomfeat/weights/zoomldm-tiny/MODEL_CARD.md"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what is written elsewhere."""
    card = (ROOT / CARD).read_text(encoding="utf-8").replace("../../../docs/", "")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    for path, text in {"zoomldm-tiny.md": card, "changes.md": changes, "reference/cli.md": _commands()}.items():
        files.append(File.generated(config, path, content=text))
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
    return text.getvalue().strip()

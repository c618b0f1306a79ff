"""The code blocks of Markdown pages, and how they are run: as a reader would, in order, in one folder.

A fence says what it is: ``sh`` (commands), ``python``, ``yaml`` (read, or a file of the page) or ``text`` (what is
shown). A comment in front of a fence says what else there is to know:

- ``<!-- not run: REASON -->``: it needs what cannot be had here. Its commands are still held against the command line.
- ``<!-- slow -->``: only the slow suite runs it.
- ``<!-- small: WORD ... -->``: words that are added to its commands so that they end soon, such as ``epochs=2``; sets
  of words with ``;`` between them go to one command each.
- ``<!-- file: NAME -->``: the reader saves it under this name.
"""

from __future__ import annotations

import importlib.util
import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from markdown_it import MarkdownIt

from zoomfeat.cli import COMMANDS, _named, main
from zoomfeat.conf.compose import describe_config

ROOT = Path(__file__).parents[2]
LANGUAGES = ("sh", "python", "yaml", "text")
_COMMENT = re.compile(r"<!--\s*(not run|slow|small|file)\s*(?::\s*(.*?))?\s*-->", re.S)


@dataclass(frozen=True)
class Block:
    """A fence of a page.

    Attributes:
        page: relative to the repository.
        line: of its first line of code, from 1.
        language: one of ``LANGUAGES``.
        code: its text.
        not_run: why it is not run; empty where it is.
        slow: whether the slow suite alone runs it.
        small: words that are added to its commands: one set for all of them, or one set each.
        file: the name that it is saved under.
    """

    page: str
    line: int
    language: str
    code: str
    not_run: str = ""
    slow: bool = False
    small: tuple[tuple[str, ...], ...] = ()
    file: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(path: Path) -> list[Block]:
    """The fences of a page, in order.

    Raises:
        ValueError: an indented block or a fence without one of the languages: nobody could tell what it is.
    """
    page = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    found: list[Block] = []
    said: dict[str, str] = {}
    for token in MarkdownIt("commonmark").parse(path.read_text(encoding="utf-8")):
        if token.type == "html_block":
            said |= {match[1]: (match[2] or "").strip() for match in _COMMENT.finditer(token.content)}
        if token.type not in ("fence", "code_block"):
            continue
        assert token.map is not None
        language = token.info.split()[0] if token.info.split() else ""
        at = f"{page}:{token.map[0] + 1}"
        if token.type == "code_block" or language not in LANGUAGES:
            raise ValueError(f"{at}: write a fence of one of {', '.join(LANGUAGES)}, not {language!r}")
        if "not run" in said and not said["not run"]:
            raise ValueError(f"{at}: say why it is not run: <!-- not run: REASON -->")
        small = tuple(tuple(words.split()) for words in said["small"].split(";")) if "small" in said else ()
        found.append(
            Block(
                page, token.map[0] + 2, language, token.content, not_run=said.get("not run", ""), slow="slow" in said,
                small=small, file=said.get("file", ""),
            )
        )  # fmt: skip
        said = {}
    return found


def inline_commands(path: Path) -> list[str]:
    """The commands that a page's sentences and tables name, such as ```zoomfeat verify out/```."""
    found = []
    for token in MarkdownIt("commonmark").enable("table").parse(path.read_text(encoding="utf-8")):
        codes = [child.content for child in token.children or () if child.type == "code_inline"]
        found += [code for code in codes if re.match(r"(zoomfeat|python -m) \S", code)]
    return found


def commands_of(code: str) -> list[str]:
    """The commands of a block, one each, continued lines joined."""
    lines = code.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def check_command(command: str) -> None:
    """Holds a command against the command line, without running it: its name, its keys, their types.

    Raises:
        ConfigurationError: there is no such command or key.
        ValueError: there is no such module, extra or target.
    """
    words = shlex.split(command, comments=True)
    if words[0] == "zoomfeat":
        if len(words) > 1 and words[1] in COMMANDS and "..." not in words and "--help" not in words:
            keys = words[2:]
            if positional := COMMANDS[words[1]].positional:
                keys = _named(keys, positional, COMMANDS[words[1]].several)
            describe_config(words[1], [word for word in keys if word not in ("--cfg", "job")])
        elif len(words) > 1 and words[1] not in (*COMMANDS, "--help", "--version", "COMMAND"):
            raise ValueError(f"no command {words[1]}")
    elif words[:2] == ["python", "-m"]:
        if importlib.util.find_spec(words[2]) is None:
            raise ValueError(f"no module {words[2]}")
    elif words[:2] == ["pip", "install"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        named = re.findall(r"\[([\w,]+)\]", " ".join(words[2:]))
        if absent := set(",".join(named).split(",")) - {""} - extras.keys():
            raise ValueError(f"no extra {', '.join(sorted(absent))}")
    elif words[0] == "make":
        makefile = (ROOT / "Makefile").read_text()
        if absent_targets := [word for word in words[1:] if f"\n{word}:" not in makefile]:
            raise ValueError(f"no target {', '.join(absent_targets)} in the Makefile")


class Session:
    """What a reader has open: a folder and a Python prompt."""

    def __init__(self, names: Mapping[str, Any]) -> None:
        self.names = {"__name__": "__page__", **names}

    def run(self, block: Block) -> None:
        """Runs a block in the working directory.

        Raises:
            AssertionError: a command of it did not end with 0.
        """
        if block.file:
            Path(block.file).write_text(block.code, encoding="utf-8")
        elif block.language == "python":
            # Empty lines in front, so that a traceback names the line of the page.
            exec(compile("\n" * (block.line - 1) + block.code, ROOT / block.page, "exec"), self.names)
        elif block.language == "yaml":
            yaml.safe_load(block.code)
        elif block.language == "sh":
            commands = commands_of(block.code)
            added = block.small if len(block.small) > 1 else (block.small or ((),)) * len(commands)
            for command, words in zip(commands, added, strict=True):
                code = self._command(shlex.split(command, comments=True), words)
                assert code == 0, f"{block}: {command!r} ended with {code}"

    def _command(self, words: list[str], added: tuple[str, ...]) -> int:
        if words[0] == "zoomfeat":
            return main(_last_wins([*words[1:], *added]))
        if words[0] == "python":
            return self._python([*words[1:], *added])
        # Others are held against pyproject.toml and the Makefile; the first hour of a stranger installs for real.
        assert words[0] in ("pip", "make"), f"who knows the command {words[0]!r}?"
        return 0

    def _python(self, words: list[str]) -> int:
        if words[0] == "-c":
            exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
            return 0
        before, sys.argv = sys.argv, words[1:]
        try:
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        except SystemExit as done:
            return int(done.code or 0)
        finally:
            sys.argv = before
        return 0


def _last_wins(words: list[str]) -> list[str]:
    """Of a key that is there twice the later one; Hydra refuses both."""
    keyed = {word.partition("=")[0] if "=" in word else word: word for word in words}
    return list(keyed.values())

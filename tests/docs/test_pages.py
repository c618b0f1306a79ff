"""Every code block and command of the README and the guides does what the page says: it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.metrics import registry as metric_registry
from mil.heads import base as head_registry
from mil.heads import head_names
from tests.docs.blocks import ROOT, Session, blocks_of, check_command, commands_of, inline_commands
from tests.docs.inputs import INPUTS
from tests.releases import write_release
from zoomfeat.encoders import registry as encoder_registry
from zoomfeat.encoders.registry import encoder_names
from zoomfeat.errors import ZoomfeatError

PAGES = [
    path.relative_to(ROOT).as_posix()
    for path in (
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "zoomfeat/weights/zoomldm-tiny/MODEL_CARD.md")),
        *sorted((ROOT / "docs").rglob("*.md")),
    )
]


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """A folder of the reader's own, and registries that forget what a page enters into them."""
    monkeypatch.chdir(tmp_path)
    for fill in (encoder_names, head_names, metric_registry.set_metric_names):
        fill()  # the modules that enter what ships are imported once
    for module, names in {
        encoder_registry: ("_BUILDERS", "_INFOS"), head_registry: ("_BUILDERS",), metric_registry: ("_SETS", "_PAIRS"),
    }.items():  # fmt: skip
        for name in names:
            monkeypatch.setattr(module, name, dict(getattr(module, name)))


@pytest.fixture(scope="session")
def hub(tmp_path_factory) -> Path:
    """What stands in for the hub's ZoomLDM: checkpoints in its layout, tiny, with random weights."""
    folder = tmp_path_factory.mktemp("hub")
    write_release(folder / "brca", width=1024, magnifications=8)
    write_release(folder / "naip", width=1024, magnifications=4)
    return folder


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_keys_exist(page):
    wrong = []
    for block in blocks_of(ROOT / page):
        if block.language == "python":
            compile(block.code, page, "exec")
        for command in commands_of(block.code) if block.language == "sh" else ():
            wrong += [f"{block}: {problem}" for problem in _problems(command)]
    for command in inline_commands(ROOT / page) if page != "docs/errors.md" else ():  # there they are meant to be wrong
        wrong += [f"{page}: `{command}`: {problem}" for problem in _problems(command)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", PAGES)
def test_blocks_run(page, reader, hub, tmp_path, monkeypatch):
    _run(page, hub, tmp_path, monkeypatch, slow=False)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", [page for page in PAGES if "<!-- slow" in (ROOT / page).read_text()])
def test_slow_blocks_run(page, reader, hub, tmp_path, monkeypatch):
    _run(page, hub, tmp_path, monkeypatch, slow=True)


def _run(page: str, hub: Path, folder: Path, monkeypatch, *, slow: bool) -> None:
    blocks = blocks_of(ROOT / page)
    run = [block for block in blocks if not block.not_run and (slow or not block.slow)]
    for block in blocks:
        if block.not_run:
            print(f"{block} is not run: {block.not_run}")
    if all(block.language == "text" and not block.file for block in run):
        return
    monkeypatch.setattr("zoomfeat.models.weights.hf_hub_download", lambda repository, file, revision: str(hub / file))
    names = {}
    for make in INPUTS.get(page, ()):
        names |= make(folder) or {}
    session = Session(names)
    for block in run:
        print(f"--- {block}")
        session.run(block)


def _problems(command: str) -> list[str]:
    try:
        check_command(command)
    except (ZoomfeatError, ValueError) as error:
        return [str(error)]
    return []

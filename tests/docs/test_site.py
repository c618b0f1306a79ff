"""The site is built strictly, and every link inside it leads somewhere, to the heading that it names."""

from __future__ import annotations

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.docs.blocks import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Links(HTMLParser):
    """Where a page leads, what it loads, and the names of its places."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.places: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.places |= {str(found[name]) for name in ("id", "name") if found.get(name)}
        if found.get("href") and tag != "base":
            (self.links if tag == "a" else self.loads).append(str(found["href"]))
        if found.get("src"):
            self.loads.append(str(found["src"]))


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> dict[Path, Links]:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return {page: Links(page) for page in sorted(folder.rglob("*.html"))}


def test_no_link_inside_is_dead(site):
    dead = []
    for page, found in site.items():
        for link in (*found.links, *found.loads):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or page.name == "404.html":
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            target = target / "index.html" if target.is_dir() else target
            place = unquote(parts.fragment)
            if not target.exists():
                dead.append(f"{page.name}: {link}: no such file")
            elif place and not place.startswith("__") and target in site and place not in site[target].places:
                dead.append(f"{page.name}: {link}: no such heading")
    assert not dead, "\n".join(dead)


def test_a_page_loads_nothing_from_elsewhere(site):
    loaded = {link for found in site.values() for link in found.loads if urlsplit(link).netloc}
    assert not loaded


def test_notebooks_and_commands_are_pages(site):
    names = {page.name for page in site}
    assert {"bags-to-auc.html", "guidance-and-superres.html", "cli.html", "faq.html", "errors.html"} <= names

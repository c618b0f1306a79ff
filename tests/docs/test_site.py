"""The site is built strictly; every link inside leads to the heading that it names, and what one looks for is found."""

from __future__ import annotations

import functools
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
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


GUIDES = {
    "cohorts", "magnification", "tissue", "encoders", "features", "bags", "mil", "statistics", "explain", "benchmarks",
    "generation", "training", "clusters", "offline",
}  # fmt: skip


def test_every_guide_is_in_the_navigation_of_every_page(site):
    pages = {page.name: found for page, found in site.items()}
    wanted = {f"{name}.html" for name in GUIDES | {"how-it-works", "performance", "reliability", "faq", "bag-format"}}
    wanted |= {"first-hour.html", "cli.html", "python.html", "errors.html"}
    assert wanted <= pages.keys()
    for name in ("index.html", "faq.html", "cli.html"):
        led_to = {Path(urlsplit(link).path).name for link in pages[name].links}
        assert wanted - {name} <= led_to


@pytest.fixture
def address(site) -> Iterator[str]:
    """Of a server of the site: browsers do not let pages from disk search."""
    folder = next(page.parent for page in site if page.name == "404.html")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *words: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("words", "page"),
    [
        ("manifest", "cohorts.html"),
        ("um/px", "magnification.html"),
        ("DeLong", "statistics.html"),
        ("slurm", "clusters.html"),
        ("parent_5x", "bag-format.html"),
        ("min_tissue", "cli.html"),
    ],
)
def test_the_search_finds_the_page(address, browser, words, page):
    from selenium.webdriver.support.wait import WebDriverWait

    browser.get(f"{address}/index.html")
    browser.find_element("css selector", "[data-md-component=search-query]").send_keys(words)
    found = WebDriverWait(browser, 60).until(
        lambda window: window.find_elements("css selector", ".md-search-result__link")
    )
    assert page in {Path(urlsplit(link.get_attribute("href")).path).name for link in found}


@pytest.mark.parametrize("name", ["index", "errors", "encoders", "reference/cli", "how-it-works", "first-hour"])
def test_pictures_load_and_nothing_runs_off_the_page(address, browser, name):
    browser.get(f"{address}/{name}.html")
    widths = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert widths[0] <= widths[1]
    absent = browser.execute_script(
        "return [...document.images].filter(image => image.complete && !image.naturalWidth).map(image => image.src)"
    )
    assert not absent


def test_notebooks_and_commands_are_pages(site):
    names = {page.name for page in site}
    assert {"bags-to-auc.html", "guidance-and-superres.html", "cli.html", "faq.html", "errors.html"} <= names

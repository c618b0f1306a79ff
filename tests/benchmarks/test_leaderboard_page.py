"""The page of the leaderboard in a real browser."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from benchmarks.leaderboard import Board
from benchmarks.record import Record
from benchmarks.site import make_site
from mil.metrics import LOWER_IS_BETTER


@pytest.fixture
def opened(site, open_page):
    page = open_page(site.page)
    page.run("location.hash = '#task-1'")
    return page


def column(page, title: str) -> list[str]:
    """What the shown rows of the first task show in a column, in their order."""
    return page.run(
        """
        const section = document.querySelector('#task-1');
        const heads = [...section.querySelectorAll('.results thead th')];
        const at = heads.findIndex((th) => th.textContent.trim() === arguments[0]);
        return [...section.querySelectorAll('.results tbody:not([hidden])')].map((body) =>
          body.rows[0].cells[at].firstChild.textContent.trim() || body.rows[0].cells[at].textContent.trim());
        """,
        title,
    )


def sort_by(page, title: str) -> str:
    """Presses a heading, and gives what it says of its order then."""
    return page.run(
        """
        const heads = [...document.querySelectorAll('#task-1 .results thead th')];
        const head = heads.find((th) => th.textContent.trim() === arguments[0]);
        head.querySelector('button').click();
        return head.getAttribute('aria-sort');
        """,
        title,
    )


def test_sorting(opened, board):
    values = [row.entry.record.metrics["auroc"].value for row in board.standings]
    assert column(opened, "AUROC") == [f"{value:.3f}" for value in values]
    assert sort_by(opened, "AUROC") == "ascending"
    assert column(opened, "AUROC") == [f"{value:.3f}" for value in sorted(values)]
    brier = sorted(row.entry.record.metrics["brier"].value for row in board.standings)
    assert "brier" in LOWER_IS_BETTER
    assert sort_by(opened, "Brier") == "ascending"  # the better end first
    assert column(opened, "Brier") == [f"{value:.3f}" for value in brier]
    assert sort_by(opened, "Brier") == "descending"
    assert column(opened, "Brier") == [f"{value:.3f}" for value in brier[::-1]]
    states = opened.run("return [...document.querySelectorAll('#task-1 th[aria-sort]')].map((th) => th.ariaSort)")
    assert sorted(set(states)) == ["descending", "none"]
    assert states.count("descending") == 1
    # Text, with what is missing at the end either way.
    for _ in range(2):
        sort_by(opened, "Licence")
        assert column(opened, "Licence")[-1] == "not stated"
    assert opened.errors() == []


def test_headings_sort_by_keyboard(opened, board):
    from selenium.webdriver.common.keys import Keys

    button = opened.browser.find_element("css selector", "#task-1 .results thead button")
    opened.run("arguments[0].focus()", button)
    button.send_keys(Keys.ENTER)
    shown = opened.run(
        "return [...document.querySelectorAll('#task-1 .results tbody th')].map((th) => th.dataset.value)"
    )
    assert shown == sorted((row.entry.record.encoder.name for row in board.standings), key=str.lower)


def visible(page) -> list[list[str]]:
    """Records shown in the table, the forest plot, and the rows and columns of the matrix of the first task."""
    return page.run(
        """
        const section = document.querySelector('#task-1');
        const ids = (selector, key) => [...section.querySelectorAll(selector)]
          .filter((e) => e.getClientRects().length).map((e) => e.dataset[key]).sort();
        return [ids('.results tbody', 'record'), ids('.forest g[data-record]', 'record'),
          ids('.matrix tbody tr', 'record'), ids('.matrix thead th', 'column')];
        """
    )


def expected(board: Board, keep: Callable[[Record], bool]) -> list[str]:
    return sorted(row.entry.record.hash[:12] for row in board.standings if keep(row.entry.record))


def choose(page, id: str, value: str) -> None:
    page.run(
        "const e = document.getElementById(arguments[0]); e.value = arguments[1]; "
        "e.dispatchEvent(new Event('input', {bubbles: true}))",
        id,
        value,
    )


def test_filters(opened, board):
    everything = expected(board, lambda record: True)
    assert visible(opened) == 4 * [everything]
    opened.click("input[name=magnification][value='20x']")
    assert visible(opened) == 4 * [expected(board, lambda record: record.magnification != "20x")]
    opened.click("input[name=magnification][value='20x']")
    choose(opened, "head", "abmil")
    assert visible(opened) == 4 * [expected(board, lambda record: record.head.name == "abmil")]
    choose(opened, "head", "")
    choose(opened, "licence", "CC BY-NC-ND 4.0")
    assert visible(opened) == 4 * [expected(board, lambda record: record.encoder.licence == "CC BY-NC-ND 4.0")]
    assert opened.text("count") == "1 of 13 results shown"
    choose(opened, "licence", "not stated")
    assert visible(opened) == 4 * [expected(board, lambda record: record.encoder.licence is None)]
    choose(opened, "licence", "")
    choose(opened, "search", "SECOND")
    assert visible(opened) == 4 * [expected(board, lambda record: record.encoder.name == "second-encoder")]
    choose(opened, "search", "no such encoder")
    assert visible(opened) == [[]] * 4
    opened.click("#filters button[type=reset]")
    time.sleep(0.05)
    assert visible(opened) == 4 * [everything]
    assert opened.text("count") == "13 of 13 results shown"
    assert opened.errors() == []


def test_forest_plot_closes_up_and_stands_where_it_says(opened, board):
    rows = """
        return [...document.querySelectorAll('#task-1 .forest g[data-record]:not([hidden])')].map((g) => {
          const box = (e) => { const r = e.getBoundingClientRect(); return [r.left, r.right, r.top]; };
          const text = g.querySelectorAll('text')[1].textContent;
          return [box(g.querySelector('.point')), box(g.querySelector('.whisker')), text];
        });
    """
    found = opened.run(rows)
    values = [row.entry.metrics["auroc"] for row in board.standings]
    assert [text for *_, text in found] == [str(value) for value in values]
    middles = np.array([(left + right) / 2 for (left, right, _), *_ in found])
    # The scale of the axis from the first and last row; every other place must follow from it.
    numbers = np.array([value.value for value in values])
    scale, start = np.polyfit(numbers[[0, -1]], middles[[0, -1]], 1)
    np.testing.assert_allclose(middles, start + scale * numbers, atol=0.5)
    ends = np.array([[left, right] for _, (left, right, _), _ in found])
    wanted = np.array([[value.low, value.high] for value in values])
    np.testing.assert_allclose(ends, start + scale * wanted, atol=1.5)  # half a line's width

    before = opened.run("return document.querySelector('#task-1 .forest').getBoundingClientRect().height")
    choose(opened, "head", "abmil")
    tops = np.array([top for (*_, top), *_ in opened.run(rows)])
    gaps = np.diff(tops)
    np.testing.assert_allclose(gaps, gaps[0], atol=0.1)
    assert opened.run("return document.querySelector('#task-1 .forest').getBoundingClientRect().height") < before


def test_tooltips_by_pointer_and_keyboard(opened, board):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    def tip() -> str | None:
        opened.settle()
        return opened.run("const tip = document.getElementById('tip'); return tip.hidden ? null : tip.textContent")

    assert tip() is None
    cell = opened.browser.find_element("css selector", "#task-1 .matrix tbody tr td:last-child")
    ActionChains(opened.browser).scroll_to_element(cell).move_to_element(cell).perform()
    best, worst = board.standings[0], board.standings[-1]
    found = worst.against_best.tested.difference
    lines = tip().split("\n")
    assert lines[:2] == [best.name, f"less {worst.name}"]
    assert lines[2].startswith(f"{-found.difference:+.3f} [{-found.high:+.3f}, {-found.low:+.3f}], 48 patients")
    assert lines[3].startswith("DeLong: p ")
    assert lines[4].startswith("On other folds")
    assert cell.get_attribute("aria-describedby") == "tip"
    ActionChains(opened.browser).move_to_element(opened.browser.find_element("id", "tip")).perform()
    assert tip().split("\n") == lines  # it stays while the pointer is on it
    ActionChains(opened.browser).move_to_element(opened.browser.find_element("css selector", "h1")).perform()
    assert tip() is None

    # One stop of the tab key, then arrows; Escape closes.
    stops = opened.run("return document.querySelectorAll('#task-1 .matrix [tabindex=\"0\"]').length")
    assert stops == 1
    first = opened.browser.find_element("css selector", "#task-1 .matrix [tabindex='0']")
    opened.run("arguments[0].focus()", first)
    first.send_keys(Keys.ARROW_RIGHT)
    assert tip().split("\n")[:2] == [best.name, f"less {board.standings[1].name}"]
    opened.browser.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    assert tip() == board.standings[1].name  # the diagonal
    opened.browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert tip() is None

    mark = opened.browser.find_element("css selector", "#task-1 .forest [tabindex='0']")
    opened.run("arguments[0].focus()", mark)
    mark.send_keys(Keys.ARROW_DOWN)
    assert tip().startswith(f"{board.standings[1].name}\nAUROC ")
    heading = opened.browser.find_element("css selector", "#task-1 .results thead .number button")
    opened.run("arguments[0].focus()", heading)
    assert tip().startswith("Chance that a random positive patient")
    assert opened.errors() == []


def shown_texts(page, selector: str) -> list[str]:
    return [e.text.strip() for e in page.browser.find_elements("css selector", selector) if e.is_displayed()]


def test_provenance_and_columns(opened, board):
    record = board.standings[0].entry.record
    button = opened.browser.find_element("css selector", "#task-1 .more")
    details = opened.browser.find_element("id", button.get_attribute("aria-controls"))
    assert not details.is_displayed()
    opened.run("arguments[0].click()", button)
    assert button.get_attribute("aria-expanded") == "true"
    text = details.text
    for part in (
        record.hash,
        record.encoder.weights_hash,
        record.task.version,
        "mid, up_blocks.0",
        "a processor",
        "3.11",
    ):
        assert part in text
    assert (
        details.find_element("css selector", "a[download]").get_attribute("href").endswith(f"{record.hash[:12]}.json")
    )
    opened.run("arguments[0].click()", button)
    assert not details.is_displayed()

    opened.click("#task-1 [data-hides=cost]")
    heads = shown_texts(opened, "#task-1 thead th")
    assert "FLOPs/patch" not in heads
    assert {"AUROC", "Brier", "Licence"} <= set(heads)
    opened.click("#task-1 [data-hides=cost]")
    assert column(opened, "Parameters")[0] == "12.3 M"
    assert column(opened, "FLOPs/patch")[0] == "4.2 G"
    assert column(opened, "Patches/s")[0] == "12.5"
    assert column(opened, "GB per slide")[0] == "4e-05"


def test_csv_of_what_is_shown(opened, site, board, tmp_path):
    opened.browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    sort_by(opened, "AUROC")
    choose(opened, "head", "mean")
    opened.click("#task-1 button.csv")
    for _ in range(100):
        if (path := tmp_path / "bags.csv").exists():
            break
        time.sleep(0.05)
    shown, whole = pd.read_csv(path), pd.read_csv(site.table, nrows=len(board.standings))
    ascending = whole[whole["head"] == "mean"].sort_values("auroc", kind="stable").reset_index(drop=True)
    pd.testing.assert_frame_equal(shown, ascending)
    assert opened.errors() == []


def test_one_task_at_a_time(opened):
    def shown() -> list[str]:
        sections = opened.browser.find_elements("css selector", "section.task")
        return [section.get_attribute("data-name") for section in sections if section.is_displayed()]

    assert shown() == ["bags"]
    opened.run("document.querySelectorAll('.tasks a')[1].click()")
    assert shown() == ["restoring 20x"]
    assert opened.run("return document.querySelector('.tasks [aria-current=true]').textContent") == "restoring 20x"
    text = opened.run("return document.getElementById('task-2').textContent")
    assert "Bicubic <b> · 20x" in text
    assert "ours " in text
    opened.run("document.querySelector('header a').click()")  # to the refused files; the task stays
    assert shown() == ["restoring 20x"]
    assert opened.errors() == []


def test_page_of_refused_files_alone(tmp_path, open_page):
    """A name of a file that is a program, too."""
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "<img src=x onerror=alert(1)>.json").write_text("{")
    page = open_page(make_site(folder, tmp_path / "site", Console(quiet=True)).page)
    assert page.run("return document.querySelector('#refused td').textContent") == "<img src=x onerror=alert(1)>.json"
    assert page.run("return document.querySelector('#refused li').textContent").startswith("file: Invalid JSON")
    assert page.errors() == []


def test_no_request_leaves_the_page(site, open_page):
    opened = open_page(site.page)
    requests = opened.requests()
    assert requests[0] == site.page.as_uri()
    assert all(address == site.page.as_uri() or address.startswith("data:") for address in requests)
    assert opened.run("return [document.images.length, document.querySelectorAll('script').length]") == [0, 2]
    assert opened.errors() == []


_CONTRASTS = """
    const channels = (text) => text.match(/[\\d.]+/g).map(Number);
    const luminance = ([r, g, b]) => { // WCAG 2.2, relative luminance
      const linear = [r, g, b].map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
      return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
    };
    const behind = (element) => {
      for (let e = element; e; e = e.parentElement) {
        const colour = channels(getComputedStyle(e).backgroundColor);
        if (colour.length < 4 || colour[3] > 0) return colour;
      }
      return [255, 255, 255];
    };
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const found = [];
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
      const element = node.parentElement;
      if (!node.textContent.trim() || !element.getClientRects().length || element.closest('script, style')) continue;
      const style = getComputedStyle(element);
      const text = channels(element.closest('svg') ? style.fill : style.color);
      const [low, high] = [luminance(text), luminance(behind(element))].sort((a, b) => a - b);
      found.push([(high + 0.05) / (low + 0.05), element.outerHTML.slice(0, 80)]);
    }
    return found;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(opened, scheme):
    """Text has 4.5 to 1 or more against what is behind it (WCAG 2.2, AA)."""
    opened.browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    try:
        opened.click("#task-1 .more")
        found = opened.run(_CONTRASTS)
        background = opened.run("return getComputedStyle(document.body).backgroundColor")
    finally:
        opened.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert (sum(map(int, re.findall(r"\d+", background))) < 3 * 128) == (scheme == "dark")
    assert len(found) > 200
    assert [line for line in found if line[0] < 4.5] == []


def test_focus_shows_and_the_page_is_never_wider_than_its_window(opened):
    outline = opened.run(
        """
        const button = document.querySelector('#task-1 .results thead button');
        button.focus({ focusVisible: true });
        const style = getComputedStyle(button);
        return [style.outlineStyle, style.outlineWidth];
        """
    )
    assert outline == ["solid", "2px"]
    for width in (1400, 600, 360):
        opened.browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False},
        )
        opened.settle()
        assert opened.run("return document.documentElement.scrollWidth") <= width
    opened.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

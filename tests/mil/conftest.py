"""What the tests of predict, explain and the page share: a small study on disk, and a browser."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mil.estimators import MILClassifier
from zoomfeat.cli import main
from zoomfeat.slides.synthetic import make_slide


@dataclass(frozen=True)
class Study:
    """A small study on disk.

    Attributes:
        slides: four synthetic slides, ``case.0.tiff`` to ``case.3.tiff``.
        bags: theirs at 20x and 5x, of colour statistics.
        models: three classifiers of other seeds.
    """

    slides: Path
    bags: Path
    models: Path

    @property
    def model(self) -> Path:
        """One of the models."""
        return self.models / "seed-0.safetensors"


@pytest.fixture(scope="session")
def study(tmp_path_factory) -> Study:
    """Four slides of 0.4 um/px, so that patches are 320 level-0 px, with bags and models; never written to."""
    root = tmp_path_factory.mktemp("study")
    made = Study(root / "slides", root / "bags", root / "models")
    for folder in (made.slides, made.models):
        folder.mkdir()
    for number in range(4):
        make_slide(made.slides / f"case.{number}.tiff", seed=number, size=(1700, 1500), mpp=0.4)
    assert main(["extract", f"slides={made.slides}", f"out={made.bags}", "encoder=color-stats", "min_tissue=0.2"]) == 0
    paths = sorted(made.bags.glob("*.h5"))
    for seed in range(3):
        model = MILClassifier(seed=seed, epochs=3, width=8).fit(paths, np.array(["IDC", "ILC"] * 2))
        model.save(made.models / f"seed-{seed}.safetensors")
    return made


@pytest.fixture(scope="session")
def browser(tmp_path_factory) -> Iterator:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium and chromedriver here: the page is not opened in a browser")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        "headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "disable-quic", "no-first-run",
        "disable-background-networking", "disable-component-update", "disable-sync", "window-size=1400,1000",
        f"user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    session = webdriver.Chrome(options=options, service=Service(driver))
    yield session
    session.quit()


class Page:
    """What the tests do on an open page."""

    def __init__(self, browser, path: Path) -> None:
        self.browser = browser
        for kind in ("browser", "performance"):  # of the page before
            browser.get_log(kind)
        browser.get(path.as_uri())
        self.settle()

    def settle(self) -> None:
        """Waits until what was asked for is drawn."""
        self.browser.execute_async_script(
            "const done = arguments[0], next = requestAnimationFrame; next(() => next(() => next(done)));"
        )

    def run(self, script: str, *values: object) -> object:
        result = self.browser.execute_script(script, *values)
        self.settle()
        return result

    def click(self, selector: str) -> None:
        self.run("document.querySelector(arguments[0]).click()", selector)

    def slide(self, id: str, value: int) -> None:
        self.run(
            "const e = document.getElementById(arguments[0]); e.value = arguments[1]; "
            "e.dispatchEvent(new Event('input', {bubbles: true}))",
            id,
            value,
        )

    def pixels(self) -> np.ndarray:
        """What the canvas shows, (H, W, 3)."""
        url = self.run("return document.getElementById('slide').toDataURL('image/png')")
        image = Image.open(io.BytesIO(base64.b64decode(str(url).split(",")[1])))
        return np.asarray(image.convert("RGB")).astype(int)

    def text(self, id: str) -> str:
        return str(self.run("return document.getElementById(arguments[0]).textContent", id))

    def errors(self) -> list:
        return self.browser.get_log("browser")

    def requests(self) -> list[str]:
        """Addresses of all that was asked for."""
        messages = (json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance"))
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


@pytest.fixture
def open_page(browser) -> Callable[[Path], Page]:
    return lambda path: Page(browser, path)

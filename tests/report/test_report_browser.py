"""The report in Chromium: nothing fails, nothing is fetched, everything can be seen, at a desk and on a phone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytest.importorskip("selenium", reason="needs selenium")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver")

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip
# Per figure, the sizes in pixels of its picture, and of its texts that have none.
MEASURE_FIGURES = """
const size = element => { const box = element.getBoundingClientRect(); return [box.width, box.height]; };
return [...document.querySelectorAll("figure")].map(figure => {
  const svg = figure.querySelector("svg");
  const texts = [...svg.querySelectorAll("text")];
  return {
    name: figure.closest("section").id, svg: size(svg), caption: size(figure.querySelector("figcaption")),
    texts: texts.filter(text => size(text).every(length => length > 0)).map(text => text.textContent),
    hidden: texts.filter(text => !size(text).every(length => length > 0)).map(text => text.textContent),
    legend: [...svg.querySelectorAll("g[id*=legend_]")].map(size), fonts: texts.map(text => size(text)[1]),
  };
});
"""
# What reaches over the page's right edge, other than inside a box that scrolls.
OVERFLOWING = """
const width = document.documentElement.clientWidth;
return [...document.body.querySelectorAll("*")]
  .filter(element => !element.parentElement.closest(".scroll") && element.getBoundingClientRect().right > width + 1)
  .map(element => element.outerHTML.slice(0, 80));
"""


@pytest.fixture(scope="module")
def browser(paper_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless Chromium that shows the report."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        driver.get((paper_run / "report.html").as_uri())
        yield driver
    finally:
        driver.quit()


def resize(browser: Any, width: int) -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def test_no_error_and_no_request(browser: Any, paper_run: Path) -> None:
    assert browser.title == "Llama-3.2-3B: language-specific neurons"
    assert browser.get_log("browser") == []
    page = (paper_run / "report.html").as_uri()
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    urls = {request["request"]["url"] for request in requests if request["documentURL"] == page}
    assert {url for url in urls if not url.startswith("data:")} == {page}


@pytest.mark.parametrize("width", [1280, 400])
def test_every_figure_can_be_seen(browser: Any, width: int) -> None:
    resize(browser, width)
    figures = browser.execute_script(MEASURE_FIGURES)
    names = ["layers", "allocation", "overlap", "scores", "components", "similarity"]
    assert [figure["name"] for figure in figures] == names
    for figure in figures:
        assert min(figure["svg"]) > 200
        assert min(figure["caption"]) > 10
        assert figure["hidden"] == []
        assert len(figure["texts"]) > 10
        assert min(figure["fonts"]) > 7, "pixels"
        assert all(min(size) > 10 for size in figure["legend"])
        assert figure["legend"] or figure["name"] in ("overlap", "components"), "which have a colour bar"


@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_is_wider_than_the_page(browser: Any, width: int) -> None:
    resize(browser, width)
    for details in browser.find_elements("tag name", "details"):
        browser.execute_script("arguments[0].open = true", details)
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    assert browser.execute_script(OVERFLOWING) == []


def test_figures_and_tables_fit_a_desk_and_figures_scroll_on_a_phone(browser: Any) -> None:
    script = "return [...document.querySelectorAll(arguments[0])].map(box => box.scrollWidth > box.clientWidth)"
    resize(browser, 1280)
    assert set(browser.execute_script(script, ".scroll")) == {False}
    resize(browser, 400)
    assert set(browser.execute_script(script, "figure .scroll")) == {True}

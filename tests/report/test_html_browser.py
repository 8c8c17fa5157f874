"""The page in a real browser: quiet, alone, within the screen, legible in light and dark, the worst layer on top."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from headless_browser import CHROMIUM, CONTRAST, DESK, DRIVER, LEGIBLE, PHONE, Browser, chromium
from sample_reports import KINDS, renamed, report_of

from onnxshot.report.html.page import page

pytest.importorskip("selenium")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="there is no chromium with a chromedriver here")


class Pages(Browser):
    """A browser on pages given as text."""

    def __init__(self, driver: Any, folder: Path) -> None:
        super().__init__(driver)
        self._folder = folder

    def show(self, text: str, *, width: int = DESK, dark: bool = False) -> None:
        path = self._folder / "report.html"
        path.write_text(text, "utf-8")
        self.open(path.as_uri(), width=width, dark=dark)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    folder = tmp_path_factory.mktemp("browser")
    with chromium(folder) as driver:
        yield Pages(driver, folder)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_on_the_console_and_nothing_is_asked_of_the_network(browser: Pages, kind: str) -> None:
    browser.show(page(report_of(kind)))
    assert browser.console() == []
    first, *others = browser.requests("file://")
    assert first.startswith("file://")
    assert [url for url in others if not url.startswith("data:")] == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [PHONE, DESK])
def test_it_fits_the_screen(browser: Pages, kind: str, width: int) -> None:
    browser.show(page(renamed(report_of(kind))), width=width)  # whose names are long
    assert browser.run("return innerWidth") == width
    assert browser.run("return document.documentElement.scrollWidth") <= width
    browser.run("for (const part of document.querySelectorAll('details')) part.open = true")
    assert browser.run("return document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dark", [False, True])
def test_text_is_legible_in_light_and_dark(browser: Pages, kind: str, dark: bool) -> None:
    browser.show(page(report_of(kind)), dark=dark)
    assert browser.run("return matchMedia('(prefers-color-scheme: dark)').matches") is dark
    faint = browser.run(CONTRAST)
    assert faint[0][0] >= LEGIBLE, faint


def test_hostile_names_do_not_run(browser: Pages) -> None:
    browser.show(page(renamed(report_of("quantize"))))
    assert browser.run("return document.title") != "1"
    assert browser.run("return document.images.length") == 0
    assert browser.console() == []


def test_the_worst_layer_is_the_first_and_longest_and_named(browser: Pages) -> None:
    report = report_of("quantize")
    browser.show(page(report))
    names = browser.run(
        "return [...document.querySelectorAll('ol.bars:not(.plain) .name')].map((e) => e.firstChild.data)"
    )
    assert names == [row["tensor"] for row in report["worst"]]
    widths = browser.run(
        "return [...document.querySelectorAll('ol.bars:not(.plain) rect')].map((e) => e.getBoundingClientRect().width)"
    )
    assert widths[0] == max(widths) > 0
    assert browser.run("return document.querySelector('ol.bars li').textContent").count("worst") == 1


def test_tables_sort_and_lists_filter(browser: Pages) -> None:
    report = report_of("quantize")
    browser.show(page(report))
    column = "[...document.querySelectorAll('table.sortable tbody')][0].rows"
    browser.run("document.querySelectorAll('table.sortable th button')[1].click()")
    names = browser.run(f"return [...{column}].map((row) => row.cells[1].textContent)")
    assert sorted(names) == sorted(node["node"] for node in report["graph"])
    assert names != [node["node"] for node in report["graph"]]
    wanted = report["worst"][-1]["tensor"]
    browser.run(
        "const box = document.querySelector('.filterable input');"
        f"box.value = {json.dumps(wanted)}; box.dispatchEvent(new Event('input'))"
    )
    shown = browser.run(
        "return [...document.querySelectorAll('.filterable li:not([hidden]) .name')].map((e) => e.firstChild.data)"
    )
    assert wanted in shown
    assert len(shown) < len(report["worst"])


def test_it_is_readable_without_scripts(browser: Pages) -> None:
    browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.show(page(report_of("quantize")))
        assert browser.driver.find_element("css selector", ".verdict").text
        assert browser.driver.find_elements("css selector", "input") == []
        assert len(browser.driver.find_elements("css selector", "ol.bars li")) > 5
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})

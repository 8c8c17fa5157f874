"""The page in a real browser: quiet, alone, within the screen, legible in light and dark, the worst layer on top."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from reports import KINDS, renamed, report_of

from onnxshot.html.page import page

webdriver = pytest.importorskip("selenium.webdriver")
CHROMIUM, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="there is no chromium with a chromedriver here")

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
PHONE, DESK = 375, 1280
LEGIBLE = 4.5  # contrast of body text, WCAG 2.2 success criterion 1.4.3
CONTRAST = """
const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
const linear = (v) => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
const behind = (e) => {
  for (; e; e = e.parentElement) {
    const color = rgb(getComputedStyle(e).backgroundColor);
    if (color.length === 3 || color[3] === 1) return color;
  }
  return [255, 255, 255];
};
const found = [];
for (const part of document.querySelectorAll("details")) part.open = true;
for (const e of document.querySelectorAll("main *")) {
  if (![...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())) continue;
  const drawn = e.closest("svg") !== null;
  if (drawn && e.tagName !== "text") continue;
  const style = getComputedStyle(e);
  const [a, b] = [luminance(rgb(drawn ? style.fill : style.color)), luminance(behind(e))];
  found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.className.baseVal ?? e.className, e.textContent]);
}
return found.sort((a, b) => a[0] - b[0]).slice(0, 5);
"""


class Browser:
    """A headless browser that keeps what it was told on the console and what it asked the network for."""

    def __init__(self, driver: Any, folder: Path) -> None:
        self.driver, self._folder = driver, folder

    def open(self, text: str, *, width: int = DESK, dark: bool = False) -> None:
        path = self._folder / "report.html"
        path.write_text(text, "utf-8")
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.console()
        self.requests()
        self.driver.get(path.as_uri())

    def run(self, script: str) -> Any:
        return self.driver.execute_script(script)

    def console(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Addresses that the page asked for; what the browser does on its own behalf is not its business."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return [e["request"]["url"] for e in sent if e["documentURL"].startswith("file://")]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    folder = tmp_path_factory.mktemp("browser")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield Browser(driver, folder)
    driver.quit()


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_on_the_console_and_nothing_is_asked_of_the_network(browser: Browser, kind: str) -> None:
    browser.open(page(report_of(kind)))
    assert browser.console() == []
    first, *others = browser.requests()
    assert first.startswith("file://")
    assert [url for url in others if not url.startswith("data:")] == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [PHONE, DESK])
def test_it_fits_the_screen(browser: Browser, kind: str, width: int) -> None:
    browser.open(page(renamed(report_of(kind))), width=width)  # whose names are long
    assert browser.run("return innerWidth") == width
    assert browser.run("return document.documentElement.scrollWidth") <= width
    browser.run("for (const part of document.querySelectorAll('details')) part.open = true")
    assert browser.run("return document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dark", [False, True])
def test_text_is_legible_in_light_and_dark(browser: Browser, kind: str, dark: bool) -> None:
    browser.open(page(report_of(kind)), dark=dark)
    assert browser.run("return matchMedia('(prefers-color-scheme: dark)').matches") is dark
    faint = browser.run(CONTRAST)
    assert faint[0][0] >= LEGIBLE, faint


def test_hostile_names_do_not_run(browser: Browser) -> None:
    browser.open(page(renamed(report_of("quantize"))))
    assert browser.run("return document.title") != "1"
    assert browser.run("return document.images.length") == 0
    assert browser.console() == []


def test_the_worst_layer_is_the_first_and_longest_and_named(browser: Browser) -> None:
    report = report_of("quantize")
    browser.open(page(report))
    names = browser.run(
        "return [...document.querySelectorAll('ol.bars:not(.plain) .name')].map((e) => e.firstChild.data)"
    )
    assert names == [row["tensor"] for row in report["worst"]]
    widths = browser.run(
        "return [...document.querySelectorAll('ol.bars:not(.plain) rect')].map((e) => e.getBoundingClientRect().width)"
    )
    assert widths[0] == max(widths) > 0
    assert browser.run("return document.querySelector('ol.bars li').textContent").count("worst") == 1


def test_tables_sort_and_lists_filter(browser: Browser) -> None:
    report = report_of("quantize")
    browser.open(page(report))
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


def test_it_is_readable_without_scripts(browser: Browser) -> None:
    browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.open(page(report_of("quantize")))
        assert browser.driver.find_element("css selector", ".verdict").text
        assert browser.driver.find_elements("css selector", "input") == []
        assert len(browser.driver.find_elements("css selector", "ol.bars li")) > 5
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})

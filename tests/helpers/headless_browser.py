"""A headless browser that opens pages; `CHROMIUM` and `DRIVER` are None where none is installed."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM, DRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
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
for (const e of document.querySelectorAll("main :is(input:not([type=range], [type=checkbox]), select, textarea)")) {
  for (const part of e.placeholder ? [null, "::placeholder"] : [null]) {
    const [a, b] = [luminance(rgb(getComputedStyle(e, part).color)), luminance(behind(e))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), `${e.id}${part ?? ""}`, e.placeholder || e.value]);
  }
}
return found.sort((a, b) => a[0] - b[0]).slice(0, 5);
"""
CUT = """
const ink = document.createElement("canvas").getContext("2d");
const wider = (e) => { // than it has room for: of a select, any of its options
  const style = getComputedStyle(e);
  if (e.tagName !== "SELECT") return e.scrollWidth > e.clientWidth + 1 && style.display !== "inline";
  ink.font = style.font;
  const room = e.clientWidth - parseFloat(style.paddingLeft) - 24; // of the arrow
  return [...e.options].some((option) => ink.measureText(option.text).width > room);
};
const seen = (e) => e.getClientRects().length > 0 && !e.closest("svg") && !e.querySelector("iframe");
return [...document.querySelectorAll("main *")].filter(seen).filter(wider).map((e) => e.outerHTML.slice(0, 200));
"""


class Browser:
    """A headless browser that keeps what it was told on the console and what it asked the network for."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, url: str, *, width: int = DESK, dark: bool = False) -> None:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.execute_cdp_cmd("Emulation.setFocusEmulationEnabled", {"enabled": True})
        self.console()
        self.requests("")
        self.driver.get(url)

    def run(self, script: str) -> Any:
        return self.driver.execute_script(script)

    def console(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self, page: str) -> list[str]:
        """Addresses that pages below `page` asked for; what the browser does for itself is not their business."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return [e["request"]["url"] for e in sent if e["documentURL"].startswith(page)]


@contextmanager
def chromium(folder: Path) -> Iterator[Any]:
    """A driver of a fresh browser, whose profile and downloads are in the folder, until the block ends."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(folder)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()

"""The local page in a real browser: upload, run, look at the report, download; on a phone, in light and dark."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import onnx
import pytest
from fixture_data import fixture
from headless_browser import CHROMIUM, CONTRAST, DESK, DRIVER, LEGIBLE, PHONE, Browser, chromium

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("selenium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="there is no chromium with a chromedriver here"),
]

EVERYTHING_SHOWN = """
for (const e of document.querySelectorAll("main [hidden]")) e.hidden = false;
const low = (e) => e.getBoundingClientRect().height < 36; // what a thumb misses
return [
  document.documentElement.scrollWidth,
  getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number),
  [...document.querySelectorAll("button, select, .drop")].filter(low).map((e) => e.outerHTML),
];
"""
MODEL, PRESET = fixture("digits_mobile"), fixture("data/digits/preset.yaml")
SAMPLES = sorted(fixture("data/digits/calib").iterdir())


class Page(Browser):
    """A browser on the page, and the folder that its downloads go to."""

    def __init__(self, driver: Any, url: str, downloads: Path) -> None:
        super().__init__(driver)
        self.url, self.downloads = url, downloads

    def fresh(self, *, width: int = DESK, dark: bool = False) -> None:
        self.open(self.url, width=width, dark=dark)
        self.until(lambda: self.run("return document.querySelectorAll('#target option').length > 0"))

    def find(self, css: str) -> Any:
        return self.driver.find_element("css selector", css)

    def give(self, css: str, *paths: Path) -> None:
        self.find(css).send_keys("\n".join(map(str, paths)))

    def drop(self, css: str, path: Path) -> None:
        """Drop a file or a folder as a person does, from outside of the browser."""
        # Where it is seen, not where it is on the page: a page that is opened again may be scrolled as it was.
        at = self.run(
            f"const e = document.querySelector({json.dumps(css)}); e.scrollIntoView({{block: 'center'}});"
            "const box = e.getBoundingClientRect();"
            "return {x: box.x + box.width / 2, y: box.y + box.height / 2}"
        )
        carried = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.driver.execute_cdp_cmd("Input.dispatchDragEvent", {"type": kind, **at, "data": carried})

    def choose(self, css: str, value: object) -> None:
        """Choose a value as a person does, so that the page is told."""
        self.run(
            f"const e = document.querySelector({json.dumps(css)}); e.value = {json.dumps(str(value))};"
            "e.dispatchEvent(new Event('input', {bubbles: true}))"
        )

    def until(self, wanted: Callable[[], object]) -> None:
        for _ in range(1200):
            if wanted():
                return
            time.sleep(0.05)
        shown = self.find("main").text
        raise AssertionError(shown)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    environment = os.environ | {"TMPDIR": str(tmp_path_factory.mktemp("jobs"))}
    command = [sys.executable, "-m", "onnxshot", "ui", "--no-open", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
        process.terminate()


@pytest.fixture(scope="module")
def page(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("browser")
    with chromium(folder) as driver:
        yield Page(driver, url, folder)


def fill(page: Page, *samples: Path, level: float = 0) -> None:
    page.give("#model", MODEL)
    page.give("#calib", *samples)
    page.choose("#preset", "file")
    page.give("#preset-file", PRESET)
    page.choose("#level", level)


def test_a_person_drops_files_and_takes_the_result_home(page: Page, tmp_path: Path) -> None:
    page.fresh()
    assert not page.find("#run").is_enabled()
    fill(page, *SAMPLES[:16])
    assert "16 files" in page.find("main").text
    page.find("#run").click()
    assert page.find("#working").is_displayed()
    page.until(lambda: page.find("#result").is_displayed() or page.find("#failed").is_displayed())
    shown = page.find("#result").text
    assert "SQNR of the outputs" in shown, page.find("main").text

    page.driver.switch_to.frame(page.find("#report-frame"))
    page.until(lambda: page.driver.find_elements("css selector", ".verdict"))
    assert page.find("h1").text == MODEL.name
    assert page.run("try { return parent.document.title } catch (error) { return error.name }") == "SecurityError"
    page.driver.switch_to.default_content()

    page.find("#outputs a").click()
    made = page.downloads / f"{MODEL.stem}.int8.onnx"
    page.until(made.is_file)
    (tmp_path / "calib").mkdir()
    for sample in SAMPLES[:16]:
        shutil.copy(sample, tmp_path / "calib")
    command = [sys.executable, "-m", "onnxshot", "quantize", str(MODEL), "--calib", str(tmp_path / "calib")]
    options = ["--preset", str(PRESET), "-o", str(tmp_path / "net.onnx")]
    subprocess.run([*command, *options], check=True, capture_output=True)
    assert made.read_bytes() == (tmp_path / "net.onnx").read_bytes()

    page.driver.refresh()  # the result is still there
    page.until(lambda: page.find("#result").is_displayed())
    assert page.console() == []
    asked = [url for url in page.requests("http://127.0.0.1") if not url.startswith("data:")]
    assert {urlsplit(url).netloc for url in asked} == {urlsplit(page.url).netloc}


def test_folders_are_chosen_or_dropped_with_all_that_is_below(page: Page, tmp_path: Path) -> None:
    for name in ("digits/a", "digits/b", "net/weights"):
        (tmp_path / name).mkdir(parents=True)
    for i, sample in enumerate(SAMPLES[:16]):
        shutil.copy(sample, tmp_path / "digits" / "ab"[i % 2])
    (tmp_path / "digits" / ".DS_Store").write_bytes(b"-")
    made = tmp_path / "net" / "net.onnx"
    onnx.save(onnx.load(MODEL), made, save_as_external_data=True, location="weights/net.bin", size_threshold=100)

    page.fresh()
    page.give("#calib-folder", tmp_path / "digits")
    page.drop("#model", tmp_path / "net")
    page.until(lambda: "net/weights/net.bin" in page.find("main").text)
    assert "16 files" in page.find("main").text
    page.choose("#preset", "file")
    page.give("#preset-file", PRESET)
    page.find("#run").click()
    page.until(lambda: page.find("#result").is_displayed() or page.find("#failed").is_displayed())
    assert "net.int8.onnx" in page.find("main").text
    assert page.console() == []


@pytest.mark.parametrize("width", [PHONE, DESK])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_the_screen_and_is_as_dark_as_the_room(page: Page, width: int, dark: bool) -> None:
    page.fresh(width=width, dark=dark)
    wide, brightness, small = page.run(EVERYTHING_SHOWN)
    assert page.run("return innerWidth") == width
    assert wide <= width
    assert (max(brightness) < 60) is dark
    assert small == []
    faint = page.run(CONTRAST)
    assert faint[0][0] >= LEGIBLE, faint


def test_what_goes_wrong_is_told_and_a_cancel_leads_back(page: Page, tmp_path: Path) -> None:
    (tmp_path / "bad.zip").write_bytes(b"hello")
    page.fresh()
    fill(page, tmp_path / "bad.zip")
    page.find("#run").click()
    page.until(lambda: page.find("#failed").is_displayed())
    assert "bad.zip cannot be unpacked" in page.find("#why").text
    assert page.find("#run").is_enabled()

    page.fresh()
    fill(page, *SAMPLES[:64], level=1)
    page.find("#run").click()
    page.until(lambda: " of " in page.find("#doing").text and "sending" not in page.find("#doing").text)
    page.find("#cancel").click()
    page.until(lambda: page.find("#run").is_displayed() and page.find("#run").is_enabled())
    assert not page.find("#working").is_displayed()

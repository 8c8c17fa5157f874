"""The local page in a real browser: upload, run, look at the report, download; on a phone, in light and dark."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import onnx
import pytest
from fixture_data import fixture
from headless_browser import CHROMIUM, CONTRAST, CUT, DESK, DRIVER, LEGIBLE, PHONE, Browser, chromium

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("selenium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="there is no chromium with a chromedriver here"),
]

EVERYTHING_SHOWN = """
for (const e of document.querySelectorAll("main [hidden]")) e.hidden = false;
for (const e of document.querySelectorAll("main details")) e.open = true;
for (const e of document.querySelectorAll("main p:empty, main h2:empty")) e.textContent = "some words of it";
const low = (e) => e.getBoundingClientRect().height < 36; // what a thumb misses
return [
  document.documentElement.scrollWidth,
  getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number),
  [...document.querySelectorAll("button, select, summary, .drop, [type=number]")].filter(low).map((e) => e.outerHTML),
];
"""
FOCUS_SHOWN = """
const e = document.activeElement.closest(".drop, .folder") ?? document.activeElement;
const style = getComputedStyle(e);
return style.outlineStyle !== "none" || style.borderColor === "rgb(37, 99, 201)";
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

    def focused(self) -> str:
        """The id of what has the focus, or what it is named, or its text."""
        return str(
            self.run(
                "const e = document.activeElement;"
                "return e.id || e.getAttribute('aria-label') || e.textContent.trim() || e.tagName"
            )
        )

    def press(self, key: str) -> None:
        from selenium.webdriver import ActionChains

        ActionChains(self.driver).send_keys(key).perform()

    def ended(self) -> None:
        self.until(lambda: self.find("#result").is_displayed() or self.find("#failed").is_displayed())


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """The address of a server, and its process."""
    command = [sys.executable, "-m", "onnxshot", "ui", "--no-open", "--json"]
    environment = os.environ | {"TMPDIR": str(folder)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"], process
        process.terminate()
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("jobs")) as (address, _):
        yield address


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
    page.until(lambda: page.find("#run").is_enabled())  # once the guess is made


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
    shutil.copy(MODEL, tmp_path / "net" / "other.onnx")
    (tmp_path / "net" / "other.onnx.data").write_bytes(b"-")

    page.fresh()
    page.give("#calib-folder", tmp_path / "digits")
    page.drop("#model", tmp_path / "net")
    page.until(lambda: "net/weights/net.bin" in page.find("main").text)
    assert "16 files" in page.find("main").text
    offered = [option.text for option in page.find("#which").find_elements("css selector", "option")]
    assert offered == ["net/net.onnx", "net/other.onnx"]
    page.choose("#preset", "file")
    page.give("#preset-file", PRESET)
    page.until(lambda: page.find("#run").is_enabled())
    page.find("#run").click()
    page.until(lambda: " of 19, " in page.find("#doing").text)  # the other model stays
    page.ended()
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
    assert page.run(CUT) == []
    assert page.console() == []


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
    opacity = "(e) => getComputedStyle(e).opacity"
    inputs = page.run(f"return [...document.querySelectorAll(':is(.drop, .folder) input')].map({opacity})")
    assert set(inputs) == {"0"}, "the browser's own buttons lie over the names of the files"
    page.find("#cancel").click()
    page.until(lambda: page.find("#run").is_displayed() and page.find("#run").is_enabled())
    assert not page.find("#working").is_displayed()
    assert "Cancelled. The run was ended" in page.find("#noticed").text
    assert "nothing is kept" in page.find("#noticed").text


def test_the_preset_is_guessed_and_changed_and_help_is_there_by_keyboard(page: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    page.fresh()
    page.give("#model", MODEL)
    page.give("#calib", *SAMPLES[:16])
    page.until(lambda: page.find("#guess").is_displayed())
    assert "the model takes 1 × 28 × 28: no preset that ships fits" in page.find("#guess").text
    assert page.find("#preset").get_attribute("value") == "file"
    assert "channels: GRAY" in page.find("#preset-text").get_attribute("value")
    page.give("#preset-file", PRESET)
    page.until(lambda: page.find("#preset-text").get_attribute("value") == PRESET.read_text("utf-8"))
    page.choose("#preset-text", PRESET.read_text("utf-8") + "# mine")  # what was written last counts
    assert page.find("#preset-file").get_attribute("value") == ""
    page.choose("#preset", "imagenet")
    assert "The preset imagenet does not fit: input 'image' expects" in page.find("#before").text
    page.choose("#preset", "file")
    page.choose("#target", "tensorrt")
    assert "How fast TensorRT runs it is not measured" in page.find("#before").text
    page.choose("#target", "ort")
    assert page.find("#before").text == ""

    page.run("document.activeElement.blur()")
    met = []
    while not met or met[-1] != "run":
        page.press(Keys.TAB)
        met.append(page.focused())
        assert len(met) < 40, met
        if met[-1].startswith("What is this"):
            about = page.run("return document.activeElement.getAttribute('aria-controls')")
            assert not page.find(f"#{about}").is_displayed()
            page.press(Keys.ENTER)
            assert len(page.find(f"#{about}").text) > 40
            page.press(Keys.ESCAPE)
            assert not page.find(f"#{about}").is_displayed()
        elif met[-1].startswith("Goals"):
            page.press(Keys.ENTER)
        outline = (
            "const s = getComputedStyle(document.activeElement.closest('.drop, .folder') ?? document.activeElement);"
        )
        ring = page.run(f"{outline} return s.outlineStyle !== 'none' || s.borderColor === 'rgb(37, 99, 201)'")
        assert ring, f"where the focus is, is not seen at {met[-1]}"
    fields = {
        "model",
        "calib",
        "calib-folder",
        "preset",
        "preset-text",
        "target",
        "effort",
        "level",
        "min_sqnr",
        "accept",
    }
    assert fields <= set(met)
    page.press(Keys.ENTER)
    assert page.focused() == "doing"
    page.ended()
    page.until(lambda: page.focused() == "verdict")
    assert page.console() == []


def test_an_upload_is_guarded_and_a_run_is_found_again_in_another_tab(page: Page, tmp_path: Path) -> None:
    warns = "const e = new Event('beforeunload', {cancelable: true}); dispatchEvent(e); return e.defaultPrevented"
    slow = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": 300_000}
    (tmp_path / "weights.bin").write_bytes(bytes(3_000_000))
    page.fresh()
    assert not page.run(warns)
    fill(page, *SAMPLES[:64], level=1)
    page.give("#model", tmp_path / "weights.bin")  # beside the model, which stays chosen
    page.until(lambda: page.find("#run").is_enabled())
    page.driver.execute_cdp_cmd("Network.enable", {})
    page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", slow)
    page.find("#run").click()
    page.until(lambda: "sending file 2" in page.find("#doing").text)
    assert page.run(warns)
    page.driver.refresh()
    page.until(lambda: page.find("#notice").is_displayed())
    assert "no run has begun" in page.find("#noticed").text
    page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", {**slow, "uploadThroughput": -1})

    fill(page, *SAMPLES[:64], level=1)
    assert page.find("#effort").get_attribute("value") == ""
    page.find("#run").click()
    page.until(lambda: "so far" in page.find("#elapsed").text)
    assert not page.run(warns), "the run goes on without the page"
    first = page.driver.current_window_handle
    page.driver.switch_to.new_window("tab")
    page.fresh()
    page.until(lambda: page.find("#working").is_displayed())
    assert f"This is the run of {MODEL.name} for ort" in page.find("#noticed").text
    page.find("#cancel").click()
    page.until(lambda: "Cancelled. The run was ended" in page.find("#noticed").text)
    page.driver.close()
    page.driver.switch_to.window(first)
    page.until(lambda: "This run is over" in page.find("#noticed").text)
    assert page.find("#run").is_enabled()
    assert page.console() == []


def test_a_server_that_was_stopped_is_told_as_such(page: Page, tmp_path: Path) -> None:
    with serving(tmp_path) as (address, process):
        page.url, kept = address, page.url
        try:
            page.fresh()
            fill(page, *SAMPLES[:64], level=1)
            page.find("#run").click()
            page.until(lambda: "so far" in page.find("#elapsed").text)
            process.terminate()
            process.wait()
            page.until(lambda: page.find("#failed").is_displayed())
            assert "The server does not answer" in page.find("#why").text
            assert "run onnxshot ui again" in page.find("#remedy").text
        finally:
            page.url = kept
            page.console()

"""The page in a real browser: quiet, alone, within the screen, legible in light and dark, the worst layer on top."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from headless_browser import CHROMIUM, CONTRAST, CUT, DESK, DRIVER, LEGIBLE, PHONE, Browser, chromium
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


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_tooltips_and_the_bar_of_options_are_legible_and_nothing_is_cut(browser: Pages, width: int) -> None:
    for dark in (False, True):
        browser.show(page(renamed(report_of("quantize"))), width=width, dark=dark)
        browser.run("for (const part of document.querySelectorAll('details')) part.open = true")
        browser.run("document.querySelector('li[id] input').click()")
        browser.run("document.querySelector('.map [role=listbox]').focus()")
        assert browser.run(TIP)
        faint = browser.run(CONTRAST)
        assert faint[0][0] >= LEGIBLE, faint
        assert [e for e in browser.run(CUT) if not e.startswith('<div class="scroll"')] == []
        assert browser.run("return document.documentElement.scrollWidth") <= width
        tip = browser.run("const r = document.getElementById('tip').getBoundingClientRect(); return [r.left, r.right]")
        assert 0 <= tip[0] < tip[1] <= width


def test_hostile_names_do_not_run(browser: Pages) -> None:
    browser.show(page(renamed(report_of("quantize"))))
    assert browser.run("return document.title") != "1"
    assert browser.run("return document.images.length") == 0
    assert browser.console() == []


def test_the_worst_layer_is_the_first_and_longest_and_named(browser: Pages) -> None:
    report = report_of("quantize")
    browser.show(page(report))
    names = browser.run(
        "return [...document.querySelectorAll('ol.bars:not(.plain) .name')].map((e) => e.firstChild.textContent)"
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
        "const rows = document.querySelectorAll('.filterable li:not([hidden]) .name');"
        "return [...rows].map((e) => e.firstChild.textContent)"
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


# ---------------------------------------------------------------------- errors and nodes, tooltips, what to exclude

ACTIVE = "return document.activeElement.getAttribute('aria-activedescendant')"
TIP = "const tip = document.getElementById('tip'); return tip.hidden ? null : tip.textContent"


AT = "const r = document.querySelector('.cells .at, .cells .worst').getBoundingClientRect()"


def until(browser: Pages, script: str, value: object) -> None:
    """Wait until a script gives a value: jumps are events, which come a moment later."""
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser.driver, 5, poll_frequency=0.02).until(lambda _: browser.run(script) == value)


def press(browser: Pages, *keys: str) -> None:
    from selenium.webdriver import ActionChains, Keys

    actions = ActionChains(browser.driver)
    for key in keys:
        if key == "Shift+Space":
            actions.key_down(Keys.SHIFT).send_keys(" ").key_up(Keys.SHIFT)
        else:
            actions.send_keys(getattr(Keys, key, key))
    actions.perform()


def test_enter_on_an_error_goes_to_its_node_and_enter_there_back(browser: Pages) -> None:
    report = report_of("quantize")
    browser.show(page(report))
    browser.run("document.querySelector('#e2 a').focus()")
    press(browser, "ENTER")
    worst = report["worst"][2]
    place = next(i for i, node in enumerate(report["graph"]) if node["tensor"] == worst["tensor"])
    until(browser, ACTIVE, f"n{place}")
    told = browser.run(TIP)
    assert report["graph"][place]["node"] in told and f"{worst['sqnr_db']:.1f} dB" in told
    top, bottom = browser.run(f"{AT}; return [r.top, r.bottom]")
    assert 0 <= top < bottom <= browser.run("return innerHeight")
    press(browser, "ENTER")
    until(browser, "return document.activeElement.closest('li')?.id", "e2")
    assert browser.run("return location.hash") == "#e2"
    assert browser.run("return document.querySelector(':target').id") == "e2"
    browser.driver.back()
    until(browser, ACTIVE, f"n{place}")
    assert browser.console() == []


def test_the_map_is_one_stop_of_the_keyboard_and_escape_closes_its_tooltips(browser: Pages) -> None:
    report = report_of("quantize")
    browser.show(page(report))
    browser.run("document.querySelector('.map [role=listbox]').focus()")
    first = browser.run(TIP)
    assert report["graph"][0]["node"] in first
    press(browser, "ARROW_RIGHT", "ARROW_RIGHT")
    assert report["graph"][2]["node"] in browser.run(TIP)
    assert browser.run("return document.querySelectorAll('.cells .at').length") == 1
    press(browser, "ESCAPE")
    assert browser.run(TIP) is None
    press(browser, "END", "TAB")
    assert browser.run(TIP) is None
    assert browser.run("return document.activeElement.closest('[role=listbox]')") is None
    named = "return [...document.querySelectorAll('[role=option]')].map((e) => e.getAttribute('aria-label'))"
    assert all(browser.run(named))
    assert browser.run("return document.querySelectorAll('main title, main [title]').length") == 0


def test_the_first_touch_shows_a_tooltip_and_the_second_goes_to_the_error(browser: Pages) -> None:
    browser.show(page(report_of("quantize")), width=PHONE)
    worst = browser.run("const e = document.querySelector('.cells .worst'); e.scrollIntoView(); return e.id")
    x, y = browser.run(f"{AT}; return [r.x + r.width / 2, r.y + r.height / 2]")
    for shown in (f"#{worst}", "#e0"):
        for kind, points in (("touchStart", [{"x": x, "y": y}]), ("touchEnd", [])):
            browser.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        if shown != "#e0":
            assert "its error" in browser.run(TIP)
            assert browser.run("return location.hash") == ""
    until(browser, "return location.hash", "#e0")


def test_charts_along_the_network_tell_their_columns_to_keys(browser: Pages) -> None:
    for kind in ("quantize", "compare", "tune"):
        browser.show(page(report_of(kind)))
        for chart in ("svg.columns", "svg.scatter"):
            if browser.run(f"const e = document.querySelector('{chart}'); e?.focus(); return e !== null"):
                first = browser.run(TIP)
                press(browser, "ARROW_RIGHT")
                assert "dB" in first
                if browser.run(f"return document.querySelectorAll('{chart} [role=option]').length") > 1:
                    assert browser.run(TIP) not in ("", first)


def chosen(browser: Pages) -> list[str]:
    import shlex

    words = shlex.split(browser.run("return document.querySelector('#chosen textarea').value"))
    assert words[::2] == ["--exclude"] * (len(words) // 2)
    return words[1::2]


def test_what_is_chosen_is_copied_as_options_and_the_page_says_so(browser: Pages) -> None:
    report = renamed(report_of("quantize"))
    browser.show(page(report))
    how = {node["tensor"]: node for node in report["graph"]}
    rows = [i for i, row in enumerate(report["worst"]) if how[row["tensor"]]["how"] != "float"][:2]
    for i in rows:
        browser.run(f"document.querySelector('#e{i} input').click()")
    names = [how[report["worst"][i]["tensor"]]["node"] for i in rows]
    found = chosen(browser)
    assert [pattern.replace("[[]", "[") for pattern in found] == names
    assert browser.run("return document.querySelectorAll('.cells .out').length") == 2
    browser.run("document.querySelector('#chosen button').focus()")
    browser.driver.execute_cdp_cmd(
        "Browser.setPermission", {"permission": {"name": "clipboard-write"}, "setting": "denied"}
    )
    press(browser, "ENTER")
    assert browser.run("return document.querySelector('#chosen [role=status]').textContent") == "Copied 2"
    browser.run("const e = document.createElement('textarea'); e.id = 'pasted'; document.body.append(e); e.focus()")
    from selenium.webdriver import ActionChains, Keys

    ActionChains(browser.driver).key_down(Keys.CONTROL).send_keys("v").key_up(Keys.CONTROL).perform()
    pasted = browser.run("return document.getElementById('pasted').value")
    assert pasted == browser.run("return document.querySelector('#chosen textarea').value") != ""
    assert browser.console() == []


def test_a_block_is_chosen_by_its_glob_and_one_of_its_nodes_can_be_taken_back(browser: Pages) -> None:
    report = report_of("quantize")
    browser.show(page(report))
    name = "document.querySelector('.scope[data-x]')"
    glob, inside = browser.run(
        f"return [{name}.dataset.x, [...{name}.parentElement.querySelectorAll('a:not(.float)')].length]"
    )
    browser.run(f"{name}.click()")
    assert chosen(browser) == [glob]
    assert browser.run("return document.querySelectorAll('.cells .out').length") == inside > 1
    browser.run("document.querySelector('.map [role=listbox]').focus()")
    browser.run(f"{name}.parentElement.querySelector('a:not(.float)').click()")
    browser.run("document.querySelector('.map [role=listbox]').focus()")
    press(browser, " ")
    assert len(chosen(browser)) == inside - 1 and glob not in chosen(browser)
    press(browser, "Shift+Space", "Shift+Space")
    assert browser.run("return document.getElementById('chosen').hidden") is True


def test_focus_is_seen_wherever_the_tab_key_stops(browser: Pages) -> None:
    for dark in (False, True):
        browser.show(page(report_of("quantize")), dark=dark)
        stops = set()
        for _ in range(60):
            press(browser, "TAB")
            name, style, width = browser.run(
                "const e = document.activeElement, s = getComputedStyle(e);"
                "return [e.outerHTML.slice(0, 80), s.outlineStyle, parseFloat(s.outlineWidth)]"
            )
            if name.startswith("<body"):
                break
            stops.add(name)
            assert style != "none" and width >= 2, name
        assert len(stops) > 10


def test_it_prints_on_few_pages(browser: Pages) -> None:
    browser.show(page(report_of("quantize")))
    made = browser.driver.execute_cdp_cmd("Page.printToPDF", {"paperWidth": 8.27, "paperHeight": 11.69})
    pages = base64.b64decode(made["data"]).count(b"/Type /Page\n")
    assert 1 <= pages <= 3

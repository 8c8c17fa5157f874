"""Cards of results in notebooks: one element, escaped, without scripts, with the figures of the report; short reprs."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from fixture_data import fixture

import onnxshot
from onnxshot.report.report import Report

HOSTILE = "<script>alert(1)</script>"
QUICK = onnxshot.Settings(threads=1, use_cache=False, bench_seconds=0.02)


class Page(HTMLParser):
    """What a piece of HTML holds: its tags, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.depth = self.outermost = 0
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.outermost += self.depth == 0
        self.depth += 1
        self.tags.append(tag)
        assert all(name in ("style",) for name, _ in attrs), attrs

    def handle_endtag(self, tag: str) -> None:
        self.depth -= 1

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    model, out = fixture("digits_mobile"), tmp_path_factory.mktemp("out") / "net.int8.onnx"
    pictures = np.random.default_rng(0).normal(size=(12, 1, 28, 28)).astype(np.float32)
    result = onnxshot.quantize(model, pictures, output=out, effort="fast", settings=QUICK)
    return {
        "Result": result, "Report": result.report, "Plan": result.plan,
        "BenchResult": onnxshot.bench([model, out], pictures, seconds=0.02),
        "Replayed": onnxshot.replay(model, result, out.with_name("again.onnx"), calib=pictures),
        "Inspection": onnxshot.inspect(model), "Diff": onnxshot.diff(model, out),
    }  # fmt: skip


def test_cards_are_one_element_without_scripts_and_reprs_are_one_line(made: dict[str, Any]) -> None:
    for name, value in made.items():
        page = Page(value._repr_html_())
        assert (page.outermost, page.depth) == (1, 0), name
        assert not {"script", "style", "img", "a", "link"} & set(page.tags), name
        assert len(value._repr_html_()) < 20_000, name
        assert repr(value).startswith(f"{name}("), name
        assert "\n" not in repr(value), name
        assert len(repr(value)) < 300, name


def test_a_card_has_the_figures_of_the_report(made: dict[str, Any]) -> None:
    report = made["Result"].report
    text = Page(made["Result"]._repr_html_()).text
    agreement = f"{100 * report.agreement:.1f} %"
    for figure in (f"{report.sqnr_db:.1f} dB", agreement, report.worst[0].tensor, "MACs in int8"):
        assert figure in text
    assert f"{report.sqnr_db:.1f} dB" in repr(made["Result"])
    assert f"{sum(made['Inspection'].macs.values()):,}" in Page(made["Inspection"]._repr_html_()).text


def test_names_from_files_are_escaped() -> None:
    report = Report(f"{HOSTILE}.onnx", {}, notes=[HOSTILE], output_sqnr_db={HOSTILE: 1.0}, sqnr_db=1.0)
    html = report._repr_html_()
    assert "<script" not in html
    assert "&lt;script&gt;" in html

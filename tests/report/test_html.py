"""The report as a page: complete, closed to names that want more than to be shown, and true to its figures."""

import base64
import hashlib
import json
import math
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fixture_data import fixture
from fixture_runs import command, data_of
from sample_reports import HOSTILE, KINDS, NAME, renamed, report_of

from onnxshot.report.html import charts
from onnxshot.report.html.graph_map import graph_map
from onnxshot.report.html.headline import verdict
from onnxshot.report.html.markup import Markup, el, join
from onnxshot.report.html.page import page
from onnxshot.report.html.sections import runs_on, search, skipped
from onnxshot.report.html.tensor_errors import error_chart
from onnxshot.report.verdict import judge

HEADINGS = {
    "quantize": ["Error by layer", "Ranges", "The graph", "What stayed float", "Notes", "This run"],
    "tune": ["Error by layer", "Ranges", "The graph", "What the search found", "This run"],
    "prune": ["The graph", "Zeros by layer", "This run"],
    "shrink": ["Channels", "This run"],
    "compress": ["Stages", "Error by layer", "Ranges", "The graph", "Left alone", "Files", "This run"],
    "emit": ["Files", "This run"],
    "compare": ["Error by layer", "This run"],
    "sensitivity": ["What each node costs", "This run"],
    "targets": ["Error by layer", "The graph"],
}


class Parsed(HTMLParser):
    """What a browser would see: tags with their attributes, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str, kind: str = "") -> list[dict[str, str | None]]:
        """Attributes of the elements of a name, of a class where one is given."""
        return [a for name, a in self.tags if name == tag and (not kind or kind in (a.get("class") or "").split())]


# ---------------------------------------------------------------------- markup


def test_text_and_attributes_are_escaped_and_markup_is_not() -> None:
    inner = el("b", "<i>")
    assert el("a", inner, '"&', title="'\"><x>", data_x=1.5, hidden=True, lang=None) == (
        '<a title="&#x27;&quot;&gt;&lt;x&gt;" data-x="1.5" hidden><b>&lt;i&gt;</b>&quot;&amp;</a>'
    )
    assert join("<", [Markup("<br>"), ">"]) == "&lt;<br>&gt;"


# ---------------------------------------------------------------------- the whole page


@pytest.mark.parametrize("kind", KINDS)
def test_every_report_has_a_page_with_its_sections(kind: str) -> None:
    found = Parsed(page(report_of(kind)))
    at = [found.text.find(heading) for heading in HEADINGS[kind]]
    assert -1 not in at
    assert at == sorted(at)
    assert "None" not in found.text
    assert "nan" not in found.text.lower().split()


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_names_are_shown_and_do_nothing_else(kind: str) -> None:
    plain, hostile = Parsed(page(report_of(kind))), Parsed(page(renamed(report_of(kind))))
    assert HOSTILE in hostile.text
    counts = [Counter(tag for tag, _ in found.tags) for found in (plain, hostile)]
    assert counts[1]["img"] == 0
    assert counts[1]["script"] == counts[0]["script"] == 1
    assert counts[1].keys() == counts[0].keys()
    assert not [name for _, attributes in hostile.tags for name in attributes if name.startswith("on")]


def test_the_page_refers_to_nothing_and_allows_only_its_own_style_and_script() -> None:
    text = page(report_of("quantize"))
    found = Parsed(text)
    for _, attributes in found.tags:
        assert not attributes.keys() & {"src", "srcset", "action", "style"}
        assert (attributes.get("href") or "#") == "data:," or (attributes.get("href") or "#").startswith("#")
    assert "@import" not in text
    assert "url(" not in text
    (policy,) = (a["content"] for a in found.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        (inner,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_a_large_graph_keeps_the_page_small() -> None:
    report = {**report_of("quantize")}
    report["graph"] = [{**report["graph"][0], "node": f"block/{i}/conv", "tensor": str(i)} for i in range(20000)]
    report["worst"] = [{**report["worst"][0], "tensor": str(i), "values": None} for i in range(20000)]
    text = page(report)
    assert len(text) < 2_000_000
    assert "19000 better ones are in the JSON" in text
    assert "17000 nodes with the least work are not drawn" in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["quantize", "--effort", "fast"],
        ["prune", "--sparsity", "0.5"],
        ["compress", "--sparsity", "0.5", "--effort", "fast"],
        ["sensitivity"],
    ],
)
def test_commands_write_the_page(arguments: list[str], tmp_path: Path) -> None:
    name, *options = arguments
    data = data_of(NAME)
    given: list[Any] = ["--calib", data["calib"], "--preset", data["preset"], "--samples", 8, "--threads", 1]
    if name != "sensitivity":
        given += ["-o", tmp_path / "out.onnx"]
    assert command(name, fixture(NAME), *options, *given, "--report", tmp_path / "r" / "R.html") == 0
    assert Parsed((tmp_path / "r" / "R.html").read_text("utf-8")).all("title")


def test_compare_and_emit_write_it_too(tmp_path: Path) -> None:
    model, out = fixture(NAME), tmp_path / "net.onnx"
    assert command("emit", model, "-o", out, "--report", tmp_path / "emit.html") == 0
    assert command("compare", model, out, "--calib", "random", "--report", tmp_path / "compare.html") == 0
    assert command("compare", model, out, "--calib", "random", "--report", tmp_path / "compare.json") == 0
    for name in ("emit", "compare"):
        assert (tmp_path / f"{name}.html").read_text("utf-8").startswith("<!doctype html>")
    assert json.loads((tmp_path / "compare.json").read_text("utf-8"))["worst"]


# ---------------------------------------------------------------------- its figures


def test_bars_are_as_long_as_the_error_and_the_worst_stands_first() -> None:
    report = report_of("quantize")
    found = Parsed(error_chart(report["worst"], report["graph"]))
    bars = [a for tag, a in found.tags if tag == "rect" and a.get("height") == "100" and "x" not in a]
    errors = [10 ** (-row["sqnr_db"] / 20) for row in report["worst"]]
    assert [float(a["width"] or 0) for a in bars] == pytest.approx([1000 * e / errors[0] for e in errors], rel=1e-4)
    assert [a["class"] for a in bars].count("peak") == 1
    assert bars[0]["class"] == "peak"


def test_along_the_network_columns_are_in_the_order_of_the_graph() -> None:
    report = report_of("quantize")
    there = {row["tensor"]: row for row in report["worst"]}
    ordered = [there[node["tensor"]] for node in report["graph"] if node["tensor"] in there]
    found = Parsed(error_chart(report["worst"], report["graph"]))
    columns = [a for tag, a in found.tags if tag == "rect" and "x" in a]
    errors = [10 ** (-row["sqnr_db"] / 20) for row in ordered]
    tall = [max(100 * e / max(errors), 1) for e in errors]
    assert [float(a["height"] or 0) for a in columns] == pytest.approx(tall, rel=1e-4)


def test_a_histogram_marks_what_is_clipped() -> None:
    chart, least, most = charts.histogram([1, 5, 100, 5, 1], -5.0, 5.0, (-3.0, 6.0))
    assert (least, most) == (-5.0, 6.0)
    found = Parsed(chart)
    (kept,) = found.all("rect", "kept")
    assert float(kept["x"] or 0) == pytest.approx(1000 * 2 / 11, abs=0.01)
    assert float(kept["width"] or 0) == pytest.approx(1000 * 9 / 11, abs=0.01)
    (lost,), (plain,) = found.all("path", "lost"), found.all("path", "plain")
    bins = re.findall(r"M(\S+) 100v-(\S+?)h", f"{lost['d']}{plain['d']}")
    assert [float(x) for x, _ in bins] == pytest.approx([1000 * 2 * i / 11 for i in range(5)], abs=0.5)
    assert (lost["d"] or "").startswith("M0 ")  # -5..-3
    tall = [94 * math.log1p(n) / math.log1p(100) for n in (1, 5, 100, 5, 1)]
    assert [float(high) for _, high in bins] == pytest.approx(tall, abs=0.1)
    assert len(found.all("rect", "mark")) == 2


def test_a_scatter_plot_puts_points_where_the_axes_say() -> None:
    points = [charts.Point(1.0, 10.0, "a"), charts.Point(2.0, 20.0, "b", chosen=True), charts.Point(3.0, 30.0, "c")]
    found = Parsed(charts.scatter(points, "ms", "dB", y_limit=20.0))
    a, c, b = ((float(p["cx"] or 0), float(p["cy"] or 0)) for p in found.all("circle"))  # the chosen one on top
    assert b == pytest.approx(((a[0] + c[0]) / 2, (a[1] + c[1]) / 2), rel=1e-5)
    assert a[0] < c[0]
    assert a[1] > c[1]  # up is more
    (limit,) = found.all("line", "limit")
    assert float(limit["y1"] or 0) == pytest.approx(b[1])


def test_the_search_marks_the_candidate_that_was_written() -> None:
    rows = [
        {"exclude": [], "sqnr_db": 20.0, "bytes": 1e6, "latency_ms": None, "drop": None},
        {"exclude": ["a"], "sqnr_db": 25.0, "bytes": 2e6, "latency_ms": None, "drop": None},
        {"exclude": ["a", "b"], "sqnr_db": 140.0, "bytes": 4e6, "latency_ms": None, "drop": None},
    ]
    found = Parsed(search({"min_sqnr": 24.0, "reached": True, "candidates": 5}, rows, ["a"]))
    assert len(found.all("circle", "point")) == len(found.all("circle", "chosen")) == 1
    assert "size, MB" in found.text
    assert "140.0 dB" in found.text  # the float model itself is told, and not plotted


def test_the_verdict_says_what_speaks_against_the_result() -> None:
    report = {**report_of("quantize"), "latency": {}, "outputs": []}
    slow = {
        "path": "a.xml", "target": "openvino", "format": "openvino", "bytes": 1000, "latency": {"speedup": 0.7},
    }  # fmt: skip
    cases: list[tuple[dict[str, Any], str, str, str]] = [
        ({"latency": {"speedup": 1.5}, "agreement": 1.0}, "good", "Ready", "1.50× as fast as float"),
        ({"latency": {"speedup": 0.9, "float_ms": 2.0}}, "watch", "Look closer", "slower than the input: 0.90x"),
        ({"agreement": 0.5}, "bad", "Not good enough", "agreement is 50.0 %, below 95 %"),
        ({"outputs": [slow]}, "watch", "Look closer", "the openvino file is slower than the input in openvino"),
        ({"sqnr_db": 6.0206}, "bad", "Not good enough", "the error is 50 % of the signal"),
        ({"goal": {"missed": ["size is 2 MB"]}}, "bad", "Not good enough", "the goal was missed: size is 2 MB"),
    ]
    for changed, style, word, why in cases:
        values = {**report, **changed}
        judged = judge(values)
        found = Parsed(verdict({**values, "verdict": judged.to_dict()}))
        assert found.text.startswith(word), found.text
        assert why.lower() in found.text.lower()
        assert found.all("p", style), "the colour says the same"
        assert f"Next: {judged.next.removeprefix('ready: ')}" in found.text


def node(name: str, how: str = "static", sparsity: float | None = None, **more: Any) -> dict[str, Any]:
    shown = {"node": name, "op": "Conv", "how": how, "tensor": f"{name}.y", "macs_share": 0.1, "sparsity": sparsity}
    return {**shown, **more}


def test_cells_say_in_letters_and_classes_what_became_of_a_node_and_lead_to_its_row() -> None:
    rows = [node("a"), node("b", "dynamic", 0.0), node("c", "weights", 0.5), node("d", "half"), node("e", "float")]
    text = graph_map(rows, {"c.y": 12.0})
    cells = re.findall(r'<a href="#n(\d)" class="(.*?)">(.)</a>', text)
    kinds = ["static", "dynamic weighted", "weights weighted z5 worst", "half", "float"]
    assert cells == [(str(i), kind, letter) for i, (kind, letter) in enumerate(zip(kinds, "8dwhf", strict=True))]
    row = re.search(r'<tr id="n2">(.*?)</tr>', text)
    assert row is not None
    facts = Parsed(row[1].replace("</td>", "|")).text
    assert facts == "3|c|Conv|weights only|10.0 %|50.0 %|12.0 dB|"
    assert '<a href="#e0">12.0 dB</a>' in row[1]


@pytest.mark.parametrize("kind", KINDS)
def test_every_link_of_a_page_has_one_end_and_errors_and_nodes_lead_to_each_other(kind: str) -> None:
    found = Parsed(page(report_of(kind)))
    ids = Counter(a["id"] for _, a in found.tags if a.get("id"))
    assert set(ids.values()) <= {1}
    assert {a["href"] for a in found.all("a")} <= {f"#{key}" for key in ids}
    errors, nodes = ([key for key in ids if re.fullmatch(rf"(t\d)?{what}\d+", key or "")] for what in "en")
    if report_of(kind).get("graph") and report_of(kind)["worst"]:
        assert len(errors) == sum(len(rows) for rows in [report_of(kind)["worst"]])
        assert len(nodes) == len(report_of(kind)["graph"])


def test_the_pattern_of_a_row_matches_its_node_alone() -> None:
    rows = [node("a[0]"), node("Conv"), node("twice", tensor="t1"), node("twice", tensor="t2"), node("plain")]
    found = [a.get("data-x") for a in Parsed(graph_map(rows, {})).all("tr")][1:]
    assert found == ["a[[]0]", "Conv.y", "t1", "t2", None]  # None: the name itself


def test_the_title_and_the_heading_name_the_model() -> None:
    cases = {
        "zoo/resnet.onnx": "resnet.onnx", "zoo/bert/model.onnx": "bert/model.onnx", "model.onnx": "model.onnx",
        "/zoo/bert/onnx/model.onnx": "bert/model.onnx", "./model.onnx": "model.onnx",
    }  # fmt: skip
    for path, name in cases.items():
        text = page({**report_of("quantize"), "input": path})
        assert f"<title>{name}: onnxshot report</title>" in text
        assert re.findall("<h1>(.*?)</h1>", text) == [name]


# ---------------------------------------------------------------------- what is not there


def test_a_page_without_samples_times_or_quantized_nodes_says_so() -> None:
    full = report_of("quantize")
    nothing = {**full, "graph": [{**row, "how": "float"} for row in full["graph"]]}
    nothing["worst"] = [{**row, "sqnr_db": 130.0 + i} for i, row in enumerate(full["worst"])]
    told = page({**nothing, "verdict": judge(nothing).to_dict()})
    assert "Nothing was quantized" in told
    assert "are those of the float model up to rounding (130.0 dB or better)" in told
    assert "<em>worst</em>" not in told and "ring:" not in told
    empty = {**full, "worst": [], "samples": {}, "latency": {}, "sqnr_db": None, "agreement": None, "matches": {}}
    told = Parsed(page({**empty, "verdict": judge(empty).to_dict()})).text
    assert "the result was not compared with the float model on any sample" in told
    assert "SQNRnot measured" in told
    assert "speednot measured" in told
    assert "SQNRnot measured" not in Parsed(page(report_of("quantize"))).text


def test_what_stayed_float_is_grouped_by_reason_most_frequent_first() -> None:
    rows = [("a", "Conv", "small"), ("b", "Softmax", "stays"), ("c", "Gemm", "stays")]
    text = Parsed(skipped([dict(zip(("node", "op", "reason"), row, strict=True)) for row in rows])).text
    assert text == "2 stays 1 × Softmax, 1 × Gemmb, c1 small 1 × Conva"


def test_the_page_says_where_a_file_runs_and_what_its_work_is_counted_at() -> None:
    rests = [{"form": "weights <8> bits", "since": "1.25", "nodes": 3, "loads": False}]
    values = {
        "onnxruntime": {"loads_from": "1.18", "fused_from": "1.25", "rests_on": rests},
        "sizes": {"from": "inferred", "unknown": ["loop & co", "b"]},
    }
    told = Parsed(str(runs_on(values))).text
    assert "as written from 1.25 on, and loads it from 1.18 on: weights <8> bits (3) from 1.25 on." in told
    assert "with free dimensions as 1; 2 nodes of unknown size, such as loop & co, are counted at one position" in told
    assert str(runs_on({"onnxruntime": None, "sizes": {}})) == ""
    report = report_of("quantize")
    shown = Parsed(page(report)).text
    assert f"ONNX Runtime runs it as written from {report['onnxruntime']['fused_from']} on" in shown
    assert "at the sizes of a sample" in shown or "at the sizes that the inputs are fixed at" in shown


def test_every_figure_on_top_is_explained_and_none_that_is_not_shown() -> None:
    text = page(report_of("quantize"))
    shown = re.findall(r"<dt>([^<]*)</dt>", text)
    explained = re.findall(r"<li><b>([^<]*)</b>: ", text)
    assert explained == [word for word in explained if any(name.startswith(word) for name in shown)]
    assert all(any(name.startswith(word) for word in explained) for name in shown)


def test_a_stage_that_had_nothing_to_do_has_no_bar_and_a_few_bytes_are_not_nothing() -> None:
    values = report_of("quantize")
    values |= {"timings": {"calibrate": 1.0, "try LSTMs": 0.0002}}
    values |= {"weight_kinds": [{"kind": "other", "before": 24, "after": 24}]}
    found = Parsed(page(values)).text
    assert "calibrate" in found and "try LSTMs" not in found
    assert "24 B" in found and "0.0 kB" not in found


def test_errors_of_layers_say_on_how_many_samples() -> None:
    values = report_of("quantize")
    values["samples"] = {**values["samples"], "tensors": 4, "judged": 16}
    assert "on 4 of the 16 samples" in Parsed(page(values)).text

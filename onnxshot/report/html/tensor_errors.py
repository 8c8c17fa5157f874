"""Sections that show where accuracy is lost: the error of each tensor, and ranges and histograms of the worst ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxshot.report.html import figures
from onnxshot.report.html.charts import bar, columns, histogram
from onnxshot.report.html.graph_map import LISTED, places
from onnxshot.report.html.markup import Markup, el, join
from onnxshot.report.values import GOOD_DB

Values = Mapping[str, Any]

_SHOWN = 12  # rows that are visible at first
_COLUMNS = 300
_FAIR_DB = 20.0  # an error of a tenth of the signal
_EXPLAINED = (
    "Bars show the error as a share of the signal (root mean square), so longer is worse. It is measured inside the "
    "network on {samples}, and includes the error of all earlier layers. Amber: over a tenth of the signal, "
    "red: over a third, or the largest."
)
_HISTOGRAMS = (
    "How often values occurred in calibration, on a logarithmic scale. Shaded, between two lines: the quantization "
    "range. Red: values outside of it, which are clipped."
)


def error_chart(
    worst: Sequence[Values], graph: Sequence[Values], place: str = "", *, samples: str = "the samples"
) -> Markup:
    """The error along the network, and one bar per tensor, worst first; every row leads to its node in the map.

    Args:
        worst: rows of `Report.worst`.
        graph: rows of `Report.graph`.
        place: what ids on the page begin with, for a page with several reports.
        samples: which of them the errors were measured on, in words.
    """
    nodes = {node["tensor"]: node["node"] for node in graph}
    links = places(graph, place)
    most = figures.noise(worst[0]["sqnr_db"]) or 1.0
    rows = [
        _row(f"{place}e{i}", row, nodes.get(row["tensor"], ""), links.get(row["tensor"]), most)
        for i, row in enumerate(worst[:LISTED])
    ]
    parts = [el("p", _EXPLAINED.format(samples=samples), class_="muted"), _along(worst, graph, links)]
    parts.append(_folded(rows))
    if left := len(worst) - len(rows):
        parts.append(el("p", f"{left} better ones are in the JSON.", class_="muted"))
    return el("div", parts, class_="filterable")


def ranges(worst: Sequence[Values]) -> Markup:
    """One card per tensor with a histogram: its values, its quantization range, and how much is clipped."""
    cards = [_card(row) for row in worst if row["values"]]
    return join(el("p", _HISTOGRAMS, class_="muted"), el("div", cards, class_="cards"))


def sensitivity_chart(nodes: Sequence[Values]) -> Markup:
    """One bar per node: the error of the outputs when it alone is int8, the largest first."""
    measured = [row for row in nodes if row["per_channel_db"] is not None]
    most = max((figures.noise(row["per_channel_db"]) for row in measured), default=1.0) or 1.0
    rows: list[Markup] = []
    for row in measured:
        db, rough, gain = row["per_channel_db"], row["per_tensor_db"], row["float_gain_db"]
        facts = [f"{row['op']}, {row['how']}", f"{row['float_ms']:.3f} ms in float, {row['int8_ms']:.3f} ms in int8"]
        if rough is not None:
            facts.append(f"{figures.decibels(rough)} with one scale per weight")
        if gain is not None:
            facts.append(f"{gain:+.1f} dB if it alone stays float")
        rows.append(_line(row["node"], facts, db, most, peak=not rows, data_x=row["exclude"]))
    parts = [_folded(rows)]
    if left := [row["node"] for row in nodes if row["per_channel_db"] is None]:
        parts.append(el("p", f"Never int8 alone, so not measured: {', '.join(left)}", class_="muted"))
    return el("div", parts, class_="filterable")


def _row(key: str, row: Values, node: str, link: str | None, most: float) -> Markup:
    db = row["sqnr_db"]
    facts = [f"error {figures.percent(figures.noise(db))} of the signal"]
    facts.append(str(row["op"]) + (f" {node}" if node and node != row["tensor"] else ""))
    if row["low"] is not None:
        facts.append(f"range {figures.number(row['low'])} .. {figures.number(row['high'])}")
    if row["clipped"]:
        facts.append(f"{100 * row['clipped']:.3f} % clipped")
    name = el("a", row["tensor"], href=f"#{link}") if link else row["tensor"]
    return _line(name, facts, db, most, peak=key.endswith("e0"), id=key)


def _folded(rows: Sequence[Markup]) -> Markup:
    """The first rows, and a line that unfolds the others."""
    first = el("ol", rows[:_SHOWN], class_="bars")
    if not rows[_SHOWN:]:
        return first
    more = el("ol", rows[_SHOWN:], class_="bars", start=_SHOWN + 1)
    return join(first, el("details", el("summary", f"{len(rows) - _SHOWN} more, all better than these"), more))


def _line(name: str, facts: Sequence[str], db: float, most: float, *, peak: bool, **attributes: str) -> Markup:
    """One bar with its name and figure; `peak`: it is labelled as the worst. `most`: the error that fills the width."""
    label = join(name, el("em", "worst")) if peak else name
    head = el("span", el("span", label, class_="name"), el("small", " · ".join(facts)), class_="what")
    shape = bar(figures.noise(db) / most, "peak" if peak else _level(db))
    return el("li", head, shape, el("b", figures.decibels(db)), **attributes)


def _level(db: float) -> str:
    """The class of a bar. At GOOD_DB the error is a third of the signal, at _FAIR_DB a tenth."""
    return "bad" if db < GOOD_DB else "watch" if db < _FAIR_DB else "good"


def _along(worst: Sequence[Values], graph: Sequence[Values], links: Mapping[str, str]) -> Markup:
    """A chart of the error of every tensor in the order of the graph; empty where that order is unknown."""
    by_name = {row["tensor"]: row for row in worst}
    rows = [by_name[node["tensor"]] for node in graph if node["tensor"] in by_name]
    if not graph:  # two files that are compared
        rows = sorted((row for row in worst if row.get("depth") is not None), key=lambda row: int(row["depth"]))
    if len(rows) < 3:
        return Markup("")
    each = -(-len(rows) // _COLUMNS)
    groups = [rows[i : i + each] for i in range(0, len(rows), each)]
    drawn = [min(group, key=lambda row: float(row["sqnr_db"])) for group in groups]
    titles = [f"{row['tensor']} ({row['op']}): {figures.decibels(row['sqnr_db'])}" for row in drawn]
    nodes = [links.get(row["tensor"]) for row in drawn]
    first, kinds = worst[0], ["peak" if row is worst[0] else "plain" for row in drawn]
    chart = columns([figures.noise(row["sqnr_db"]) for row in drawn], titles, kinds, nodes)
    at = next((i for i, row in enumerate(rows) if row is first), None)
    place = "" if at is None else f", tensor {at + 1} of {len(rows)} from the input"
    share = figures.percent(figures.noise(first["sqnr_db"]))
    about = "Along the network, input to output. Highest: "
    caption = el("figcaption", about, el("b", first["tensor"]), f"{place}, {share} of its signal")
    return el("figure", caption, chart, class_="along")


def _card(row: Values) -> Markup:
    values = row["values"]
    kept = (row["low"], row["high"]) if row["low"] is not None else None
    chart, least, most = histogram(values["counts"], values["low"], values["high"], kept)
    lines = []
    if kept:
        how = f" by {row['method']}" if row["method"] else ""
        lines.append(f"kept {figures.number(kept[0])} .. {figures.number(kept[1])}{how}")
    if row["clipped"] is not None:
        share = f"{100 * row['clipped']:.3f} %" if row["clipped"] else "nothing"
        lines.append(f"{share} clipped on held-out samples")
    if row["scheme"]:
        lines.append(row["scheme"])
    ends = el("div", el("span", figures.number(least)), el("span", figures.number(most)), class_="ends")
    head = el(
        "h3",
        el("span", row["tensor"], class_="name"),
        " ",
        el("small", f"{row['op']}, {figures.decibels(row['sqnr_db'])}"),
    )
    return el("article", head, chart, ends, el("p", ", ".join(lines), class_="muted"))

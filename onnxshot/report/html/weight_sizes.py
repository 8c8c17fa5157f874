"""The section on weights: their size by what they are for, before and after, and their bits along the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxshot.report.html import figures
from onnxshot.report.html.charts import bar, columns
from onnxshot.report.html.graph_map import places
from onnxshot.report.html.markup import Markup, el, join

Values = Mapping[str, Any]

_COLUMNS = 400  # weights that are drawn; more are drawn in groups, by the least bits of each
_FULL = 32


def charts(kinds: Sequence[Values], graph: Sequence[Values], place: str = "") -> Markup:
    """Two bars per kind of weight, and one column per weight; empty where nothing is known.

    Args:
        kinds: rows of `Report.weight_kinds`.
        graph: rows of `Report.graph`.
        place: what ids on the page begin with, for a page with several reports.
    """
    most = max((max(row["before"], row["after"]) for row in kinds), default=0)
    parts = []
    if most:
        lines = []
        for row in kinds:
            for name, key, kind in ((row["kind"], "before", "was"), ("", "after", "now")):
                size = figures.megabytes(row[key])
                lines.append(el("div", el("span", name), bar(row[key] / most, kind), el("b", size), class_="line"))
        caption = el("figcaption", "Size by kind: of the input, and of the result")
        parts.append(el("figure", caption, lines, class_="kinds"))
    parts.append(_along(graph, places(graph, place)))
    return join(parts)


def _along(graph: Sequence[Values], links: Mapping[str, str]) -> Markup:
    """One column per weight, from input to output, as high as it has bits."""
    rows = [row for row in graph if row.get("bits")]
    if not rows:
        return Markup("")
    each = -(-len(rows) // _COLUMNS)
    drawn = [min(rows[i : i + each], key=lambda row: int(row["bits"])) for i in range(0, len(rows), each)]
    titles = [f"{row['node']} ({row['op']}): {row['bits']} bits" for row in drawn]
    kinds = ["plain" if row["bits"] < _FULL else "was" for row in drawn]
    counts = {bits: sum(row["bits"] == bits for row in rows) for bits in sorted({row["bits"] for row in rows})}
    said = ", ".join(f"{count} with {bits} bits" for bits, count in counts.items())
    caption = el("figcaption", f"Bits along the network, input to output: of {len(rows)} weights, {said}")
    nodes = [links.get(row["tensor"]) for row in drawn]
    return el("figure", caption, columns([row["bits"] / _FULL for row in drawn], titles, kinds, nodes), class_="along")

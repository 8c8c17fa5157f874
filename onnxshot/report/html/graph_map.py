"""The map of the graph: one cell per node, in topological order, that shows its precision and its share of zeros.

A cell is a link to the row of its node in the table below. The page's script makes both of them one: the row's values
are the cell's tooltip, and rows of errors lead to the cell and back.
"""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from onnxshot.report.html import figures
from onnxshot.report.html.blocks import blocks, drawn
from onnxshot.report.html.markup import Markup, el, join

Row = Mapping[str, Any]

LISTED = 1000
"""Most rows of errors on a page."""
_SHOWN_ZEROS = 0.05
_KINDS = {
    "static": ("8", "int8", "scales from calibration"),
    "dynamic": ("d", "int8, dynamic", "scales computed at run time"),
    "weights": ("w", "weights only", "stored in few bits, computed in float"),
    "half": ("h", "16 bits", "fp16 or bf16"),
    "float": ("f", "float", "unchanged"),
}
"""Precision of a node -> letter of the cell, name, and meaning."""
_HEADS = ("#", "node", "op", "as", "work", "zeros", "bits", "SQNR")


def graph_map(nodes: Sequence[Row], sqnr_db: Mapping[str, float], place: str = "") -> Markup:
    """The legend, the cells in blocks, and a table of the nodes.

    Args:
        nodes: rows of `Report.graph`.
        sqnr_db: SQNR by tensor name, the worst first.
        place: what ids on the page begin with, for a page with several reports.
    """
    shown = drawn(nodes)
    worst = min(sqnr_db, key=lambda tensor: sqnr_db[tensor], default=None)
    parts = [_legend(shown, any(node["tensor"] == worst for node in shown))]
    for block in blocks(shown):
        cells = join([_cell(i, shown[i], place, shown[i]["tensor"] == worst) for i in block.nodes])
        name = el("span", block.name, class_="scope", data_x=block.pattern or None)
        parts.append(el("div", name, el("span", cells, class_="cells"), class_="group"))
    if left_out := len(nodes) - len(shown):
        parts.append(el("p", f"{left_out} nodes with the least work are not drawn.", class_="muted"))
    parts.append(_table(shown, sqnr_db, place))
    return el("div", parts, class_="map")


def places(nodes: Sequence[Row], place: str = "") -> dict[str, str]:
    """Tensor name -> id of the node that computes it, of nodes that are drawn."""
    return {str(node["tensor"]): f"{place}n{i}" for i, node in enumerate(drawn(nodes))}


def _legend(nodes: Sequence[Row], ringed: bool) -> Markup:
    counts = Counter(str(node["how"]) for node in nodes)
    work = Counter[str]()
    for node in nodes:
        work[str(node["how"])] += node["macs_share"]
    entries = []
    for how, (letter, name, meaning) in _KINDS.items():
        if counts[how]:
            some = "1 node" if counts[how] == 1 else f"{counts[how]} nodes"
            text = f"{name}: {meaning}. {some}, {figures.percent(work[how])} of the work"
            entries.append((el("b", letter, class_=f"cell {how} weighted"), text))
    if any((node["sparsity"] or 0) >= _SHOWN_ZEROS for node in nodes):
        entries.append((el("b", "z", class_="cell float weighted z5"), "stripes from below: share of zeros"))
    entries.append((el("b", "·", class_="cell float"), "pale: no weight of its own"))
    if ringed:
        entries.append((el("b", "", class_="cell worst"), "ring: computes the tensor with the largest error"))
    return el("ul", [el("li", cell, el("span", text)) for cell, text in entries], class_="legend")


def _cell(i: int, node: Row, place: str, worst: bool) -> Markup:
    zeros = node["sparsity"]
    kinds = [str(node["how"])]
    if zeros is not None:
        kinds.append("weighted")
        if zeros >= _SHOWN_ZEROS:
            kinds.append(f"z{min(round(10 * zeros), 10)}")
    if worst:
        kinds.append("worst")
    return el("a", _KINDS[node["how"]][0], href=f"#{place}n{i}", class_=" ".join(kinds))


def _table(nodes: Sequence[Row], sqnr_db: Mapping[str, float], place: str) -> Markup:
    """A row per node; `data-x` is its pattern for --exclude, where that is not its name."""
    ranks = {tensor: i for i, tensor in enumerate(islice(sqnr_db, LISTED))}
    names = Counter(str(node["node"]) for node in nodes)
    ops = {str(node["op"]) for node in nodes}
    rows = []
    for i, node in enumerate(nodes):
        name, tensor = str(node["node"]), str(node["tensor"])
        error: Markup | str = ""
        if tensor in sqnr_db:
            error = figures.decibels(sqnr_db[tensor])
            error = el("a", error, href=f"#{place}e{ranks[tensor]}") if tensor in ranks else error
        cells = (
            str(i + 1), name, str(node["op"]), _KINDS[node["how"]][1], figures.percent(node["macs_share"]),
            figures.percent(node["sparsity"]), str(node.get("bits") or ""), error,
        )  # fmt: skip
        own = tensor if names[name] > 1 or name in ops else name
        pattern = glob.escape(own)
        rows.append((cells, f"{place}n{i}", None if pattern == name else pattern))
    kept = [i for i in range(len(_HEADS)) if any(cells[i] for cells, _, _ in rows)]
    head = el("tr", [el("th", _HEADS[i]) for i in kept])
    body = [el("tr", [el("td", cells[i]) for i in kept], id=key, data_x=x) for cells, key, x in rows]
    made = el("div", el("table", el("thead", head), el("tbody", body), class_="sortable"), class_="scroll")
    return el("details", el("summary", f"All {len(nodes)} nodes as a table"), made)

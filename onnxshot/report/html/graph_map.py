"""The map of the graph: one cell per node, in topological order, that shows its precision and its share of zeros."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from onnxshot.report.html import figures
from onnxshot.report.html.markup import Markup, el, join
from onnxshot.report.html.sections import table

Row = Mapping[str, Any]

_MOST = 3000  # nodes that are drawn
_MOST_GROUPS = 40
_LEAST_GROUPS = 3
_SHOWN_ZEROS = 0.05
_RUN = 24  # nodes per group, where names of nodes show no scopes
_KINDS = {
    "static": ("8", "int8", "scales from calibration"),
    "dynamic": ("d", "int8, dynamic", "scales computed at run time"),
    "weights": ("w", "8-bit weights", "stored in 8 bits, computed in float"),
    "half": ("h", "16 bits", "fp16 or bf16"),
    "float": ("f", "float", "unchanged"),
}
"""Precision of a node -> letter of the cell, name, and meaning."""


def graph_map(nodes: Sequence[Row], sqnr_db: Mapping[str, float]) -> Markup:
    """The legend, the cells in groups, and a table of the nodes; `sqnr_db`: by tensor name."""
    left_out = len(nodes) - _MOST
    if left_out > 0:
        kept = sorted(range(len(nodes)), key=lambda i: (nodes[i]["sparsity"] is None, -nodes[i]["macs_share"], i))
        nodes = [nodes[i] for i in sorted(kept[:_MOST])]
    worst = min(sqnr_db, key=lambda tensor: sqnr_db[tensor], default=None)
    parts = [_legend(nodes, any(node["tensor"] == worst for node in nodes))]
    for name, group in _grouped(nodes):
        cells = join([_cell(node, sqnr_db, node["tensor"] == worst) for node in group])
        parts.append(el("div", el("span", name, class_="scope"), el("span", cells, class_="cells"), class_="group"))
    if left_out > 0:
        parts.append(el("p", f"{left_out} nodes with the least work are not drawn.", class_="muted"))
    parts.append(_table(nodes, sqnr_db))
    return join(parts)


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
            entries.append(el("li", el("b", letter, class_=f"cell {how} weighted"), el("span", text)))
    if any((node["sparsity"] or 0) >= _SHOWN_ZEROS for node in nodes):
        entries.append(
            el(
                "li",
                el("b", "z", class_="cell float weighted z5"),
                el("span", "stripes from below: share of zeros"),
            )
        )
    entries.append(el("li", el("b", "·", class_="cell float"), el("span", "pale: no weight of its own")))
    if ringed:
        entries.append(
            el("li", el("b", "", class_="cell worst"), el("span", "ring: computes the tensor with the largest error"))
        )
    return el("ul", entries, class_="legend")


def _cell(node: Row, sqnr_db: Mapping[str, float], worst: bool) -> Markup:
    zeros = node["sparsity"]
    kinds = ["cell", str(node["how"])]
    if zeros is not None:
        kinds.append("weighted")
        if zeros >= _SHOWN_ZEROS:
            kinds.append(f"z{min(round(10 * zeros), 10)}")
    if worst:
        kinds.append("worst")
    letter, name, _ = _KINDS[node["how"]]
    facts = [f"{node['node']} ({node['op']}): {name}"]
    if node["macs_share"]:
        facts.append(f"{figures.percent(node['macs_share'])} of the work")
    if zeros:
        facts.append(f"{figures.percent(zeros)} zeros")
    if node["tensor"] in sqnr_db:
        facts.append(figures.decibels(sqnr_db[node["tensor"]]))
    return el("b", letter, class_=" ".join(kinds), title=", ".join(facts))


def _table(nodes: Sequence[Row], sqnr_db: Mapping[str, float]) -> Markup:
    rows = []
    for i, node in enumerate(nodes):
        db = sqnr_db.get(node["tensor"])
        cells = (
            str(i + 1), node["node"], node["op"], _KINDS[node["how"]][1], figures.percent(node["macs_share"]),
            figures.percent(node["sparsity"]), "" if db is None else figures.decibels(db),
        )  # fmt: skip
        rows.append(cells)
    heads = ("#", "node", "op", "as", "work", "zeros", "SQNR")
    return el("details", el("summary", f"All {len(nodes)} nodes as a table"), table(heads, rows))


def _grouped(nodes: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Neighbouring nodes of one scope, by its name. Exporters write scopes into names; else by number."""
    best: list[tuple[str, list[Row]]] = []
    for depth in range(1, 8):
        runs = [(k, list(g)) for k, g in groupby(nodes, key=lambda node: _scope(str(node["node"]), depth))]
        if len(runs) > _MOST_GROUPS:
            break
        best = runs
    if len(best) >= _LEAST_GROUPS:
        return [(name or "(top)", group) for name, group in best]
    starts = range(0, len(nodes), _RUN)
    return [(f"{i + 1}–{min(i + _RUN, len(nodes))}", list(nodes[i : i + _RUN])) for i in starts]


def _scope(name: str, depth: int) -> str:
    """The first `depth` parts of the path in a node's name, without the node itself."""
    return "/".join(name.strip("/").split("/")[:-1][:depth])

"""Sections of the page: artifacts, stages, the search, skips, pruned layers, channels, notes, recipe, cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from onnxshot.report.html import figures
from onnxshot.report.html.charts import Point, bar, scatter
from onnxshot.report.html.markup import Markup, el, join
from onnxshot.wording import counted

Values = Mapping[str, Any]

_NAMED = 60  # nodes per skip reason that are listed by name
_COUNTED_AT = {
    "sample": "at the sizes of a sample",
    "frozen": "at the sizes that the inputs are fixed at",
    "inferred": "with free dimensions as 1",
}
_AS_FLOAT = 100.0  # dB; more accurate candidates are only in the table, as they would compress the plot's scale
_LEAST_SECONDS = 0.001  # a stage that takes less had nothing to do


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """A table that the page's script can sort; empty columns are left out."""
    kept = [i for i in range(len(heads)) if any(row[i] for row in rows)]
    head = el("tr", [el("th", heads[i]) for i in kept])
    body = [el("tr", [el("td", row[i]) for i in kept]) for row in rows]
    return el("div", el("table", el("thead", head), el("tbody", body), class_="sortable"), class_="scroll")


def artifacts(outputs: Sequence[Values]) -> Markup:
    """The files that were written, with their figures in their own runtimes."""
    rows = []
    for a in outputs:
        speed = figures.times(a["latency"]["speedup"]) if a["latency"] else ""
        db = "" if a["sqnr_db"] is None else figures.decibels(a["sqnr_db"])
        rows.append((a["path"], a["format"], a["target"], figures.megabytes(a["bytes"]), db, speed))
    lines = [f"{a['format']}: {note}" for a in outputs for note in a["notes"]]
    heads = ("file", "format", "target", "size", "SQNR there", "speed there")
    return join(table(heads, rows), notes(lines) if lines else "")


def stages(rows: Sequence[Values]) -> Markup:
    """One row per stage, compared with the input."""
    return table(
        ("stage", "size", "SQNR", "equal answers", "one run", "speed"),
        [
            (
                row["name"], figures.megabytes(row["bytes"]),
                "" if row["sqnr_db"] is None else figures.decibels(row["sqnr_db"]), figures.percent(row["agreement"]),
                figures.milliseconds(row["latency_ms"]), figures.times(row["speedup"]),
            )
            for row in rows
        ],
    )  # fmt: skip


def look(rows: Sequence[Values]) -> Markup:
    """One row for each group of nodes that was measured in another form; those that were taken say so."""
    return table(
        ("nodes", "form", "gain of the outputs", "time", ""),
        [
            (
                row["group"], row["form"], f"{row['gain_db']:+.1f} dB",
                "" if row["microseconds"] is None else f"{row['microseconds']:+.0f} µs", "taken" if row["kept"] else "",
            )
            for row in sorted(rows, key=lambda row: -row["gain_db"])
        ],
    )  # fmt: skip


def tried(rows: Sequence[Values]) -> Markup:
    """One row for each of the other options that were measured."""
    return table(
        ("options", "size", "SQNR", "equal answers", "speed"),
        [
            (
                row["options"], figures.megabytes(row["bytes"]),
                "" if row["sqnr_db"] is None else figures.decibels(row["sqnr_db"]), figures.percent(row["agreement"]),
                "" if row["speedup"] is None else figures.times(row["speedup"]),
            )
            for row in rows
        ],
    )  # fmt: skip


def skipped(skips: Sequence[Values]) -> Markup:
    """Skipped nodes, grouped by skip reason, the most frequent first."""
    groups: dict[str, list[Values]] = {}
    for skip in skips:
        groups.setdefault(skip["reason"], []).append(skip)
    parts = []
    for reason, found in sorted(groups.items(), key=lambda item: -len(item[1])):
        ops: dict[str, int] = {}
        for skip in found:
            ops[skip["op"]] = ops.get(skip["op"], 0) + 1
        counts = ", ".join(f"{count} × {op}" for op, count in ops.items())
        names = ", ".join(skip["node"] for skip in found[:_NAMED])
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        summary = el("summary", el("b", str(len(found))), f" {reason or 'no reason was given'} ", el("small", counts))
        parts.append(el("details", summary, el("p", names + more, class_="names")))
    return join(parts)


def search(goal: Values, rows: Sequence[Values], chosen: Sequence[str]) -> Markup:
    """A plot and a table of the candidates that no other beats; `chosen`: what the written file leaves in float."""
    timed = all(row["latency_ms"] is not None for row in rows)

    def cost(row: Values) -> float:
        return float(row["latency_ms"]) if timed else row["bytes"] / 1e6

    points = []
    for row in rows:
        title = f"{figures.decibels(row['sqnr_db'])}, {figures.megabytes(row['bytes'])}"
        title += f", {figures.milliseconds(row['latency_ms'])}" if timed else ""
        same = list(row["exclude"]) == list(chosen) and row.get("levels", {}) == goal.get("levels", {})
        points.append(Point(cost(row), row["sqnr_db"], title, same))
    limit = goal.get("max_latency" if timed else "max_size")
    drawn = [point for point in points if point.chosen or point.y < _AS_FLOAT] or points
    plot = scatter(
        drawn, "latency, ms" if timed else "size, MB", "SQNR, dB", x_limit=limit, y_limit=goal.get("min_sqnr")
    )
    listed = [
        (
            _candidate(row), figures.decibels(row["sqnr_db"]), figures.megabytes(row["bytes"]),
            figures.milliseconds(row["latency_ms"]), "" if row["drop"] is None else f"{row['drop']:.4g}",
            _rise(row.get("perplexity_rise")),
            "written" if point.chosen else "",
        )
        for row, point in zip(rows, points, strict=True)
    ]  # fmt: skip
    reached = "The goal was reached." if goal["reached"] else f"The goal was missed: {'; '.join(goal['missed'])}."
    about = (
        f"{reached} {goal['candidates']} candidates were measured; these are not beaten by another. Dashed: the limits."
    )
    return join(
        el("p", about, class_="muted"), el("div", plot, class_="plot"),
        table(("candidate", "SQNR", "size", "one run", "score lost", "perplexity", ""), listed),
    )  # fmt: skip


def _candidate(row: Values) -> str:
    """What a candidate leaves in float, or how many of its layers have which bits."""
    held = row.get("levels") or {}
    return "; ".join(f"{count} in {name}" for name, count in held.items()) or f"{len(row['exclude'])} left in float"


def pruned(layers: Sequence[Values]) -> Markup:
    """Share of zeros of every pruned layer, the sparsest first."""
    rows = []
    for row in sorted(layers, key=lambda row: -row["sparsity"]):
        what = el(
            "span",
            el("span", row["layer"], class_="name"),
            el("small", f"{row['op']}, {row['weights']} weights"),
            class_="what",
        )
        rows.append(el("li", what, bar(row["sparsity"]), el("b", figures.percent(row["sparsity"]))))
    return el("div", el("ol", rows, class_="bars"), class_="filterable")


def channels(groups: Sequence[Values]) -> Markup:
    """Numbers of channels before and after, by group, the most reduced first."""
    rows = []
    for row in sorted(groups, key=lambda row: row["after"] / max(row["before"], 1)):
        what = el("span", el("span", row["group"], class_="name"), el("small", row["kind"]), class_="what")
        share = row["after"] / max(row["before"], 1)
        rows.append(el("li", what, bar(share), el("b", f"{row['before']} → {row['after']}")))
    return el("div", el("ol", rows, class_="bars"), class_="filterable")


def notes(lines: Sequence[str]) -> Markup:
    """The notes of the report."""
    return el("ul", [el("li", line) for line in lines], class_="notes")


def runs_on(values: Values) -> Markup:
    """The versions of ONNX Runtime that run the file as intended, and the sizes at which its work was counted."""
    parts = []
    if versions := values.get("onnxruntime"):
        text = f"ONNX Runtime runs it as written from {versions['fused_from']} on"
        if versions["loads_from"] != versions["fused_from"]:
            text += f", and loads it from {versions['loads_from']} on"
        forms = [f"{row['form']} ({row['nodes']}) from {row['since']} on" for row in versions["rests_on"]]
        parts.append(el("p", text + (f": {', '.join(forms)}" if forms else "") + "."))
    if sizes := values.get("sizes"):
        text = f"Its work is counted {_COUNTED_AT[sizes['from']]}"
        if unknown := sizes["unknown"]:
            some = counted(len(unknown), "node")
            text += f"; {some} of unknown size, such as {unknown[0]}, are counted at one position"
        parts.append(el("p", f"{text}."))
    return join(parts)


def recipe(asked: Values) -> Markup:
    """The recipe as JSON."""
    return el("details", el("summary", "Recipe"), el("pre", json.dumps(asked, indent=1, ensure_ascii=False)))


def cost(values: Values) -> Markup:
    """Duration of the run and of each stage that had something to do, and peak memory."""
    took_some: Mapping[str, float] = values.get("timings", {})
    timings = {name: took for name, took in took_some.items() if took >= _LEAST_SECONDS}
    most = max(timings.values(), default=0) or 1
    rows = [
        el("li", el("span", name, class_="what"), bar(took / most), el("b", figures.seconds(took)))
        for name, took in timings.items()
    ]
    total = f"{figures.seconds(values['seconds'])} in all"
    if peak := values.get("peak_rss_mb"):
        total += f", {peak:.0f} MB of memory at most"
    return join(el("p", total), el("ol", rows, class_="bars plain"))


def _rise(share: float | None) -> str:
    """A rise of the perplexity in percent, with its sign; empty where it was not measured."""
    return "" if share is None else f"{100 * share:+.2f} %"

"""Make the HTML page of a report: the sections that it has values for, with style and script inline."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import PurePath
from typing import Any

from onnxshot.report.advice import level_of
from onnxshot.report.html import figures, headline, sections, tensor_errors, weight_sizes
from onnxshot.report.html.graph_map import graph_map
from onnxshot.report.html.markup import Markup, el, join

Values = Mapping[str, Any]

_NO_NAMES = ("model", "onnx", ".", "..")
"""Names of files and folders that say nothing about a model."""
_ROUNDING_DB = 100.0
"""SQNR from which on two models are one up to the rounding of float32."""


def page(values: Values) -> str:
    """The HTML page of a report.

    Args:
        values: the report as plain values, as `to_dict` returns them.

    Returns:
        A complete HTML document.
    """
    style, script = _shipped("page.css"), _shipped("page.js")
    # The browser then refuses everything that is not in this file, whatever names in the model contain.
    policy = f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}"
    name = _model_name(values)
    head = el(
        "head", el("meta", charset="utf-8"), el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"), el("link", rel="icon", href="data:,"),
        el("title", f"{name}: onnxshot report"), el("style", style),
    )  # fmt: skip
    body = el("body", el("main", _title(values), _body(values)), el("script", script))
    return f"<!doctype html>\n{el('html', head, body, lang='en')}\n"


def _body(values: Values) -> Markup:
    """All sections; of a report for several targets, target by target."""
    if "reports" in values:
        parts = []
        for i, (target, report) in enumerate(values["reports"].items()):
            parts += [el("h2", f"For {target}", class_="target"), join(_sections(report, f"t{i}"))]
        return join(parts)
    return join(_sections(values))


def _title(values: Values) -> Markup:
    from onnxshot import __version__

    source = str(values["input"])
    return el("header", el("h1", _model_name(values)), el("p", f"{source} · onnxshot {__version__}", class_="muted"))


def _model_name(values: Values) -> str:
    """The name of the file, with that of the folder where every exporter calls the file the same."""
    path = PurePath(str(values["input"]))
    folders = [part for part in path.parts[:-1] if part not in (*_NO_NAMES, path.anchor)]
    return f"{folders[-1]}/{path.name}" if path.stem in _NO_NAMES and folders else path.name


def _sections(values: Values, place: str = "") -> Iterator[Markup]:
    """The sections of one report, the most read first; `place`: what ids on the page begin with."""
    if "worst" in values:
        yield _section("", join(headline.verdict(values), headline.tiles(values), headline.against_float(values)))
    elif "groups" in values:
        yield _section("", _shrunk(values))
    else:
        total = f"All in int8: SQNR {figures.decibels(values['sqnr_db'])} on {values['samples']} samples."
        yield _section("", el("p", total, class_=f"verdict {headline.CLASSES[level_of(values['sqnr_db'])]}"))
        about = "The error of the outputs when that node alone is int8, as a share of the signal: longer is worse."
        chart = join(el("p", about, class_="muted"), tensor_errors.sensitivity_chart(values["nodes"]))
        yield _section("What each node costs, worst first", chart)
    if values.get("stages"):
        yield _section("Stages", sections.stages(values["stages"]))
    detail = _detailed(values)
    worst, graph = detail.get("worst", []), values.get("graph", [])
    if worst and min(row["sqnr_db"] for row in worst) >= _ROUNDING_DB:
        least = figures.decibels(worst[0]["sqnr_db"])
        same = f"No layer has an error: all {len(worst)} tensors are those of the float model up to rounding"
        yield _section("Error by layer", el("p", f"{same} ({least} or better)."))
        worst = []
    elif worst:
        how = ", worst first: on random data, not real data" if values.get("on_random_data") else ""
        counts = detail.get("samples") or {}
        seen, judged = counts.get("tensors"), counts.get("judged")
        samples = f"{seen} of the {judged} samples" if seen and judged and seen < judged else "the samples"
        chart = tensor_errors.error_chart(worst, graph, place, samples=samples)
        yield _section("Error by layer" + (how or ", worst first"), chart)
    elif told := _no_errors(values):
        yield _section("Error by layer", el("p", told))
    if any(row["values"] for row in worst):
        yield _section("Ranges and values of the worst", tensor_errors.ranges(worst))
    if weights := weight_sizes.charts(values.get("weight_kinds", []), graph, place):
        yield _section("Weights: size by kind, and bits along the network", weights)
    if graph:
        errors = {row["tensor"]: row["sqnr_db"] for row in worst}
        yield _section("The graph, node by node", graph_map(graph, errors, place))
    if values.get("look"):
        yield _section("What int8 costs, group by group", sections.look(values["look"]))
    if values.get("tried"):
        yield _section("Other options, measured", sections.tried(values["tried"]))
    if values.get("groups"):
        yield _section("Channels, the most cut first", sections.channels(values["groups"]))
    if values.get("layers"):
        yield _section("Zeros by layer, the sparsest first", sections.pruned(values["layers"]))
    if values.get("pareto"):
        found = sections.search(values["goal"], values["pareto"], values["recipe"]["exclude"])
        yield _section("What the search found", found)
    for title, skips in _skips(values):
        yield _section(title, sections.skipped(skips))
    if values.get("outputs"):
        yield _section("Files", sections.artifacts(values["outputs"]))
    if values["notes"]:
        yield _section("Notes", sections.notes(values["notes"]))
    yield _section(
        "This run",
        join(
            sections.runs_on(values),
            sections.cost(values),
            sections.recipe(values.get("recipe", values.get("target", {}))),
        ),
    )


def _no_errors(values: Values) -> str:
    """Why there are no errors of single layers, in words; empty for runs that never measure them."""
    if "worst" not in values or "layers" in values or values.get("stages") or not values.get("graph"):
        return ""
    if not values["samples"].get("judged"):
        return "Not measured: the result was not compared with the float model on any sample."
    return "Not measured: no tensor inside the result could be compared with one of the float model."


def _section(title: str, content: Markup) -> Markup:
    return el("section", el("h2", title) if title else "", content)


def _detailed(values: Values) -> Values:
    """The report that has rows of single tensors: for stages, the one of the last stage."""
    if values.get("stages") and not values["worst"]:
        return values["stages"][-1]["report"] or values
    return values


def _skips(values: Values) -> Iterator[tuple[str, list[Values]]]:
    """Titles and skips; for stages, stage by stage."""
    if values.get("stages"):
        for row in values["stages"]:
            if row["report"] and row["report"]["skips"]:
                yield f"Left alone: {row['name']}, by reason", row["report"]["skips"]
        return
    if skips := values.get("skips"):
        untouched = "layers" in values or "groups" in values
        yield ("What was not pruned, and why" if untouched else "What stayed float, and why"), skips


def _shrunk(values: Values) -> Markup:
    """What is left after channels were removed, in one sentence."""
    (work, left), (params, kept) = values["macs"], values["params"]
    shares = [
        f"{figures.percent(left / max(work, 1))} of the work",
        f"{figures.percent(kept / max(params, 1))} of the parameters",
    ]
    if values["latency"] is not None:
        shares.append(f"{figures.percent(values['latency'], 0)} of the latency")
    found = values["verdict"]
    against = "".join(f" {reason[0].upper()}{reason[1:]}." for reason in found["reasons"])
    said = el("p", f"Left: {', '.join(shares)}.{against}", class_=f"verdict {headline.CLASSES[found['level']]}")
    return join(said, headline.next_step(found))


def _shipped(name: str) -> Markup:
    return Markup(resources.files("onnxshot.report.html").joinpath(name).read_text(encoding="utf-8"))


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

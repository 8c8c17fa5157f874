"""The top of the page: a verdict in one sentence, the figures behind it, and size and latency against float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from onnxshot.html import figures
from onnxshot.html.charts import bar
from onnxshot.html.markup import Markup, el
from onnxshot.report import GOOD_DB, NOISE

Values = Mapping[str, Any]

_ALIKE = 0.9  # share of equal answers below which somebody should look
_SOME_ZEROS = 0.05  # below it zeros are what rounding makes
_WORDS = {"good": "Ready", "watch": "Look closer", "bad": "Not good enough"}


def verdict(values: Values) -> Markup:
    """One sentence: what was gained, how alike the answers are, and what speaks against it."""
    level, against = _judged(values)
    gained = [text for text in (_smaller(values), _faster(values), _alike(values)) if text]
    sentence = ", ".join(gained) or "nothing was measured"
    parts = [el("strong", f"{_WORDS[level]}: "), sentence[0].upper() + sentence[1:] + "."]
    if against:
        reasons = "; ".join(against)
        parts += [" ", reasons[0].upper() + reasons[1:], "."]
    return el("p", parts, class_=f"verdict {level}")


def tiles(values: Values) -> Markup:
    """The figures by themselves."""
    speedup = values["latency"].get("speedup")
    found = [
        ("SQNR", figures.decibels(values["sqnr_db"]) if values.get("sqnr_db") is not None else ""),
        ("equal answers", figures.percent(values.get("agreement"))),
        ("work in int8", figures.percent(values.get("int8_macs_share"), 0)),
        ("zeros", figures.percent(values.get("sparsity")) if values.get("sparsity", 0) >= _SOME_ZEROS else ""),
        ("speed against float", figures.times(speedup) if speedup else ""),
        ("samples judged on", str(values.get("samples", {}).get("held_out", ""))),
    ]
    return el("dl", [el("div", el("dt", name), el("dd", text)) for name, text in found if text], class_="tiles")


def against_float(values: Values) -> Markup:
    """Size and latency of the result as bars below those of the float model."""
    blocks = []
    if values["input_bytes"] and values["outputs"]:
        rows = [("float", values["input_bytes"], "was")]
        rows += [(_kind(a), a["bytes"], "now") for a in values["outputs"]]
        blocks.append(_bars("Size", rows, figures.megabytes))
    times = values["latency"]
    if times:
        rows = [("float", times["float_ms"], "was"), ("result", times["ms"], "now")]
        blocks.append(_bars("Latency of one run", rows, figures.milliseconds))
    for artifact in values["outputs"]:
        if own := artifact["latency"]:
            rows = [("float", own["float_ms"], "was"), (artifact["format"], own["ms"], "now")]
            blocks.append(_bars(f"Latency in {artifact['target']}", rows, figures.milliseconds))
    return el("div", blocks, class_="pair")


def _bars(title: str, rows: Sequence[tuple[str, float, str]], told: Any) -> Markup:
    most = max(value for _, value, _ in rows) or 1
    lines = []
    for name, value, kind in rows:
        lines.append(el("div", el("span", name), bar(value / most, kind), el("b", told(value)), class_="line"))
    return el("figure", el("figcaption", title), lines)


def _kind(artifact: Values) -> str:
    return (
        str(artifact["format"])
        if artifact["format"] == artifact["target"]
        else f"{artifact['format']}, {artifact['target']}"
    )


def _judged(values: Values) -> tuple[str, list[str]]:
    """(good, watch or bad, what speaks against it)."""
    missed = list(values.get("goal", {}).get("missed", ()))
    db, agreement, speedup = values.get("sqnr_db"), values.get("agreement"), values["latency"].get("speedup")
    bad = [f"the goal was missed: {text}" for text in missed]
    watch = []
    if db is not None and db < GOOD_DB:
        bad.append(f"the error is {figures.percent(figures.noise(db), 0)} of the signal")
    if values.get("samples", {}).get("random"):
        watch.append("the samples were random, so the figures say little")
    if agreement is not None and agreement < _ALIKE:
        watch.append("one answer in ten or more is another than before")
    if speedup is not None and speedup < 1 - NOISE:
        watch.append("it is slower than the float model here")
    slow = (a for a in values["outputs"] if a["latency"] and a["latency"]["speedup"] < 1 - NOISE)
    watch += [f"the {a['format']} file is slower than the float model in {a['target']}" for a in slow]
    worst = values["worst"][0] if values["worst"] else None
    if worst is not None and worst["sqnr_db"] < GOOD_DB and not bad:
        watch.append(f"the worst tensor, {worst['tensor']}, is at {figures.decibels(worst['sqnr_db'])}")
    if values["outputs"] and values.get("sqnr_db") is None:
        watch.append("the result was not compared with the float model")
    return ("bad" if bad else "watch" if watch else "good"), bad + watch


def _smaller(values: Values) -> str:
    before, after = values["input_bytes"], values["outputs"][0]["bytes"] if values["outputs"] else 0
    if not (before and after):
        return ""
    factor = before / after
    return f"{factor:.1f}× smaller" if factor > 1.05 else f"{figures.percent(after / before, 0)} of the size"


def _faster(values: Values) -> str:
    speedup = values["latency"].get("speedup")
    return f"{figures.times(speedup)} as fast as float" if speedup else ""


def _alike(values: Values) -> str:
    count = values["samples"].get("held_out")
    on = f" on {count} samples it did not learn from" if count else ""
    if values["agreement"] is not None:
        return f"same answer as float in {figures.percent(values['agreement'])} of cases{on}"
    return f"SQNR {figures.decibels(values['sqnr_db'])}{on}" if values["sqnr_db"] is not None else ""

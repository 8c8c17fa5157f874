"""Cards for notebooks: what `_repr_html_` of results returns.

A card is one element with styles of its own, and no script. Text and lines take the colour of the notebook, so that
cards suit light and dark ones. Where styles are stripped, plain tables are left.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from onnxshot.report.advice import BAD, CAUTION, READY, int8_share
from onnxshot.report.html import figures
from onnxshot.report.html.markup import Markup, el, join
from onnxshot.report.token_figures import perplexities
from onnxshot.report.verdict import WORDS
from onnxshot.wording import counted

Values = Mapping[str, Any]

EDGES = {READY: "#2e9e5b", CAUTION: "#c98a1b", BAD: "#d64545"}
"""The colour of a card's edge by the level of the verdict; seen on light and dark grounds."""
_GREY = "#8888"
_CARD = "font: 13px/1.45 system-ui, sans-serif; max-width: 46em; padding: .4em .9em; margin: .3em 0; "
_TABLE = "border-collapse: collapse; margin: .3em 0; font: inherit; color: inherit"
_CELL = "padding: .1em .9em .1em 0; border: 0; background: none; vertical-align: top; "
_FIGURE = "text-align: right; white-space: nowrap"
_TEXT = "text-align: left; overflow-wrap: anywhere"
_WORST = 5
_NOTES = 12


@dataclass(frozen=True, slots=True)
class Rows:
    """A table of a card.

    Attributes:
        heads: names of the columns.
        rows: cells as text.
        figures: numbers of the columns whose cells are numbers.
    """

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    figures: frozenset[int] = frozenset()


def card(title: str, facts: Iterable[tuple[str, str]], *below: Markup, edge: str = _GREY) -> str:
    """A card.

    Args:
        title: its first line.
        facts: name and text of each fact; those without a text are left out.
        below: what follows.
        edge: colour of its left edge.
    """
    lines = [(el("span", f"{name} ", style="opacity: .75"), el("b", text)) for name, text in facts if text]
    shown = [el("span", *line, style="display: inline-block; margin-right: 1.2em") for line in lines]
    head = el("div", el("b", title), style="overflow-wrap: anywhere")
    return el("div", head, el("div", shown) if shown else "", *below, style=f"{_CARD}border-left: 4px solid {edge}")


def table(rows: Rows) -> Markup:
    """A table, with figures aligned to the right; without columns that are empty, and nothing without rows."""
    kept = [i for i in range(len(rows.heads)) if any(row[i] for row in rows.rows)]
    if not kept:
        return Markup()
    lines = [
        el("tr", [el(tag, row[i], style=_CELL + (_FIGURE if i in rows.figures else _TEXT)) for i in kept])
        for tag, row in [("th", rows.heads), *(("td", row) for row in rows.rows)]
    ]
    made = el("table", el("thead", lines[0]), el("tbody", lines[1:]), style=_TABLE)
    return el("div", made, style="overflow-x: auto")


def folded(title: str, *inside: Markup) -> Markup:
    """A part that is opened by a click or a key; nothing where it is empty."""
    held = join(*inside)
    return el("details", el("summary", title, style="cursor: pointer"), held) if held else held


def sentences(texts: Sequence[str]) -> Markup:
    """Texts as a list, at most a dozen."""
    more = [f"and {len(texts) - _NOTES} more"] if len(texts) > _NOTES else []
    shown = [*texts[:_NOTES], *more]
    return el("ul", [el("li", text) for text in shown], style="margin: .2em 0") if shown else Markup()


def report_card(values: Values, *inside: Markup) -> str:
    """The card of a report, given as plain values (`Report.to_dict`); `inside` stands below its figures."""
    found = values["verdict"]
    worst = [(row["tensor"], row["op"], f"{row['sqnr_db']:.1f}") for row in values.get("worst", ())[:_WORST]]
    notes, reasons = values.get("notes", ()), found["reasons"]
    return card(
        f"{_name(values)}: {WORDS[found['level']]}",
        report_facts(values),
        *inside,
        sentences(reasons),
        el("div", el("span", "Next: ", style="opacity: .75"), found["next"]),
        folded("worst tensors", table(Rows(("tensor", "op", "SQNR dB"), worst, frozenset({2})))),
        folded(counted(len(notes), "note"), sentences(notes)),
        edge=EDGES[found["level"]],
    )


def report_facts(values: Values) -> list[tuple[str, str]]:
    """The figures of a report as a person reads them; those that were not measured have no text."""
    before, after = values.get("input_bytes"), sum(made["bytes"] for made in values.get("outputs", ())[:1])
    latency = values.get("latency") or {}
    size = " → ".join(figures.sizes(before, after)) if before and after else ""
    speed = figures.times(latency["speedup"]) if latency.get("speedup") else ""
    sqnr, zeros = values.get("sqnr_db"), values.get("sparsity") or 0
    return [
        ("size", size),
        ("SQNR", "" if sqnr is None else figures.decibels(sqnr)),
        ("agreement", figures.percent(values.get("agreement"))),
        ("perplexity", perplexities(values).replace("->", "→")),
        ("MACs in int8", figures.percent(int8_share(values), 0)),
        ("zeros", figures.percent(zeros) if zeros >= 0.05 else ""),
        ("speed", f"{speed}{'' if latency.get('sure', True) else ' (not sure)'}" if speed else ""),
    ]


def report_line(kind: str, values: Values) -> str:
    """A report in one line, for `repr`."""
    facts = [f"{name} {text}" for name, text in report_facts(values) if text]
    return f"{kind}({', '.join([_name(values), *facts, WORDS[values['verdict']['level']]])})"


def _name(values: Values) -> str:
    outputs = values.get("outputs")
    return PurePath(outputs[0]["path"] if outputs else values["input"]).name or "model"

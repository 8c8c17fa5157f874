"""Charts as inline SVG. Most contain no text, so that they stretch to any width; their labels are HTML beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from onnxshot.report.html.markup import Markup, el

_WIDE, _HIGH = 1000.0, 100.0
_PLOT = (360.0, 230.0)  # of the scatter plot, which has text
_MARGIN = (44.0, 10.0, 14.0, 34.0)  # left, right, top, bottom


def bar(share: float, kind: str = "plain", mark: float | None = None) -> Markup:
    """A horizontal bar that fills a share 0..1 of the width; `mark`: share at which a line crosses it."""
    parts = [el("rect", width=_WIDE * min(max(share, 0.0), 1.0), height=_HIGH, class_=kind)]
    if mark is not None:
        parts.append(el("rect", x=_WIDE * min(max(mark, 0.0), 1.0) - 4, width=8, height=_HIGH, class_="mark"))
    return _stretched("bar", parts)


def columns(
    heights: Sequence[float], titles: Sequence[str], kinds: Sequence[str], nodes: Sequence[str | None] = ()
) -> Markup:
    """Vertical bars side by side, scaled so that the highest fills the chart.

    Args:
        heights: of the bars.
        titles: their tooltips; the page's script shows them.
        kinds: their classes.
        nodes: ids of nodes in the map, whose values are then the tooltip instead.
    """
    top = max([*heights, 1e-12])
    step = _WIDE / max(len(heights), 1)
    parts = []
    for i, (height, title, kind) in enumerate(zip(heights, titles, kinds, strict=True)):
        tall = max(_HIGH * height / top, 1.0)
        shape = {"x": i * step, "y": _HIGH - tall, "width": 0.8 * step, "height": tall}
        node = nodes[i] if nodes else None
        parts.append(el("rect", "" if node else el("title", title), class_=kind, data_n=node, **shape))
    return _stretched("columns", parts)


def histogram(
    counts: Sequence[int], low: float, high: float, kept: tuple[float, float] | None
) -> tuple[Markup, float, float]:
    """A histogram with a logarithmic scale of counts.

    Args:
        counts: values per bin, of bins of equal width over low..high.
        low: lower edge of the first bin.
        high: upper edge of the last bin.
        kept: the quantization range, which is shaded; bins that lie entirely outside of it are marked.

    Returns:
        The chart, and the values at its left and right edges.
    """
    least, most = (min(low, kept[0]), max(high, kept[1])) if kept else (low, high)
    span = (most - least) or 1.0
    top = math.log1p(max([*counts, 1]))
    width = (high - low) / len(counts)

    def place(value: float) -> float:
        return _WIDE * (value - least) / span

    parts = []
    if kept:
        parts.append(el("rect", x=place(kept[0]), width=place(kept[1]) - place(kept[0]), height=_HIGH, class_="kept"))
    wide = _WIDE * 0.9 * width / span
    bins: dict[str, list[str]] = {"plain": [], "lost": []}
    for i, count in enumerate(counts):
        if not count:
            continue
        left, tall = low + i * width, 94 * math.log1p(count) / top
        lost = kept is not None and (left + width <= kept[0] or left > kept[1])
        # One path for all bins takes a third of the bytes of one element for each.
        bins["lost" if lost else "plain"].append(f"M{place(left):.4g} 100v-{tall:.3g}h{wide:.3g}V100")
    parts += [el("path", d="".join(found), class_=kind) for kind, found in bins.items() if found]
    for edge in kept or ():
        parts.append(el("rect", x=min(max(place(edge) - 2, 0.0), _WIDE - 4), width=4, height=_HIGH, class_="mark"))
    return _stretched("histogram", parts), least, most


@dataclass(frozen=True, slots=True)
class Point:
    """One point of a scatter plot, with its tooltip; `chosen`: drawn larger, with a label."""

    x: float
    y: float
    title: str
    chosen: bool = False


def scatter(
    points: Sequence[Point], x_name: str, y_name: str, *, x_limit: float | None = None, y_limit: float | None = None
) -> Markup:
    """A scatter plot with two named axes, and a dashed line at each limit."""
    left, right, top, bottom = _MARGIN
    wide, high = _PLOT
    xs = _around([p.x for p in points], x_limit)
    ys = _around([p.y for p in points], y_limit)

    def across(x: float) -> float:
        return left + (wide - left - right) * (x - xs[0]) / (xs[1] - xs[0])

    def up(y: float) -> float:
        return high - bottom - (high - top - bottom) * (y - ys[0]) / (ys[1] - ys[0])

    parts = []
    for x in _ticks(*xs):
        parts.append(el("line", x1=across(x), x2=across(x), y1=top, y2=high - bottom, class_="grid"))
        parts.append(el("text", f"{x:g}", x=across(x), y=high - bottom + 12, text_anchor="middle"))
    for y in _ticks(*ys):
        parts.append(el("line", x1=left, x2=wide - right, y1=up(y), y2=up(y), class_="grid"))
        parts.append(el("text", f"{y:g}", x=left - 5, y=up(y) + 3, text_anchor="end"))
    parts.append(el("text", x_name, x=(left + wide - right) / 2, y=high - 6, text_anchor="middle"))
    parts.append(el("text", y_name, x=left, y=9, text_anchor="start"))
    if x_limit is not None:
        parts.append(el("line", x1=across(x_limit), x2=across(x_limit), y1=top, y2=high - bottom, class_="limit"))
    if y_limit is not None:
        parts.append(el("line", x1=left, x2=wide - right, y1=up(y_limit), y2=up(y_limit), class_="limit"))
    for p in sorted(points, key=lambda p: p.chosen):
        kind, size = ("chosen", 6.0) if p.chosen else ("point", 4.0)
        parts.append(el("circle", aria_label=p.title, cx=across(p.x), cy=up(p.y), r=size, class_=kind))
        if p.chosen:
            anchor = "end" if across(p.x) > wide / 2 else "start"
            beside = across(p.x) + (-9 if anchor == "end" else 9)
            parts.append(el("text", "written", x=beside, y=up(p.y) + 3, text_anchor=anchor, class_="strong"))
    return el(
        "svg",
        parts,
        viewBox=f"0 0 {wide:g} {high:g}",
        class_="scatter",
        role="group",
        aria_label=f"{y_name} over {x_name}",
    )


def _stretched(kind: str, parts: Sequence[Markup]) -> Markup:
    box = f"0 0 {_WIDE:g} {_HIGH:g}"
    return el("svg", parts, viewBox=box, preserveAspectRatio="none", class_=kind, aria_hidden="true")


def _around(values: Sequence[float], limit: float | None) -> tuple[float, float]:
    """Ends of an axis that covers all values and the limit, with a margin."""
    every = [*values, *([limit] if limit is not None else [])]
    low, high = min(every), max(every)
    room = 0.08 * (high - low) or max(abs(high), 1.0) * 0.1
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    """About four round values in low..high."""
    rough = (high - low) / 4
    unit = 10 ** math.floor(math.log10(rough))
    step = next(s * unit for s in (1, 2, 5, 10) if s * unit >= rough)
    first = math.ceil(low / step)
    return [round(i * step, 10) for i in range(first, math.floor(high / step) + 1)]

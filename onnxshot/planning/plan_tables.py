"""Tables of a plan for notebooks: how many nodes each mode has, and why the others stay in float."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from onnxshot.report.html.markup import Markup, join
from onnxshot.report.html.notebook import Rows, folded, table

if TYPE_CHECKING:
    from onnxshot.planning.plan import Plan

_REASONS = 30  # most rows of reasons
_NAMES = 3  # most names in a row


def plan_tables(plan: Plan, macs: Mapping[str, int] | None = None) -> Markup:
    """Both tables; `macs`, multiply-accumulates by node, adds the share of the work."""
    total = sum(macs.values()) if macs else 0
    modes = []
    for how, count in Counter(node.how for node in plan.nodes).most_common():
        nodes = [node for node in plan.nodes if node.how == how]
        share = f"{100 * sum(macs.get(node.node, 0) for node in nodes) / total:.1f} %" if macs and total else ""
        ops = ", ".join(f"{op} {n}" for op, n in Counter(node.op for node in nodes).most_common(6))
        modes.append((how, str(count), share, ops))
    reasons: dict[tuple[str, str], list[str]] = {}
    for skip in plan.skips:
        reasons.setdefault((skip.op, skip.reason), []).append(skip.node)
    why = [
        (op, reason, ", ".join(names[:_NAMES]) + (f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""))
        for (op, reason), names in list(reasons.items())[:_REASONS]
    ]
    heads = ("mode", "nodes", "work", "operators")
    return join(
        table(Rows(heads, modes, frozenset({1, 2}))),
        folded("left in float", table(Rows(("operator", "reason", "nodes"), why))),
    )

"""Rows that a report draws: the nodes of a model in order, and histograms of the tensors with the largest error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from onnxshot.calibration.stats import Histogram, TensorStats
from onnxshot.graph import Constant, Model, Node
from onnxshot.graph.macs import NodeMacs, by_label
from onnxshot.graph.module_names import module_names
from onnxshot.graph.ops import weight_slot
from onnxshot.graph.weight_facts import facts_of
from onnxshot.planning.plan import FLOAT, HALF, WEIGHTS, Plan
from onnxshot.report.values import NodeReport, TensorReport, ValueCounts

BINS = 64
"""Most bins of a histogram in a report."""
DRAWN = 16
"""Number of tensors, those with the lowest SQNR, whose histogram is in the report."""
_HALF_BITS = 16


def graph_rows(model: Model, rows: Iterable[NodeMacs]) -> list[NodeReport]:
    """One row per node of a float model, in topological order, subgraphs included.

    Args:
        model: The float model.
        rows: Multiply-accumulates of its nodes.

    Returns:
        Rows that say "float" for every node; `with_plan` fills in what the plan does.
    """
    work = by_label(rows)
    total = sum(work.values())
    nodes = [node for _, node in model.walk()]
    return [
        NodeReport(
            node.label, node.op, FLOAT, node.outputs[0].name if node.outputs else "",
            work.get(node.label, 0) / total if total else 0.0, _zeros(node), _bits(node), module,
        )
        for node, module in zip(nodes, module_names(nodes), strict=True)
    ]  # fmt: skip


def with_plan(rows: Sequence[NodeReport], plan: Plan) -> list[NodeReport]:
    """The rows with what the plan does to each node; nodes of which only the weight is stored in 8 bits say so."""
    how = {planned.node: planned.how for planned in plan.nodes} | dict.fromkeys(plan.stored, WEIGHTS)
    bits = {node: 8 for node in plan.stored} | {node: one.scheme.dtype.bits for node, one in plan.weights.items()}
    found = [replace(row, how=how.get(row.node, row.how)) for row in rows]
    return [
        row if row.bits is None else
        replace(row, bits=bits.get(row.node, _HALF_BITS if row.how == HALF else row.bits)) for row in found
    ]  # fmt: skip


def with_histograms(rows: Sequence[TensorReport], plan: Plan, stats: Mapping[str, TensorStats]) -> list[TensorReport]:
    """The rows, with the observed histogram added to the first DRAWN of them."""
    found = []
    for row in rows[:DRAWN]:
        planned = plan.tensors.get(row.tensor)
        seen = stats.get(planned.source) if planned is not None else None
        found.append(row if seen is None else replace(row, values=coarse_histogram(seen.histogram)))
    return [*found, *rows[DRAWN:]]


def coarse_histogram(histogram: Histogram, bins: int = BINS) -> ValueCounts | None:
    """Merge a histogram into at most `bins` bins of equal width; None if it is empty."""
    counts = histogram.counts
    if not len(counts):
        return None
    step = -(-len(counts) // bins)
    joined = np.add.reduceat(counts, np.arange(0, len(counts), step))
    low, width = histogram.first * histogram.width, step * histogram.width
    return ValueCounts(low, low + width * len(joined), tuple(int(n) for n in joined))


def _bits(node: Node) -> int | None:
    """Bits of a value of the constant weight of a node; None if it has none."""
    slot = weight_slot(node)
    if slot is None and node.op == "Gather" and isinstance(node.inputs[0], Constant) and len(node.inputs[0].shape) > 1:
        slot = 0
    if slot is None or np.dtype(node.inputs[slot].dtype).kind not in "fV":
        return None
    return 8 * int(np.dtype(node.inputs[slot].dtype).itemsize)


def _zeros(node: Node) -> float | None:
    """Share of zeros in the weight of a node, 0..1; None if it has no constant weight."""
    slot = weight_slot(node)
    weight = node.inputs[slot] if slot is not None else None
    if not isinstance(weight, Constant):
        return None
    facts = facts_of(weight)
    return facts.zeros / facts.size if facts.size else None

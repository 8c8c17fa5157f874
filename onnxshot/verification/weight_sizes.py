"""The size of the weights by what they are for, before and after, and the bits that the whole file takes a weight."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np

from onnxshot.graph import Model
from onnxshot.graph.ir import Constant
from onnxshot.graph.weight_kinds import KINDS, weight_kinds
from onnxshot.report.report import Report
from onnxshot.wording import counted, worded

_FAR_MORE = 1.5  # times the bits that were asked for: scales and what is no weight take less


def record_weights(report: Report, given: Model, made: Model, size: int) -> None:
    """Store the size of the weights by kind, and the bits a weight, in the report.

    Args:
        report: The report to fill in.
        given: The model that `made` was made from.
        made: The result.
        size: Bytes of all files of the result.
    """
    before, after = ({row.kind: row.bytes for row in weight_kinds(model)} for model in (given, made))
    report.weight_kinds = [
        {"kind": kind, "before": before.get(kind, 0), "after": after.get(kind, 0)}
        for kind in KINDS if before.get(kind) or after.get(kind)
    ]  # fmt: skip
    report.parameters = sum(map(_parameters, given.constants()))
    report.bits_per_weight = 8 * size / report.parameters if report.parameters else None


def more_bits_than_asked(report: Report) -> list[str]:
    """A note on what takes more bits than were asked for; empty where the file has hardly more.

    Args:
        report: with the recipe, the bits of each node, and those of the file.
    """
    asked, now = report.recipe.get("bits"), report.bits_per_weight
    if asked is None or now is None or now < _FAR_MORE * asked:
        return []
    held = Counter(node.bits for node in report.graph if node.bits is not None)
    if all(bits <= asked for bits in held):
        return []
    some = ", ".join(f"{bits} bits in {counted(count, 'node')}" for bits, count in sorted(held.items()))
    why = "another note, or the list of float weights, says why"
    if report.goal:  # a search has already given each layer as few as its goal allows
        return [worded(f"{now:.2f} bits a weight where {asked} were asked for: {some} ({why})")]
    goals = "of one file, [[min_sqnr=15]] or [[max_perplexity_rise=10%]] gives each layer as few as that allows"
    return [worded(f"{now:.2f} bits a weight where {asked} were asked for: {some} ({why}); {goals}")]


def _parameters(constant: Constant) -> int:
    """Number of weights in a constant: of floats, and of integers of 8 bits or fewer that form a matrix."""
    dtype: np.dtype[Any] = np.dtype(constant.dtype)
    shape = [int(size) for size in constant.shape]
    stored = dtype.itemsize == 1 and dtype.kind in "iu" and sum(size > 1 for size in shape) > 1
    return math.prod(shape) if dtype.kind in "fV" or stored else 0

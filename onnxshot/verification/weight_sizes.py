"""The size of the weights by what they are for, before and after, and the bits that the whole file takes a weight."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from onnxshot.graph import Model
from onnxshot.graph.ir import Constant
from onnxshot.graph.weight_kinds import KINDS, weight_kinds
from onnxshot.report.report import Report


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


def _parameters(constant: Constant) -> int:
    """Number of weights in a constant: of floats, and of integers of 8 bits or fewer that form a matrix."""
    dtype: np.dtype[Any] = np.dtype(constant.dtype)
    shape = [int(size) for size in constant.shape]
    stored = dtype.itemsize == 1 and dtype.kind in "iu" and sum(size > 1 for size in shape) > 1
    return math.prod(shape) if dtype.kind in "fV" or stored else 0

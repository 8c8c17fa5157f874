"""The error of one inner tensor over the samples, and the Q/DQ pairs that tensors go through."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from onnxshot.graph.lean_model import LeanModel
from onnxshot.maths.sqnr import SqnrSum

Scaled = tuple[int, NDArray[Any]]
"""An axis, and one factor per channel along it."""


@dataclass(frozen=True, slots=True)
class TensorRow:
    """The error of one inner tensor over the samples.

    Attributes:
        tensor: Its name.
        op: Operator of the float model that makes it.
        sqnr_db: SQNR in dB, with the runtime's optimizations off, after Q/DQ if it is quantized. Includes the error of
            all earlier layers.
        absmax: Largest absolute value in the float model.
        clipped: Share of the float model's values outside the range the candidate can store, 0..1. None if the
            candidate does not quantize the tensor per tensor.
        quantized: True if the tensor goes through a Q/DQ pair.
        depth: Place of the tensor in the graph, among those compared, from 0 at the inputs; None if unknown.
    """

    tensor: str
    op: str
    sqnr_db: float
    absmax: float
    clipped: float | None = None
    quantized: bool = False
    depth: int | None = None


@dataclass(frozen=True, slots=True)
class Pair:
    """A Q/DQ pair: the output of the DequantizeLinear, and the range it can represent if it has a single scale."""

    output: str
    low: float = -math.inf
    high: float = math.inf


@dataclass(slots=True)
class TensorSums:
    """Accumulated errors of one tensor."""

    op: str
    pair: Pair | None
    scaled: Scaled | None = None
    total: SqnrSum = field(default_factory=SqnrSum)
    absmax: float = 0.0
    outside: int = 0

    def add(self, wanted: NDArray[Any], got: NDArray[Any]) -> None:
        """Add the values of both models on one sample; values that are no floats, or of other shapes, are left out."""
        if wanted.dtype.kind != "f" or got.dtype.kind != "f" or wanted.shape != got.shape or not wanted.size:
            return
        factors = self._factors(wanted)
        self.total.add(wanted, got if factors is None else got / factors)
        if factors is not None:
            wanted = wanted * factors  # as the candidate stores it
        low, high = float(wanted.min()), float(wanted.max())
        if math.isfinite(low) and math.isfinite(high):
            self.absmax = max(self.absmax, -low, high)
        elif np.isfinite(wanted).any():
            self.absmax = max(self.absmax, float(np.abs(wanted[np.isfinite(wanted)]).max()))
        # Comparisons with NaN are false, so NaN takes this branch too.
        if self.pair is not None and not (self.pair.low <= low and high <= self.pair.high):
            self.outside += int(np.count_nonzero((wanted < self.pair.low) | (wanted > self.pair.high)))

    def _factors(self, value: NDArray[Any]) -> NDArray[np.float32] | None:
        """The channel factors, shaped to broadcast over a value; None if there are none or the channels differ."""
        if self.scaled is None or not -value.ndim <= self.scaled[0] < value.ndim:
            return None
        axis, factors = self.scaled[0] % value.ndim, self.scaled[1]
        if value.shape[axis] != len(factors):
            return None
        return factors.astype(np.float32).reshape([-1 if i == axis else 1 for i in range(value.ndim)])

    def empty(self) -> TensorSums:
        """Return sums of the same tensor, with nothing added."""
        return TensorSums(self.op, self.pair, self.scaled)

    def join(self, other: TensorSums) -> None:
        """Add the errors accumulated by another thread."""
        self.total.join(other.total)
        self.absmax = max(self.absmax, other.absmax)
        self.outside += other.outside

    def row(self, name: str) -> TensorRow:
        """Return the errors as a row."""
        known = self.pair is not None and math.isfinite(self.pair.low)
        share = self.outside / self.total.count if known else None
        return TensorRow(name, self.op, self.total.db, self.absmax, share, self.pair is not None)


def pairs_of(model: LeanModel) -> dict[str, Pair]:
    """The Q/DQ pair each tensor goes through in the top-level graph, by tensor name."""
    proto, constants = model.proto, dict(model.initializers)
    for node in proto.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            constants[node.output[0]] = node.attribute[0].t
    dequantized = {n.input[0]: n.output[0] for n in proto.graph.node if n.op_type == "DequantizeLinear"}
    pairs: dict[str, Pair] = {}
    for node in proto.graph.node:
        if node.op_type != "QuantizeLinear" or node.output[0] not in dequantized:
            continue
        low, high = -math.inf, math.inf
        given = [constants.get(name) for name in node.input[1:]]
        if given and all(t is not None and math.prod(t.dims) == 1 for t in given):
            values = [numpy_helper.to_array(t).reshape(()) for t in given if t is not None]
            low, high = _limits(values[0], values[1] if len(values) > 1 else np.zeros((), _default_type(node)))
        pair = Pair(dequantized[node.output[0]], low, high)
        pairs.setdefault(node.input[0], pair)
        pairs.setdefault(pair.output, pair)  # an output of the model keeps its name after the pair
    return pairs


def _limits(scale: NDArray[Any], zero: NDArray[Any]) -> tuple[float, float]:
    """The range beyond which values saturate: half a step past the lowest and highest code."""
    try:
        info = np.iinfo(zero.dtype)
    except ValueError:
        return -math.inf, math.inf  # float8 or a packed type
    step, offset = float(scale), int(zero)
    return (int(info.min) - offset - 0.5) * step, (int(info.max) - offset + 0.5) * step


def _default_type(node: onnx.NodeProto) -> np.dtype[Any]:
    """Type that a QuantizeLinear without a zero point gives: its output_dtype, else uint8."""
    kind = next((a.i for a in node.attribute if a.name == "output_dtype"), 0)
    return np.dtype(helper.tensor_dtype_to_np_dtype(kind)) if kind else np.dtype(np.uint8)

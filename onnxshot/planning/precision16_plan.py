"""Plan which nodes compute in float16 or bfloat16, and why the others stay float32. The graph is not changed.

The first check that applies gives the skip reason, in this order: kept by the caller (`kept`); part of a sum of
squares; operator (custom domain, reads a quantized tensor, listed in FLOAT_OPS, unknown, unknown types, opset); a known
crash of ONNX Runtime; range of its tensors; its constants. Then regions without a product or weight go back to float32,
as their Casts would cost more than they save.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto, defs

from onnxshot.calibration.stats import Span
from onnxshot.graph import Constant, Model, Node, Tensor, edit, weights
from onnxshot.graph.ops import STANDARD_DOMAINS, weight_slot
from onnxshot.maths.sqnr import SqnrSum
from onnxshot.planning.plan import FLOAT, HALF, NodePlan
from onnxshot.planning.precision16_ops import ANY_TYPE, FLOAT_OPS, HALF_OPS, SQUARES, SUMS_SQUARES, HalfOp, HalfType
from onnxshot.wording import worded

READS_QUANTIZED = "reads a dequantized tensor, which is float32"
_WORTH_BYTES = 4096  # float32 bytes from which a constant is worth storing in 16 bits


@dataclass(frozen=True, slots=True)
class HalfPlan:
    """The plan of a conversion to 16-bit floats.

    Attributes:
        kind: float16 or bfloat16.
        nodes: one entry per node that computes on floats: mode "half", or "float" with the skip reason.
    """

    kind: HalfType
    nodes: tuple[NodePlan, ...]

    @property
    def chosen(self) -> set[str]:
        """Labels of the nodes that compute in 16 bits."""
        return {n.node for n in self.nodes if n.how == HALF}


def plan_half(
    model: Model, kind: HalfType, spans: Mapping[str, Span] | None, kept: Mapping[str, str] | None = None
) -> HalfPlan:
    """Plan the conversion of a model to a 16-bit float type. The same arguments give the same plan.

    Args:
        model: a model whose tensor types are known (after shape inference). It is not changed.
        kind: FP16 or BF16.
        spans: tensor name -> observed extremes; None without calibration data: operators and weights alone decide.
        kept: node label -> skip reason, for nodes that stay float32 whatever the checks say.

    Returns:
        The plan.
    """
    return HalfPlan(kind, _Planner(model, kind, spans, kept or {}).plans())


def half_slots(model: Model, node: Node) -> list[int]:
    """Indices of the inputs that a node in 16 bits reads in 16 bits."""
    if node.op in ANY_TYPE:
        return []
    kept = HALF_OPS[node.op].float_slots if node.op in HALF_OPS else ()
    return [i for i, t in enumerate(node.inputs) if i not in kept and t.name and _is_float(model, t)]


def _is_float(model: Model, tensor: Tensor) -> bool:
    return model.elem_type(tensor) == TensorProto.FLOAT


class _Planner:
    """One planning run. `why`: node -> skip reason, for nodes that stay float32."""

    def __init__(
        self, model: Model, kind: HalfType, spans: Mapping[str, Span] | None, kept: Mapping[str, str]
    ) -> None:
        self._model, self._kind, self._spans, self._kept = model, kind, spans, kept
        self._squares: set[Tensor] = set()
        self._fits: dict[Constant, str] = {}
        floats = [n for n in model.graph.nodes if self._computes(n)]
        self.why = {node: reason for node in floats if (reason := self._reason(node))}
        self._half = dict.fromkeys(node for node in floats if node not in self.why)
        for node in self._not_worth_it():
            self.why[node] = "no product and no weight next to it: its Casts would cost more than it saves"
            del self._half[node]

    def plans(self) -> tuple[NodePlan, ...]:
        """An entry for each node that computes on floats, in graph order. Subgraphs stay float32."""
        found = []
        for graph, node in self._model.walk():
            weighted = weight_slot(node) is not None
            if node in self._half:
                found.append(NodePlan(node.label, node.op, HALF, "", weighted))
            elif node in self.why:
                found.append(NodePlan(node.label, node.op, FLOAT, self.why[node], weighted))
            elif graph is not self._model.graph and weighted:
                reason = "inside a subgraph (If, Loop, Scan), where activations are not calibrated"
                found.append(NodePlan(node.label, node.op, FLOAT, reason, weighted))
        return tuple(found)

    def _computes(self, node: Node) -> bool:
        """Whether the node produces float32 tensors, or may do so if their types are unknown."""
        types = [self._model.elem_type(t) for t in node.outputs if t.name]
        return TensorProto.FLOAT in types or (0 in types and any(_is_float(self._model, t) for t in node.inputs))

    # ------------------------------------------------------------------ one node

    def _reason(self, node: Node) -> str:
        """Skip reason of the node; empty if it computes in 16 bits. Must be called in graph order."""
        if node.label in self._kept:
            return self._kept[node.label]
        reasons = (self._by_squares, self._by_operator, self._by_crash, self._by_ranges, self._by_constants)
        return next((reason for ask in reasons if (reason := ask(node))), "")

    def _by_operator(self, node: Node) -> str:
        """Skip reason that the operator alone gives."""
        if node.domain not in STANDARD_DOMAINS:
            return f"custom domain {node.domain!r}"
        if any(maker.op == "DequantizeLinear" for maker in map(edit.producer, node.inputs) if maker is not None):
            return READS_QUANTIZED
        if node.op in FLOAT_OPS:
            return FLOAT_OPS[node.op]
        if node.op not in HALF_OPS:
            return f"{node.op} is not known to be safe in 16 bits"
        if any(not self._model.elem_type(t) for t in (*node.inputs, *node.outputs) if t.name):
            return "the type of an input or output is not known"
        return self._by_schema(node)

    def _by_schema(self, node: Node) -> str:
        """Skip reason if ONNX does not allow the type for the operator in the model's opset."""
        schema = defs.get_schema(node.op, self._model.opset)
        name = f"tensor({TensorProto.DataType.Name(self._kind.elem_type).lower()})"
        allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
        last = len(schema.inputs) - 1
        formals = [schema.inputs[min(i, last)] for i in half_slots(self._model, node)]
        formals += [schema.outputs[0]] if node.op in ANY_TYPE else []
        if all(name in allowed.get(formal.type_str, ()) for formal in formals):
            return ""
        return f"{node.op} of opset {self._model.opset} has no {self._kind.name}"

    def _by_squares(self, node: Node) -> str:
        """Skip reason for the parts of a norm, up to its square root: squares overflow and underflow first."""
        read = [t for t in node.inputs if not isinstance(t, Constant)]
        itself = node.op == "Mul" and len(read) == 2 and read[0] is read[1]
        summed = any(t in self._squares for t in read)
        if itself or node.op in SQUARES or (summed and node.op in SUMS_SQUARES):
            self._squares.update(node.outputs)
        elif not (summed and node.op == "Sqrt"):
            return ""
        return "it is part of a sum of squares, which overflows or underflows in 16 bits"

    def _by_crash(self, node: Node) -> str:
        """Skip reason for a node that crashes ONNX Runtime 1.20 to 1.32 while it loads the model (measured on CPUs)."""
        if self._kind.name != "fp16" or node.op != "Transpose" or not _moves_rows(node.attrs.get("perm", ())):
            return ""
        readers = [reader for reader in node.outputs[0].outputs if reader.op == "MatMul"]
        if any(isinstance(reader.inputs[1], Constant) for reader in readers):
            return "ONNX Runtime crashes on a float16 Transpose before a MatMul with a constant"
        return ""

    def _by_ranges(self, node: Node) -> str:
        """Skip reason if an input, an output or an intermediate value may exceed the range of the type."""
        rule, largest = HALF_OPS[node.op], self._kind.largest
        if node.op == "Cast" and self._model.elem_type(node.inputs[0]) not in _FLOATS:
            return self._by_integers(node)
        if largest is None:
            return ""
        above = f"above {largest:.3g}, the limit for {self._kind.name}"
        if self._spans is None:
            unknown = worded("its sum is unknown without samples ([[calib]])")
            return unknown if rule.sums else self._by_divisor(node, rule)
        slots = half_slots(self._model, node)
        read = [node.inputs[i] for i in slots if not isinstance(node.inputs[i], Constant)]
        made = [t for t in node.outputs if t.name and _is_float(self._model, t)]
        for tensor in (*read, *made):
            span = self._spans.get(tensor.name)
            if span is None:
                return f"the range of {tensor.name!r} is not known"
            if not span.absmax <= largest:
                return f"{tensor.name!r} reaches {span.absmax:.3g}, {above}"
        gain = rule.gain * (self._summed(node) if rule.sums else 1.0)
        inside = gain * max((self._spans[t.name].absmax for t in read), default=0.0)
        if inside > largest:
            return f"it may reach {inside:.3g} inside, {above}"
        return self._by_divisor(node, rule)

    def _summed(self, node: Node) -> float:
        """Largest number of input values that are summed into one output value."""
        if node.op == "AveragePool":
            return float(np.prod(node.attrs["kernel_shape"]))
        assert self._spans is not None
        read, made = (self._spans[t.name].size for t in (node.inputs[0], node.outputs[0]))
        return read / max(made, 1)

    def _by_divisor(self, node: Node, rule: HalfOp) -> str:
        """Skip reason if the divisor may round to 0."""
        smallest = self._kind.smallest
        if rule.divisor is None or smallest is None:
            return ""
        divisor = node.inputs[rule.divisor]
        if isinstance(divisor, Constant):
            least = float(np.abs(np.asarray(weights.read(divisor))).min(initial=np.inf))
        else:
            span = (self._spans or {}).get(divisor.name)
            least = 0.0 if span is None else max(span.low, -span.high, 0.0)
        return "" if least >= smallest else "its divisor may round to 0"

    def _by_integers(self, node: Node) -> str:
        """Skip reason for a Cast from integers that the type may not hold exactly."""
        span = (self._spans or {}).get(node.outputs[0].name)
        if self._model.elem_type(node.inputs[0]) == TensorProto.BOOL:
            return ""
        if span is None or not span.absmax <= self._kind.integers:
            return f"it may hold integers above {self._kind.integers}, which are not exact in {self._kind.name}"
        return ""

    def _by_constants(self, node: Node) -> str:
        """Skip reason if the type cannot hold a constant operand."""
        constants = [node.inputs[i] for i in half_slots(self._model, node) if isinstance(node.inputs[i], Constant)]
        if node.op == "Clip":
            return ""  # a limit that 16 bits cannot hold is never reached
        for constant in constants:
            if constant not in self._fits:
                self._fits[constant] = self._lost(constant)
            if self._fits[constant]:
                return self._fits[constant]
        return ""

    def _lost(self, constant: Constant) -> str:
        """Why the constant must stay float32; empty if 16 bits hold it."""
        if self._kind.largest is None:
            return ""
        values = np.asarray(weights.read(constant))
        largest = float(np.abs(values).max(initial=0.0))
        limit = float(np.finfo(np.float16).max)
        if not largest <= limit:
            return f"constant {constant.name!r} reaches {largest:.3g}, above the limit of {limit:.5g}"
        rounded = SqnrSum()
        rounded.add(values, values.astype(self._kind.storage).astype(np.float32))
        if rounded.db < self._kind.least_db:
            kept = max(rounded.db, 0.0)
            return f"constant {constant.name!r} is so small that {self._kind.name} leaves {kept:.0f} dB SQNR of it"
        return ""

    # ------------------------------------------------------------------ regions

    def _not_worth_it(self) -> list[Node]:
        """Nodes of connected 16-bit regions without a product or weight, which are not worth their Casts."""
        left, found = dict(self._half), list[Node]()
        while left:
            region, stack = [], [next(iter(left))]
            while stack:
                node = stack.pop()
                if node in left:
                    del left[node]
                    region.append(node)
                    stack.extend(self._beside(node))
            if not any(HALF_OPS[n.op].product or self._holds_weight(n) for n in region):
                found += region
        return found

    def _holds_weight(self, node: Node) -> bool:
        """Whether the node reads a large constant, for example an embedding table, worth storing in 16 bits."""
        read = (node.inputs[i] for i in half_slots(self._model, node))
        return any(isinstance(t, Constant) and weights.size_bytes(t) >= _WORTH_BYTES for t in read)

    def _beside(self, node: Node) -> Iterator[Node]:
        """The 16-bit nodes that it exchanges a float tensor with."""
        for slot in half_slots(self._model, node):
            maker = edit.producer(node.inputs[slot])
            if maker is not None and maker in self._half:
                yield maker
        for tensor in node.outputs:
            if tensor.name and _is_float(self._model, tensor):
                yield from (user for user in edit.consumers(tensor) if user in self._half)


_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


def _moves_rows(perm: Sequence[int]) -> bool:
    """Whether a Transpose keeps the last axis and moves another one directly before it."""
    last = len(perm) - 1
    return last > 1 and perm[last] == last and perm[last - 1] != last - 1

"""List the weights of a written model that are still float, with the reason for each."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping

from onnx import TensorProto

from onnxshot.graph import Constant, Model, Node, edit, weights
from onnxshot.graph.ops import op_of
from onnxshot.graph.skip import Skip
from onnxshot.planning.plan import FLOAT, HALF, Plan
from onnxshot.report.values import VECTOR
from onnxshot.runtimes.ort_executed import precision_of

_MIN_ELEMENTS = 1024  # constants with fewer are not worth a line
_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
_FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, *_HALVES)
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")


def float_weights(model: Model, plan: Plan) -> list[Skip]:
    """List the nodes that read a float constant of 1024 elements or more, subgraphs included.

    The reason is the one the plan gives. Weights that the plan stores in 16 bits are not listed.

    Args:
        model: The written model.
        plan: The plan it was made by.

    Returns:
        One entry per node, in graph order.
    """
    reasons = {n.node: n.reason for n in plan.nodes if n.how == FLOAT and n.reason}
    halves, left = plan.labels(HALF), dict[tuple[str, str], Skip]()
    others = plan.labels(FLOAT)
    for _, node in model.walk():
        for slot, tensor in enumerate(node.inputs):
            if not _is_left(node, slot, tensor, halves=bool(halves)):
                continue
            for reader in _readers(node):
                if reader.label not in halves:
                    key, why = (reader.label, reader.op), _reason(reader, slot, tensor, reasons, others)
                    if key not in left or left[key].reason == VECTOR:  # prefer the reason of a matrix to a vector's
                        left[key] = Skip(*key, why)
    return list(left.values())


def _is_left(node: Node, slot: int, tensor: object, *, halves: bool) -> bool:
    if not isinstance(tensor, Constant) or math.prod(tensor.shape) < _MIN_ELEMENTS:
        return False
    kind = weights.elem_type(tensor)
    if kind not in _FLOATS or (halves and kind in _HALVES):
        return False
    if node.op in _QUANTIZERS:
        return node.op == "QuantizeLinear" and slot == 0
    return precision_of(node) == "float" and not getattr(tensor, "of_blocks", False) and not _scales(node, tensor)


def _scales(node: Node, tensor: Constant) -> bool:
    """Whether the constant is a scale: of a weight stored as integers, or combined with the scale of an input."""
    others = [edit.producer(other) for other in node.inputs if other is not tensor]
    makers = [maker for maker in others if maker is not None]
    stored = any(maker.op == "Cast" and isinstance(maker.inputs[0], Constant) for maker in makers)
    return node.op == "Mul" and (stored or any(maker.op in _QUANTIZERS for maker in makers))


def _readers(node: Node) -> Iterator[Node]:
    """The node itself; the nodes after it if it is a Cast, which only converts a weight."""
    if node.op == "Cast":
        yield from edit.consumers(node.outputs[0])
    else:
        yield node


def _reason(
    reader: Node, slot: int, tensor: Constant, reasons: Mapping[str, str], planned: Collection[str]
) -> str:
    if sum(size > 1 for size in tensor.shape) < 2 or slot == op_of(reader).bias:
        return VECTOR
    known = "not quantized" if reader.label in planned else "not quantized: there is no rule for its op"
    return reasons.get(reader.label, known)

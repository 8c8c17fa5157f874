"""Move Shape and Size to a tensor that fusion does not remove: Conv -> (Relu, Shape) becomes Conv -> Relu -> Shape.

Exporters read the size of any tensor. A Conv whose output a Shape reads besides its Relu is not fused with the Relu,
and an op that only a Shape reads is computed for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnxshot.graph import Constant, Model, Node, Tensor, edit
from onnxshot.graph.ops import STANDARD_DOMAINS
from onnxshot.passes.base import Change

READS_SHAPE = ("Shape", "Size")

_SAME_SHAPE = frozenset(
    {
        "Abs", "BatchNormalization", "Cast", "Ceil", "Celu", "Clip", "DequantizeLinear", "Dropout", "Elu", "Erf", "Exp",
        "Floor", "Gelu", "GroupNormalization", "HardSigmoid", "HardSwish", "Identity", "InstanceNormalization",
        "LayerNormalization", "LeakyRelu", "Log", "LogSoftmax", "Mish", "Neg", "Not", "QuantizeLinear",
        "RMSNormalization", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Softmax", "Softplus", "Softsign",
        "Sqrt", "Swish", "Tanh", "ThresholdedRelu",
    }
)  # fmt: skip
"""Operators whose first output has the shape of their first input."""
_WITH_SCALAR = frozenset({"Add", "Div", "Max", "Min", "Mul", "Pow", "Sub"})
_PAIRS = ("QuantizeLinear", "DequantizeLinear")  # which of the two to read depends on the target (QuantizedShapes)


@dataclass(frozen=True, slots=True)
class MoveShapes:
    """Move Shape and Size back to the op that makes a value, then after the ops that are its only other readers.

    They pass only ops that keep the shape.

    Edits count the Shapes and Sizes that read another tensor now. Nothing is reported as skipped.
    """

    name: str = "move_shapes"

    def run(self, model: Model) -> Change:
        """Move them."""
        change, top = Change(), set(model.graph.nodes)
        for _, node in model.walk():
            if node.op not in READS_SHAPE or node.domain not in STANDARD_DOMAINS or not node.inputs:
                continue
            found = _made(model, node.inputs[0])
            if node in top:
                found = settled(model, found, top)
            if found is not node.inputs[0]:
                node.inputs[0] = found
                change.edits += 1
        if change.edits:
            edit.toposort(model)
        return change


def _made(model: Model, tensor: Tensor) -> Tensor:
    """The first tensor with this shape: made by an op that does not keep shapes, or an input."""
    maker = edit.producer(tensor)
    while maker is not None and maker.op not in _PAIRS and keeps_shape(model, maker) and maker.outputs[0] is tensor:
        tensor = maker.inputs[_source(maker)]
        maker = edit.producer(tensor)
    return tensor


def settled(model: Model, tensor: Tensor, top: set[Node]) -> Tensor:
    """The last tensor of the chain of shape-keeping ops after this tensor, which may be fused with its producer."""
    while edit.producer(tensor) is not None and not edit.is_output(model, tensor):
        users = [user for user in edit.consumers(tensor) if user.op not in READS_SHAPE]
        if len(users) != 1 or users[0] not in top or users[0].op in _PAIRS or not keeps_shape(model, users[0]):
            break
        if any(not isinstance(t, Constant) and t.name and t is not tensor for t in users[0].inputs):
            break  # it may depend on the Shape
        tensor = users[0].outputs[0]
    return tensor


def keeps_shape(model: Model, node: Node) -> bool:
    """Whether the first output is known to have the shape of the only input that is not constant."""
    if node.domain not in STANDARD_DOMAINS or not node.inputs or not node.inputs[0].name:
        return False
    if node.op not in _WITH_SCALAR:
        return node.op in _SAME_SHAPE and not isinstance(node.inputs[0], Constant)
    others = [t for t in node.inputs if isinstance(t, Constant)]
    if len(others) != len(node.inputs) - 1:
        return False
    rank = len(model.shape(node.inputs[_source(node)]) or ())
    return all(all(size == 1 for size in t.shape) and len(t.shape) <= rank for t in others)


def _source(node: Node) -> int:
    return next(i for i, t in enumerate(node.inputs) if not isinstance(t, Constant))

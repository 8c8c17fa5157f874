"""Keep ONNX Runtime from quantizing float nodes between a DequantizeLinear (DQ) and a QuantizeLinear (Q).

ONNX Runtime's WeightBiasQuantization (since 1.22) matches a Conv, ConvTranspose or Gemm with a float weight whose input
comes from a DQ with one scale and whose output goes to a Q, directly or through a Relu or Clip. It rounds the weight to
int8 with one scale for all channels, and fuses the pattern. Before that, it moves DQ and Q past ops that only move
values, and turns MatMul, Add into Gemm. Ops without a weight, such as Add, are fused if all their inputs come from a
DQ.

Each rewrite here computes the same values in a form that those optimizations do not match:

    DQ -> Gemm or MatMul(w), rank 2    DQ -> Flatten -> Gemm or MatMul(w)
    DQ -> MatMul(w) -> Add(b [N])      DQ -> MatMul(w) -> Add(b [1, N])
    DQ -> Conv or ConvTranspose        DQ with equal scales per channel -> Conv or ConvTranspose
    DQ, DQ -> MatMul or Gemm           DQ -> LeakyRelu(alpha=1), DQ -> MatMul or Gemm
    DQ -> another op -> Q              DQ -> op -> LeakyRelu(alpha=1) -> Q
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field

import numpy as np

from onnxshot.graph import Constant, Model, Node, Tensor, Variable, edit, weights
from onnxshot.graph.ops import STANDARD_DOMAINS, op_of
from onnxshot.passes.base import Change

_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_FUSED: dict[str, tuple[int, ...]] = {  # op -> inputs that must all come from a DQ for it to be fused; Concat: all
    **dict.fromkeys(("AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid", "Softmax"), (0,)),
    **dict.fromkeys(("Add", "Mul", "MatMul", "Gemm"), (0, 1)),
    "Where": (1, 2),
}
_ALONE = ("MatMul", "Gemm")  # fused even if no Q follows
_PER_AXIS = 13  # first opset whose DequantizeLinear has per-channel scales
_CUTS = ("Relu", "Clip")
_FOLDED = ("Add", "Sub", "Mul", "Div", "BatchNormalization", "Cast", "Dropout")  # folded into the product or removed


@dataclass(frozen=True, slots=True)
class KeepFloat:
    """Rewrite float nodes between DQ and Q into forms that ONNX Runtime computes in float.

    Edits count the nodes. Nothing is reported as skipped.

    Attributes:
        floats: Labels of the nodes that must run in float.
        per_axis: Whether all runtimes of the target accept per-channel scales on the DQ of an activation.
    """

    floats: Set[str]
    per_axis: bool = True
    name: str = "keep_float"
    _made: dict[Node, Tensor] = field(default_factory=dict)

    def run(self, model: Model) -> Change:
        """Rewrite the nodes of the top-level graph."""
        change = Change()
        for node in list(model.graph.nodes):
            if node.label in self.floats and node.domain in STANDARD_DOMAINS:
                change.edits += self._product(model, node) or _unfuse(model, node)
        if change.edits:
            edit.remove_unused(model)
            edit.toposort(model)
        return change

    def _product(self, model: Model, node: Node) -> bool:
        """Keep ONNX Runtime from rounding the float weight of a product to int8; False if it would not do so anyway."""
        weight = node.inputs[1] if len(node.inputs) > 1 else None
        if node.op not in _PRODUCTS or not isinstance(weight, Constant):
            return False
        reader, dq = _source(node)
        scale = edit.constant_input(dq, 1) if dq is not None else None
        if dq is None or scale is None or scale.size != 1 or not _meets_q(model, node):
            return False
        rank = len(_shape(model, node.inputs[0]))
        if node.op == "Gemm" or (node.op == "MatMul" and rank == 2):
            _flatten(model, node)
        elif node.op == "MatMul" and rank > 2 and len(weight.shape) == 2:
            _keep_bias_apart(model, node)
        else:
            axis = self._axis(model, node, dq, direct=reader is node)
            if axis is None:
                _pass_through(model, node)
            else:
                self._by_channel(model, reader, dq, *axis)
        return True

    def _axis(self, model: Model, node: Node, dq: Node, *, direct: bool) -> tuple[int, int] | None:
        """(axis, size) of the dequantized tensor for per-channel scales, with a size above 1; None if none is known."""
        zero = edit.constant_input(dq, 2)
        if not self.per_axis or model.opset < _PER_AXIS or (zero is not None and zero.dtype != np.uint8):
            return None  # ONNX Runtime converts int8 to uint8 only in pairs with one scale
        sizes = {i: size for i, size in enumerate(_shape(model, dq.outputs[0])) if isinstance(size, int)}
        weight: tuple[int, ...] = tuple(node.inputs[1].shape)
        if direct and node.op == "Conv":
            sizes[1] = int(weight[1]) * int(node.attrs.get("group", 1))
        elif direct and node.op == "ConvTranspose":
            sizes[1] = int(weight[0])
        elif direct and len(weight) == 2:
            sizes[-1] = int(weight[0])
        # Axis 1 holds the channels. Outer axes have longer contiguous rows per scale, which are faster to dequantize.
        order = sorted((i for i in sizes if sizes[i] > 1), key=lambda i: (i != 1, i < 0, i))
        return (order[0], sizes[order[0]]) if order else None

    def _by_channel(self, model: Model, reader: Node, dq: Node, axis: int, size: int) -> None:
        """Let the reader read the same values from a DQ with one scale per channel, all equal."""
        old = dq.outputs[0]
        if dq not in self._made:
            given = [dq.inputs[0]]
            for tensor, suffix in zip(dq.inputs[1:3], ("scales", "zero_points"), strict=False):
                value = np.asarray(weights.read(tensor)).reshape(-1)
                given.append(edit.add_constant(model, tensor.name, suffix, np.repeat(value, size)))
            made = edit.add_node(
                model, "DequantizeLinear", given, base=old.name, suffix="by_channel", attrs={**dq.attrs, "axis": axis}
            )
            self._made[dq] = made.outputs[0]
        for slot, tensor in enumerate(reader.inputs):
            if tensor is old:
                reader.inputs[slot] = self._made[dq]


def _unfuse(model: Model, node: Node) -> bool:
    """Rewrite an op whose inputs are all dequantized; False if ONNX Runtime would not fuse it.

    Per-channel scales are not used here: if ONNX Runtime fused the op nevertheless, it would reject the model.
    """
    slots = range(len(node.inputs)) if node.op == "Concat" else _FUSED.get(node.op, ())
    if not slots or any(slot >= len(node.inputs) or _source(node, slot)[1] is None for slot in slots):
        return False
    if node.op in _ALONE:
        attrs = {"alpha": 1.0}
        passed = edit.add_node(model, "LeakyRelu", node.inputs[:1], base=node.label, suffix="in_float", attrs=attrs)
        node.inputs[0] = passed.outputs[0]
    elif _goes_to_q(model, node.outputs[0]):
        _pass_through(model, node)
    else:
        return False
    return True


def _shape(model: Model, tensor: Tensor) -> tuple[int | str | None, ...]:
    """Shape of a tensor, looked up across the Q/DQ pairs that made it; empty if it is unknown."""
    maker = edit.producer(tensor)
    while model.shape(tensor) is None and maker is not None and maker.op in ("QuantizeLinear", "DequantizeLinear"):
        tensor = maker.inputs[0]
        maker = edit.producer(tensor)
    return tuple(model.shape(tensor) or ())


def _source(node: Node, slot: int = 0) -> tuple[Node, Node | None]:
    """(reader, DQ): the DQ that an input comes from, directly or through ops that only move values, and what reads it.

    The DQ is None if the input comes from something else.
    """
    reader, maker = node, edit.producer(node.inputs[slot])
    while maker is not None and maker.inputs and op_of(maker).keeps_range:
        reader, maker = maker, edit.producer(maker.inputs[0])
    found = maker is not None and maker.op == "DequantizeLinear" and not isinstance(maker.inputs[0], Constant)
    return reader, maker if found else None


def _meets_q(model: Model, node: Node) -> bool:
    """Whether a Q follows, after nothing but ops that are fused, folded or moved past. A MatMul must have an Add."""
    if node.op == "MatMul" and isinstance(node.inputs[1], Constant) and _added(model, node) is None:
        return False
    stack, seen = [node], set()
    while stack:
        for user in (u for out in stack.pop().outputs[:1] for u in edit.consumers(out)):
            if user.op == "QuantizeLinear":
                return True
            plain = user.op in _CUTS or op_of(user).keeps_range or user.op in _FOLDED
            if plain and user not in seen:
                seen.add(user)
                stack.append(user)
    return False


def _goes_to_q(model: Model, tensor: Tensor) -> bool:
    """Whether only Qs read the tensor, directly or through Relu, Clip and ops that move values.

    ONNX Runtime does not fuse an op that other nodes read too.
    """
    while not edit.is_output(model, tensor):
        users = edit.consumers(tensor)
        if users and all(user.op == "QuantizeLinear" for user in users):
            return True
        if len(users) != 1 or not (users[0].op in _CUTS or op_of(users[0]).keeps_range):
            return False
        tensor = users[0].outputs[0]
    return False


def _added(model: Model, product: Node) -> tuple[Node, int] | None:
    """(Add, slot of its constant) for the Add that alone reads a product; None if there is none."""
    add = edit.only_consumer(model, product.outputs[0])
    if add is None or add.op != "Add":
        return None
    slot = next((i for i, tensor in enumerate(add.inputs) if isinstance(tensor, Constant)), None)
    return None if slot is None else (add, slot)


def _flatten(model: Model, node: Node) -> None:
    """Put a Flatten in front: it leaves a matrix as it is, without a copy, and no DQ is moved past it."""
    x = node.inputs[0]
    attrs = {"axis": 1}
    node.inputs[0] = edit.add_node(model, "Flatten", [x], base=node.label, suffix="in_float", attrs=attrs).outputs[0]


def _keep_bias_apart(model: Model, product: Node) -> None:
    """Reshape the bias after a MatMul of rank 3 or more to [1, N]: MatMulAddFusion fuses only a bias of shape [N]."""
    found = _added(model, product)
    if found is None:
        return
    add, slot = found
    vector = add.inputs[slot]
    if len(vector.shape) == 1:
        row = np.asarray(weights.read(vector)).reshape(1, -1)
        add.inputs[slot] = edit.add_constant(model, vector.name, "row", row)


def _pass_through(model: Model, node: Node) -> None:
    """Add a LeakyRelu with slope 1 after the node. ONNX Runtime fuses it into a Conv or Gemm, but only later."""
    out = node.outputs[0]
    raw = Variable(model.fresh(out.name, "raw"), out.dtype, out.shape)
    node.outputs[0] = raw
    attrs = {"alpha": 1.0}
    edit.add_node(model, "LeakyRelu", [raw], base=node.label, suffix="in_float", outputs=[out], attrs=attrs)

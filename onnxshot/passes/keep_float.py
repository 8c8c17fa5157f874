"""Keep ONNX Runtime from quantizing ops that stand in float between a DequantizeLinear and a QuantizeLinear.

Its WeightBiasQuantization (1.22 and later) looks for a Conv, ConvTranspose or Gemm with a float weight whose input
comes from a DQ with one scale, and whose output goes to a Q, through a Relu or Clip at most. It rounds such a weight to
int8 with one scale for all channels, and fuses the rest. Moving a DQ or a Q over ops that only move values, and making
a Gemm of a MatMul and an Add, come before that. Ops without a weight, such as Add, are fused where all they read comes
from a DQ. Every form here computes the same values, and is one that it does not match.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field

import numpy as np

from onnxshot.graph import Constant, Model, Node, Tensor, Variable, edit, weights
from onnxshot.graph.ops import STANDARD_DOMAINS, op_of
from onnxshot.passes.base import Change

_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_FUSED: dict[str, tuple[int, ...]] = {  # op -> the slots that must all come from a DQ; of Concat, every one
    **dict.fromkeys(("AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid", "Softmax"), (0,)),
    **dict.fromkeys(("Add", "Mul", "MatMul", "Gemm"), (0, 1)),
    "Where": (1, 2),
}
_ALONE = ("MatMul", "Gemm")  # fused without a Q behind them too
_PER_AXIS = 13  # the first opset whose DequantizeLinear takes a scale per channel
_CUTS = ("Relu", "Clip")
_FOLDED = ("Add", "Sub", "Mul", "Div", "BatchNormalization", "Cast", "Dropout")  # into the product, or dropped


@dataclass(frozen=True, slots=True)
class KeepFloat:
    """Give ops that stay in float a form between DQ and Q that ONNX Runtime computes in float.

    Attributes:
        floats: labels of the nodes that are to run in float.
        per_axis: the runtimes take a DQ of activations with a scale per channel.
    """

    floats: Set[str]
    per_axis: bool = True
    name: str = "keep_float"
    _made: dict[Node, Tensor] = field(default_factory=dict)

    def run(self, model: Model) -> Change:
        """Change what is between; edits counts the ops."""
        change = Change()
        for node in list(model.graph.nodes):
            if node.label in self.floats and node.domain in STANDARD_DOMAINS:
                change.edits += self._product(model, node) or _unfuse(model, node)
        if change.edits:
            edit.remove_unused(model)
            edit.toposort(model)
        return change

    def _product(self, model: Model, node: Node) -> bool:
        """Keep a product with a float weight; False where it needs nothing."""
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
            _keep_apart(model, node)
        else:
            axis = self._axis(model, node, dq, direct=reader is node)
            if axis is None:
                _pass_through(model, node)
            else:
                self._by_channel(model, reader, dq, *axis)
        return True

    def _axis(self, model: Model, node: Node, dq: Node, *, direct: bool) -> tuple[int, int] | None:
        """An axis of the dequantized tensor and its size, above 1; None where there is none that is known."""
        zero = edit.constant_input(dq, 2)
        if not self.per_axis or model.opset < _PER_AXIS or (zero is not None and zero.dtype != np.uint8):
            return None  # ONNX Runtime rewrites int8 to uint8 in pairs with one scale only
        sizes = {i: size for i, size in enumerate(_shape(model, dq.outputs[0])) if isinstance(size, int)}
        weight: tuple[int, ...] = tuple(node.inputs[1].shape)
        if direct and node.op == "Conv":
            sizes[1] = int(weight[1]) * int(node.attrs.get("group", 1))
        elif direct and node.op == "ConvTranspose":
            sizes[1] = int(weight[0])
        elif direct and len(weight) == 2:
            sizes[-1] = int(weight[0])
        # Axis 1 is that of channels. Behind an outer axis the values lie in long rows, which are quick to dequantize.
        order = sorted((i for i in sizes if sizes[i] > 1), key=lambda i: (i != 1, i < 0, i))
        return (order[0], sizes[order[0]]) if order else None

    def _by_channel(self, model: Model, reader: Node, dq: Node, axis: int, size: int) -> None:
        """Let the reader have the same values from a DQ with as many equal scales as there are channels."""
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
    """Keep an op of which all inputs are dequantized; False where it needs nothing.

    Not by a scale per channel: should the op be fused all the same, ONNX Runtime would refuse the model.
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
    """Shape of a tensor, or of the one that was quantized where it is dequantized; empty where it is not known."""
    maker = edit.producer(tensor)
    while model.shape(tensor) is None and maker is not None and maker.op in ("QuantizeLinear", "DequantizeLinear"):
        tensor = maker.inputs[0]
        maker = edit.producer(tensor)
    return tuple(model.shape(tensor) or ())


def _source(node: Node, slot: int = 0) -> tuple[Node, Node | None]:
    """(what reads it, the DQ) that an input comes from, moved at most; no DQ where it comes from something else."""
    reader, maker = node, edit.producer(node.inputs[slot])
    while maker is not None and maker.inputs and op_of(maker).keeps_range:
        reader, maker = maker, edit.producer(maker.inputs[0])
    found = maker is not None and maker.op == "DequantizeLinear" and not isinstance(maker.inputs[0], Constant)
    return reader, maker if found else None


def _meets_q(model: Model, node: Node) -> bool:
    """Whether a Q reads the output, behind nothing but what is fused, folded or moved over. A MatMul needs an Add."""
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
    """Whether nothing but a Q reads the tensor, cut off or moved at most: an op that others read is not fused."""
    while not edit.is_output(model, tensor):
        users = edit.consumers(tensor)
        if users and all(user.op == "QuantizeLinear" for user in users):
            return True
        if len(users) != 1 or not (users[0].op in _CUTS or op_of(users[0]).keeps_range):
            return False
        tensor = users[0].outputs[0]
    return False


def _added(model: Model, product: Node) -> tuple[Node, int] | None:
    """The Add that alone reads a product, and the slot of the constant that it adds; None where there is none."""
    add = edit.only_consumer(model, product.outputs[0])
    if add is None or add.op != "Add":
        return None
    slot = next((i for i, tensor in enumerate(add.inputs) if isinstance(tensor, Constant)), None)
    return None if slot is None else (add, slot)


def _flatten(model: Model, node: Node) -> None:
    """Put a Flatten in front: of two dimensions it makes the same two, without a copy, and no DQ is moved over it."""
    x = node.inputs[0]
    attrs = {"axis": 1}
    node.inputs[0] = edit.add_node(model, "Flatten", [x], base=node.label, suffix="in_float", attrs=attrs).outputs[0]


def _keep_apart(model: Model, product: Node) -> None:
    """Give what is added to a product of three axes or more the shape [1, N]: MatMulAddFusion takes a vector alone."""
    found = _added(model, product)
    if found is None:
        return
    add, slot = found
    vector = add.inputs[slot]
    if len(vector.shape) == 1:
        row = np.asarray(weights.read(vector)).reshape(1, -1)
        add.inputs[slot] = edit.add_constant(model, vector.name, "row", row)


def _pass_through(model: Model, node: Node) -> None:
    """Put a LeakyRelu with slope 1 behind, changing nothing; ONNX Runtime fuses it into a Conv or Gemm, but later."""
    out = node.outputs[0]
    raw = Variable(model.fresh(out.name, "raw"), out.dtype, out.shape)
    node.outputs[0] = raw
    attrs = {"alpha": 1.0}
    edit.add_node(model, "LeakyRelu", [raw], base=node.label, suffix="in_float", outputs=[out], attrs=attrs)

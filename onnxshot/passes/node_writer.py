"""What rules share that write one operator as several: they add nodes to the graph that the operator stands in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnxshot.graph import Graph, Model, Node, Tensor, Variable, edit, weights
from onnxshot.graph.ir import Constant

_HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


@dataclass(frozen=True, slots=True)
class Writer:
    """Adds nodes in place of one node; `edit.toposort` puts them where they belong.

    restored: float weights that were made so far, by what they were made of.
    """

    model: Model
    graph: Graph
    node: Node
    restored: dict[tuple[object, ...], Constant] = field(default_factory=dict)

    def op(
        self, op: str, *inputs: Tensor, out: Tensor | None = None, domain: str | None = None, **attrs: Any
    ) -> Tensor:
        """Add a node; its first output, which is `out` where that is given."""
        made = self.ops(op, inputs, [Variable(self.fresh(op))] if out is None else [out], domain=domain, **attrs)
        return made.outputs[0]

    def ops(
        self, op: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor], /, domain: str | None = None, **attrs: Any
    ) -> Node:
        """Add a node with these outputs."""
        return edit.add_node(
            self.model, op, inputs, base=self.node.label, outputs=outputs, attrs=attrs, domain=domain, graph=self.graph
        )

    def fresh(self, suffix: str) -> str:
        """A name for a tensor that nothing has yet."""
        return self.model.fresh(self.node.label, f"{suffix}_output")

    def constant(self, suffix: str, values: NDArray[Any] | weights.ComputedValues) -> Constant:
        """A new constant."""
        return edit.add_constant(self.model, self.node.label, suffix, values)

    def ints(self, suffix: str, *values: int) -> Constant:
        """A new constant of int64, of one dimension."""
        return self.constant(suffix, np.array(values, np.int64))

    def scalar(self, suffix: str, value: float, like: Tensor) -> Constant:
        """A new constant without dimensions, in the float type that `like` has."""
        kind = float_type(self.model, like)
        return self.constant(suffix, np.asarray(value, helper.tensor_dtype_to_np_dtype(kind)))

    def axes(self, op: str, x: Tensor, *axes: int) -> Tensor:
        """Add a Squeeze or an Unsqueeze, whose axes are an input from opset 13 on."""
        if self.model.opset < 13:
            return self.op(op, x, axes=list(axes))
        return self.op(op, x, self.ints("axes", *axes))

    def clip(self, x: Tensor, low: float, high: float, out: Tensor) -> Tensor:
        """Add a Clip, whose limits are inputs from opset 11 on."""
        if self.model.opset < 11:
            return self.op("Clip", x, out=out, min=low, max=high)
        return self.op("Clip", x, self.scalar("low", low, x), self.scalar("high", high, x), out=out)

    def split(self, x: Tensor, sizes: Sequence[int], axis: int) -> list[Tensor]:
        """Add a Split, whose sizes are an input from opset 13 on; its outputs."""
        outputs = [Variable(self.fresh("Split")) for _ in sizes]
        if self.model.opset < 13:
            return list(self.ops("Split", [x], outputs, axis=axis, split=list(sizes)).outputs)
        return list(self.ops("Split", [x, self.ints("sizes", *sizes)], outputs, axis=axis).outputs)

    def tell(self, made: Tensor, like: Tensor, last: int) -> None:
        """Note that `made` has the type and shape of `like` but for its last axis: ONNX does not know fused ops."""
        shape, kind = self.model.shape(like), self.model.elem_type(like)
        if shape and kind and made.name not in self.graph.value_infos:
            info = helper.make_tensor_value_info(made.name, kind, [*shape[:-1], last])
            self.graph.value_infos[made.name] = info

    def done(self) -> None:
        """Take the node out that was written anew."""
        edit.remove(self.model, [self.node])


def float_type(model: Model, tensor: Tensor) -> int:
    """The ONNX type of a float tensor; where it is not known, that of the model's constants."""
    known = model.elem_type(tensor)
    if known:
        return known
    found = {weights.elem_type(constant) for constant in model.constants()}
    return next((kind for kind in _HALVES if kind in found and TensorProto.FLOAT not in found), TensorProto.FLOAT)


def given(node: Node, slot: int) -> Tensor | None:
    """An input that may be left out; None where it is."""
    return node.inputs[slot] if slot < len(node.inputs) and node.inputs[slot].name else None


def is_read(model: Model, node: Node, slot: int) -> bool:
    """Whether something reads an output that may be left out."""
    if slot >= len(node.outputs) or not node.outputs[slot].name:
        return False
    return bool(edit.consumers(node.outputs[slot])) or edit.is_output(model, node.outputs[slot])


def text(node: Node, key: str) -> str:
    """A text attribute; empty where there is none."""
    value = node.attrs.get(key, "")
    return value.decode() if isinstance(value, bytes) else str(value)

"""Helpers of rules that decompose one operator into several, across the opsets that they support."""

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
    """Adds nodes to the graph of one node, to replace it. The caller sorts the graph afterwards (`edit.toposort`).

    Attributes:
        model: The model.
        graph: The graph or subgraph that holds the node.
        node: The node to replace. Names of new tensors and nodes begin with its label.
        restored: Float weights made so far, by the integers and scales that they were made from.
    """

    model: Model
    graph: Graph
    node: Node
    restored: dict[tuple[object, ...], Constant] = field(default_factory=dict)

    def op(
        self, op: str, *inputs: Tensor, out: Tensor | None = None, domain: str | None = None, **attrs: Any
    ) -> Tensor:
        """Add a node and return its first output.

        Args:
            op: Operator.
            *inputs: Input tensors.
            out: Output tensor; a new one by default.
            domain: Operator domain; the standard one by default.
            **attrs: Attributes.
        """
        made = self.ops(op, inputs, [Variable(self.fresh(op))] if out is None else [out], domain=domain, **attrs)
        return made.outputs[0]

    def ops(
        self, op: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor], /, domain: str | None = None, **attrs: Any
    ) -> Node:
        """Add a node with these outputs and return it. Arguments are as for `op`."""
        return edit.add_node(
            self.model, op, inputs, base=self.node.label, outputs=outputs, attrs=attrs, domain=domain, graph=self.graph
        )

    def fresh(self, suffix: str) -> str:
        """An unused tensor name."""
        return self.model.fresh(self.node.label, f"{suffix}_output")

    def constant(self, suffix: str, values: NDArray[Any] | weights.ComputedValues) -> Constant:
        """Add a constant."""
        return edit.add_constant(self.model, self.node.label, suffix, values)

    def ints(self, suffix: str, *values: int) -> Constant:
        """Add an int64 constant of one dimension."""
        return self.constant(suffix, np.array(values, np.int64))

    def scalar(self, suffix: str, value: float, like: Tensor) -> Constant:
        """Add a scalar constant of the float type of `like`."""
        kind = float_type(self.model, like)
        return self.constant(suffix, np.asarray(value, helper.tensor_dtype_to_np_dtype(kind)))

    def axes(self, op: str, x: Tensor, *axes: int) -> Tensor:
        """Add a Squeeze or Unsqueeze; its axes are an attribute before opset 13, an input since. Returns its output."""
        if self.model.opset < 13:
            return self.op(op, x, axes=list(axes))
        return self.op(op, x, self.ints("axes", *axes))

    def clip(self, x: Tensor, low: float, high: float, out: Tensor) -> Tensor:
        """Add a Clip; its limits are attributes before opset 11 and inputs since. Returns its output."""
        if self.model.opset < 11:
            return self.op("Clip", x, out=out, min=low, max=high)
        return self.op("Clip", x, self.scalar("low", low, x), self.scalar("high", high, x), out=out)

    def split(self, x: Tensor, sizes: Sequence[int], axis: int) -> list[Tensor]:
        """Add a Split; its sizes are an attribute before opset 13 and an input since. Returns its outputs."""
        outputs = [Variable(self.fresh("Split")) for _ in sizes]
        if self.model.opset < 13:
            return list(self.ops("Split", [x], outputs, axis=axis, split=list(sizes)).outputs)
        return list(self.ops("Split", [x, self.ints("sizes", *sizes)], outputs, axis=axis).outputs)

    def set_info(self, made: Tensor, like: Tensor, last: int) -> None:
        """Give `made` the type and shape of `like`, with a last axis of size `last`: ONNX cannot infer fused ops."""
        shape, kind = self.model.shape(like), self.model.elem_type(like)
        if shape and kind and made.name not in self.graph.value_infos:
            info = helper.make_tensor_value_info(made.name, kind, [*shape[:-1], last])
            self.graph.value_infos[made.name] = info

    def done(self) -> None:
        """Remove the node that was replaced."""
        edit.remove(self.model, [self.node])


def float_type(model: Model, tensor: Tensor) -> int:
    """ONNX type of a float tensor. If it is unknown: the 16-bit type of the model's constants if none is float32."""
    known = model.elem_type(tensor)
    if known:
        return known
    found = {weights.elem_type(constant) for constant in model.constants()}
    return next((kind for kind in _HALVES if kind in found and TensorProto.FLOAT not in found), TensorProto.FLOAT)


def given(node: Node, slot: int) -> Tensor | None:
    """An optional input; None if it is left out."""
    return node.inputs[slot] if slot < len(node.inputs) and node.inputs[slot].name else None


def is_read(model: Model, node: Node, slot: int) -> bool:
    """Whether an optional output is present, and is read or is an output of the graph."""
    if slot >= len(node.outputs) or not node.outputs[slot].name:
        return False
    return bool(edit.consumers(node.outputs[slot])) or edit.is_output(model, node.outputs[slot])


def text(node: Node, key: str) -> str:
    """A string attribute; empty if it is missing."""
    value = node.attrs.get(key, "")
    return value.decode() if isinstance(value, bytes) else str(value)

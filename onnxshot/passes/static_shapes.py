"""Sizes, and what nodes compute of them, that are the same whatever is fed to the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from onnxshot.graph import Constant, Model, Node, Tensor
from onnxshot.graph.ops import STANDARD_DOMAINS
from onnxshot.graph.shape_rules import Dims
from onnxshot.graph.symbolic_dims import is_known
from onnxshot.graph.symbolic_shapes import Found, propagate
from onnxshot.graph.value_rules import VALUES
from onnxshot.passes.linear_ops import fixed


@dataclass(frozen=True, slots=True)
class StaticShapes:
    """What is known of tensors whatever the inputs hold, and whatever sizes their free dimensions have."""

    found: Found
    top: frozenset[int]  # ids of the tensors of the outermost graph: names in branches may be there twice

    @classmethod
    def of(cls, model: Model) -> StaticShapes:
        """What follows from the inputs alone: exporters leave the example's batch size at tensors in between.

        Two dimensions of one name are not taken for equal: runtimes do not see to it.
        """
        if not any(n.op in ("Shape", "Size") for _, n in model.walk()):
            return cls(Found(), frozenset())
        proto, _ = model.skeleton()
        for info in proto.graph.input:
            for axis, dim in enumerate(info.type.tensor_type.shape.dim):
                if not dim.HasField("dim_value"):
                    dim.dim_param = f"{info.name}:{axis}"
        made = (t for n in model.graph.nodes for t in n.outputs)
        return cls(propagate(proto, {}), frozenset(map(id, (*model.graph.inputs, *made))))

    def values_of(self, node: Node) -> list[NDArray[Any]] | None:
        """The outputs of a node that computes sizes; None where one is not known, or they follow from constants."""
        if node.op in ("Shape", "Size") and node.domain in STANDARD_DOMAINS:
            value = self._shape_or_size(node)
            return None if value is None else [value]
        if node.op not in VALUES or not node.inputs or all(not t.name or fixed(t) for t in node.inputs):
            return None
        values = [self._value(t) for t in node.outputs if t.name]
        known = [v for v in values if v is not None]
        return known if known and len(known) == len(values) else None

    def dims(self, tensor: Tensor) -> Dims | None:
        """Sizes of a tensor of the outermost graph; None where its rank is not known."""
        if isinstance(tensor, Constant):
            return tuple(tensor.shape)
        return self.found.shapes.get(tensor.name) if id(tensor) in self.top else None

    def numbers(self, tensor: Tensor) -> NDArray[Any] | None:
        """What a tensor of the outermost graph holds, some of it perhaps not known."""
        return self.found.values.get(tensor.name) if id(tensor) in self.top else None

    def _value(self, tensor: Tensor) -> NDArray[Any] | None:
        value = self.numbers(tensor)
        if value is None or not is_known(value):
            return None
        return value.astype(helper.tensor_dtype_to_np_dtype(self.found.kinds[tensor.name]))

    def _shape_or_size(self, node: Node) -> NDArray[np.int64] | None:
        """What Shape (from `start` to `end`, since opset 15) or Size gives, where all that is asked for is static."""
        shape = self.dims(node.inputs[0])
        if shape is None:
            return None
        if node.op == "Shape":
            shape = shape[node.attrs.get("start", 0) : node.attrs.get("end")]
        dims = [d for d in shape if isinstance(d, int)]
        if len(dims) < len(shape):
            return None
        return np.array(dims if node.op == "Shape" else np.prod(dims, dtype=np.int64), np.int64)

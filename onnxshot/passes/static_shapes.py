"""Static shapes: sizes, and values computed from sizes, that are the same for every input of the model."""

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
    """Shapes and values that hold for all inputs and for all sizes of the dynamic dimensions.

    Attributes:
        found: Shapes and values by tensor name.
        top: `id` of each tensor of the top-level graph; subgraphs may reuse a name.
    """

    found: Found
    top: frozenset[int]

    @classmethod
    def of(cls, model: Model) -> StaticShapes:
        """Derive shapes from the model's inputs alone.

        Stated shapes of intermediate tensors are ignored: exporters leave the batch size of their example there. Two
        dynamic dimensions of the same name are treated as different: runtimes do not enforce that they are equal.
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
        """Output values of a node that computes with sizes; None if one is unknown or if all inputs are constant."""
        if node.op in ("Shape", "Size") and node.domain in STANDARD_DOMAINS:
            value = self._shape_or_size(node)
            return None if value is None else [value]
        if node.op not in VALUES or not node.inputs or all(not t.name or fixed(t) for t in node.inputs):
            return None
        values = [self._value(t) for t in node.outputs if t.name]
        known = [v for v in values if v is not None]
        return known if known and len(known) == len(values) else None

    def dims(self, tensor: Tensor) -> Dims | None:
        """Sizes of a tensor of the top-level graph; None if its rank is unknown."""
        if isinstance(tensor, Constant):
            return tuple(tensor.shape)
        return self.found.shapes.get(tensor.name) if id(tensor) in self.top else None

    def numbers(self, tensor: Tensor) -> NDArray[Any] | None:
        """Values of a tensor of the top-level graph, some of them possibly unknown; None if it was not computed."""
        return self.found.values.get(tensor.name) if id(tensor) in self.top else None

    def _value(self, tensor: Tensor) -> NDArray[Any] | None:
        """The tensor's value in its own dtype; None unless all of it is known."""
        value = self.numbers(tensor)
        if value is None or not is_known(value):
            return None
        return value.astype(helper.tensor_dtype_to_np_dtype(self.found.kinds[tensor.name]))

    def _shape_or_size(self, node: Node) -> NDArray[np.int64] | None:
        """Value of a Shape (`start` and `end` since Shape-15) or Size; None if a size that it returns is dynamic."""
        shape = self.dims(node.inputs[0])
        if shape is None:
            return None
        if node.op == "Shape":
            shape = shape[node.attrs.get("start", 0) : node.attrs.get("end")]
        dims = [d for d in shape if isinstance(d, int)]
        if len(dims) < len(shape):
            return None
        return np.array(dims if node.op == "Shape" else np.prod(dims, dtype=np.int64), np.int64)

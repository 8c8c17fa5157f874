"""Fill in the types and shapes of a model's tensors by shape inference, on a skeleton without large weights."""

from __future__ import annotations

import math

import onnx

from onnxshot import system
from onnxshot.errors import ModelError
from onnxshot.graph.load import first_line
from onnxshot.graph.model import Model
from onnxshot.graph.symbolic_shapes import Found, propagate

_MOST_VALUES = 1 << 20  # values of shapes: onnx takes half a second for these, and exporters' models have far fewer
_KEEP_VALUES = frozenset(
    {"Add", "Cast", "Div", "Gather", "Identity", "Mul", "Slice", "Squeeze", "Sub", "Unsqueeze"}
)  # operators whose values onnx computes, with as many output values as input values


def infer(model: Model, found: Found | None = None) -> None:
    """Fill in the unknown types and shapes of the top-level graph's tensors. A failure is recorded as a note.

    Args:
        model: the model.
        found: shapes that hold for all inputs, where `symbolic_shapes.propagate` has run already.
    """
    proto, _ = model.skeleton()
    try:
        inferred = infer_proto(proto)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as e:
        model.notes.append(f"shape inference failed and was skipped: {first_line(e)}")
        return
    infos = model.graph.value_infos
    for info in inferred.graph.value_info:
        if info.name not in infos or not infos[info.name].type.tensor_type.HasField("shape"):
            infos[info.name] = info
    _fill_computed_sizes(model, proto, found)


def _fill_computed_sizes(model: Model, proto: onnx.ModelProto, found: Found | None) -> None:
    """Fill in sizes that follow from shape arithmetic, which ONNX's inference loses."""
    if not any(node.op_type in ("Shape", "Size") for node in proto.graph.node):
        return
    infos, found = model.graph.value_infos, propagate(proto, {}) if found is None else found
    given = {t.name for t in (*model.graph.inputs, *model.graph.outputs)}
    for name in (t.name for node in model.graph.nodes for t in node.outputs):
        info, dims = infos.get(name), found.shapes.get(name)
        if info is None or dims is None or name in given or not info.type.HasField("tensor_type"):
            continue
        shape = info.type.tensor_type.shape
        if not info.type.tensor_type.HasField("shape"):
            shape.SetInParent()
            for _ in dims:
                shape.dim.add()
        for dim, size in zip(shape.dim, dims, strict=False):
            if isinstance(size, int) and not dim.HasField("dim_value"):
                dim.dim_value = size


def infer_proto(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Run ONNX's shape inference, with data propagation where it takes acceptable time.

    Raises:
        onnx.shape_inference.InferenceError: shapes contradict each other.
    """
    return onnx.shape_inference.infer_shapes(proto, data_prop=_values_stay_small(proto.graph))


def _values_stay_small(graph: onnx.GraphProto) -> bool:
    """Whether data propagation stays small. A chain of Concat(x, x), for example, doubles the values at every node."""
    counts = {i.name: i.dims[0] for i in graph.initializer if len(i.dims) == 1}
    for info in graph.input:
        dims = info.type.tensor_type.shape.dim
        if len(dims) == 1 and dims[0].dim_value > 0:
            counts[info.name] = dims[0].dim_value
    total = 0
    for node in graph.node:
        read = [counts.get(name, 1) for name in node.input]
        if node.op_type == "Concat":
            counts.update(dict.fromkeys(node.output[:1], sum(read)))
            total += sum(read)
        elif node.op_type in _KEEP_VALUES:
            counts.update(dict.fromkeys(node.output[:1], max(read, default=1)))
    return total < _MOST_VALUES


def refuse_giants(model: Model) -> None:
    """Refuse a model with a tensor that is larger than this machine's memory.

    Raises:
        ModelError: with the tensor and its shape.
    """
    memory = system.physical_bytes()
    if memory is None:
        return
    for name, info in model.graph.value_infos.items():
        kind = info.type.tensor_type
        sizes = [d.dim_value for d in kind.shape.dim if d.dim_value > 0]
        if kind.elem_type and math.prod(sizes) > memory:
            raise ModelError(
                f"tensor {name!r} of shape {sizes} is larger than the {memory >> 30} GiB of memory of this machine",
                "the model cannot be run here",
            )

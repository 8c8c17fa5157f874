"""Shape inference and opset upgrades, both on a skeleton without weights. A failed inference is a note, never fatal."""

from __future__ import annotations

import math
import os

import onnx

from onnxshot.errors import ModelError
from onnxshot.graph.load import first_line
from onnxshot.graph.model import Model
from onnxshot.graph.symbolic_shapes import Found, propagate

_MOST_VALUES = 1 << 20  # a shape has a few; this many take onnx half a second
_KEEP_VALUES = frozenset(
    {"Add", "Cast", "Div", "Gather", "Identity", "Mul", "Slice", "Squeeze", "Sub", "Unsqueeze"}
)  # ops that onnx follows and that give as many values as they take


def infer(model: Model, found: Found | None = None) -> None:
    """Fill in the types and shapes of the top-level graph's tensors, as far as they can be told.

    found: what is known of sizes already, whatever is fed to the model.
    """
    proto, _ = model.skeleton()
    try:
        inferred = infer_proto(proto)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as e:
        model.notes.append(f"shape inference failed, went on without: {first_line(e)}")
        return
    infos = model.graph.value_infos
    for info in inferred.graph.value_info:
        if info.name not in infos or not infos[info.name].type.tensor_type.HasField("shape"):
            infos[info.name] = info
    _tell_more(model, proto, found)


def _tell_more(model: Model, proto: onnx.ModelProto, found: Found | None) -> None:
    """Fill in sizes that follow from arithmetic on shapes, where ONNX loses them."""
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
    """ONNX's own shape inference, following the values of shapes where that cannot run away."""
    return onnx.shape_inference.infer_shapes(proto, data_prop=_values_stay_small(proto.graph))


def _values_stay_small(graph: onnx.GraphProto) -> bool:
    """False where following the values of shapes would run away: a chain of Concat(x, x) doubles them each time."""
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
    """Raise ModelError where a tensor is known to be larger than this machine's memory: running it would end badly."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name, info in model.graph.value_infos.items():
        kind = info.type.tensor_type
        sizes = [d.dim_value for d in kind.shape.dim if d.dim_value > 0]
        if kind.elem_type and math.prod(sizes) > memory:
            raise ModelError(
                f"tensor {name!r} of shape {sizes} is larger than the {memory >> 30} GiB of memory of this machine",
                "the model cannot be run here",
            )

"""Shape inference and opset upgrades, both on a skeleton without weights. A failed inference is a note, never fatal."""

from __future__ import annotations

import math
import os
import re

import onnx
from onnx import version_converter

from onnxshot.errors import ModelError
from onnxshot.graph import raising
from onnxshot.graph.checking import check
from onnxshot.graph.load import first_line
from onnxshot.graph.model import Model
from onnxshot.graph.propagate import Found, propagate

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


def raise_opset(model: Model, version: int) -> None:
    """Raise the default opset to `version` through ONNX's version converter; lower or equal is left as it is.

    What the converter gets wrong is raised by the rules of `raising`. Raises ModelError where neither can, with the
    node, and where the result is not valid.
    """
    if model.opset >= version:
        return
    if model.opset < 9 and any(node.op == "Scan" for _, node in model.walk()):
        raise ModelError(
            f"opset {model.opset} could not be raised to {version}: Scan had a batch axis up to opset 8",
            f"export the model again with opset {version} or newer",
        )
    before, hint = model.opset, f"export the model again with opset {version} or newer"
    hidden = raising.hide(model, version)
    proto, lifted = model.skeleton()
    stated = {info.name: info for info in (*proto.graph.input, *proto.graph.output)}
    if proto.ir_version < 4:
        proto.ir_version = 4  # below 4 every initializer must be an input
    try:
        converted = version_converter.convert_version(proto, version)
        checked = onnx.ModelProto()
        checked.CopyFrom(converted)
        check(checked)
    except (onnx.checker.ValidationError, RuntimeError, ValueError) as e:
        where = _refused(proto, version)
        raising.restore(model)
        raise ModelError(
            f"opset {before} could not be raised to {version}: {where}{_without_place(first_line(e))}", hint
        ) from e
    # The converter infers shapes, and writes what it finds into outputs: what a caller sees stays as it was stated.
    for info in (*converted.graph.input, *converted.graph.output):
        if info.name in stated:
            info.CopyFrom(stated[info.name])
    model.rebuild(converted, lifted)
    if hidden:
        raising.show(model, before)


def _refused(proto: onnx.ModelProto, version: int) -> str:
    """The first node that cannot be raised, as the beginning of a sentence; empty where each can for itself."""
    graph = proto.graph
    known = {info.name: info for info in (*graph.input, *graph.value_info, *graph.output)}
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        constants = [stored[name] for name in node.input if name in stored]
        infos = [known.get(name, onnx.ValueInfoProto(name=name)) for name in node.input if name and name not in stored]
        outputs = [known.get(name, onnx.ValueInfoProto(name=name)) for name in node.output if name]
        alone = onnx.helper.make_model(
            onnx.helper.make_graph([node], "alone", infos, outputs, constants),
            opset_imports=proto.opset_import, ir_version=proto.ir_version,
        )  # fmt: skip
        try:
            version_converter.convert_version(alone, version)
        except (RuntimeError, ValueError):
            return f"node {node.name or node.output[0]!r} ({node.op_type}): "
    return ""


def _without_place(message: str) -> str:
    """A message of ONNX's C++ code without the file, line and function it was written in."""
    return re.sub(r"^\S+:\d+: [^:]+: ", "", message)

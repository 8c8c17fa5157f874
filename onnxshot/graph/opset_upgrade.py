"""Raise a model to a newer opset: ONNX's version converter, and rules for the operators that it converts wrongly."""

from __future__ import annotations

import re

import onnx
from onnx import version_converter

from onnxshot.errors import ModelError
from onnxshot.graph import opset_workarounds
from onnxshot.graph.load import first_line
from onnxshot.graph.model import Model
from onnxshot.graph.onnx_checker import check


def raise_opset(model: Model, version: int) -> None:
    """Raise the default opset of a model to `version`; a model that has it, or a newer one, is left unchanged.

    Nodes that ONNX's version converter converts wrongly are rewritten by the rules of `opset_rules` instead.

    Args:
        model: the model, changed in place.
        version: the opset to raise it to.

    Raises:
        ModelError: a node cannot be converted, or the result is not valid.
    """
    if model.opset >= version:
        return
    if model.opset < 9 and any(node.op == "Scan" for _, node in model.walk()):
        raise ModelError(
            f"opset {model.opset} could not be raised to {version}: Scan had a batch axis up to opset 8",
            f"export the model again with opset {version} or newer",
        )
    before, hint = model.opset, f"export the model again with opset {version} or newer"
    hidden = opset_workarounds.hide_nodes(model, version)
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
        opset_workarounds.restore_nodes(model)
        raise ModelError(
            f"opset {before} could not be raised to {version}: {where}{_without_place(first_line(e))}", hint
        ) from e
    # The converter writes inferred shapes into inputs and outputs; the model's interface must stay as it was stated.
    for info in (*converted.graph.input, *converted.graph.output):
        if info.name in stated:
            info.CopyFrom(stated[info.name])
    model.rebuild(converted, lifted)
    if hidden:
        opset_workarounds.rewrite_hidden_nodes(model, before)


def _refused(proto: onnx.ModelProto, version: int) -> str:
    """The first node that the converter refuses by itself, as the beginning of a sentence; empty if there is none."""
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
    """A message of ONNX's C++ code without its source file, line and function."""
    return re.sub(r"^\S+:\d+: [^:]+: ", "", message)

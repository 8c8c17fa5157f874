"""What OpenVINO really executes: the precision of every layer of its compiled graph, by nodes of the ONNX model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from onnxshot.graph import Model, Node, Tensor, edit
from onnxshot.graph.macs import Shapes, count
from onnxshot.runtimes.executed import Execution, NodeExecution
from onnxshot.runtimes.openvino_rules import asks_for_int8

_MULTIPLY = ("Convolution", "Deconvolution", "FullyConnected", "MatMul", "QKVProjection", "RNNCell", "RNNSeq")
_WEIGHT = {"FullyConnected": 1, "Gather": 0}  # layer -> input that holds its weight or table
_INTEGERS = {"u4": "int4", "i4": "int4", "u8": "int8", "i8": "int8"}
_MARKS = re.compile(r"(/WithoutBiases|/DequantizationSubtract|/DequantizationMultiply|_original)+$")


def read_execution(compiled: Any, source: Model, shapes: Shapes) -> Execution:
    """Read the precision of every node from a compiled model.

    A compiled layer states its kernel, whose name ends in the precision it computes in, and the nodes fused into it.
    Its `runtimePrecision` is not used: it is the precision of the inputs, which is int8 even for a float product with
    8-bit weights. A node that OpenVINO renamed, for example by folding a BatchNormalization into it, counts as float.

    Args:
        compiled: An openvino.Model, as `get_runtime_model` of a compiled model returns it.
        source: The ONNX model.
        shapes: Shapes of its tensors by name, for the amount of work.
    """
    layers = [layer.get_rt_info() for layer in compiled.get_ordered_ops()]
    ops = Counter(_text(info, "layerType") for info in layers)
    kernels: dict[str, str] = {}
    stored: dict[str, str] = {}
    for layer, info in zip(compiled.get_ordered_ops(), layers, strict=True):
        kind = _text(info, "layerType")
        names = [_MARKS.sub("", name) for name in _text(info, "originalLayersNames").split(",")]
        if kind in _MULTIPLY:
            kernels |= dict.fromkeys(names, _text(info, "primitiveType"))
        if kind in _WEIGHT and len(layer.inputs()) > _WEIGHT[kind]:
            integers = _INTEGERS.get(layer.input(_WEIGHT[kind]).get_element_type().get_type_name(), "")
            stored |= dict.fromkeys(names, integers)
    nodes, refused = [], []
    for _, node in source.walk():
        found = _named(stored, node) if node.op == "Gather" and is_dequantized(node) else ""
        if found:
            nodes.append(NodeExecution(node.label, node.op, "float", 0, stored=found))
    for row in count(source, shapes):
        node, asked = row.node, asks_for_int8(row.node)
        int8 = _named(kernels, node).lower().endswith("i8")
        kept = "" if int8 else _named(stored, node)
        how = "int8" if int8 else "float"
        nodes.append(NodeExecution(node.label, node.op, how, row.macs, row.exact, asked, kept))
        if asked and not int8:
            refused.append(f"{node.op} {node.label}")
    return Execution(tuple(nodes), dict(ops.most_common()), tuple(refused))


def is_dequantized(node: Node) -> bool:
    """Whether a MatMul, Gemm or Gather reads a weight from a DequantizeLinear, and its other input from elsewhere."""
    slot = {"Gather": 0, "MatMul": 1, "Gemm": 1}.get(node.op)
    makers = [_maker(tensor) for tensor in node.inputs[:2]]
    if slot is None or len(makers) < 2 or makers[1 - slot] == "DequantizeLinear":
        return False
    return makers[slot] == "DequantizeLinear"


def _maker(tensor: Tensor) -> str:
    """The operator that makes a tensor, in front of Transposes."""
    maker = edit.producer(tensor)
    while maker is not None and maker.op == "Transpose":
        maker = edit.producer(maker.inputs[0])
    return "" if maker is None else maker.op


def _named(found: Mapping[str, str], node: Node) -> str:
    """What is known of a node. OpenVINO names a node that makes an output of the model after that output."""
    return next((found[name] for name in (node.label, node.outputs[0].name) if name in found), "")


def _text(info: Any, key: str) -> str:
    return str(info[key].astype(str)) if key in info else ""

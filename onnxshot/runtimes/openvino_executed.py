"""What OpenVINO really executes: the precision of every layer of its compiled graph, by nodes of the ONNX model."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from onnxshot.graph import Model
from onnxshot.graph.macs import Shapes, count
from onnxshot.runtimes.executed import Execution, NodeExecution
from onnxshot.runtimes.openvino_rules import asks_for_int8

_MULTIPLY = ("Convolution", "Deconvolution", "FullyConnected", "MatMul", "QKVProjection", "RNNCell", "RNNSeq")
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
    for info in layers:
        if _text(info, "layerType") in _MULTIPLY:
            names = _text(info, "originalLayersNames").split(",")
            kernels |= {_MARKS.sub("", name): _text(info, "primitiveType") for name in names}
    nodes, refused = [], []
    for row in count(source, shapes):
        node, asked = row.node, asks_for_int8(row.node)
        # OpenVINO names a node that makes an output of the model after that output.
        kernel = next((kernels[name] for name in (node.label, node.outputs[0].name) if name in kernels), "")
        int8 = kernel.lower().endswith("i8")
        nodes.append(NodeExecution(node.label, node.op, "int8" if int8 else "float", row.macs, row.exact, asked))
        if asked and not int8:
            refused.append(f"{node.op} {node.label}")
    return Execution(tuple(nodes), dict(ops.most_common()), tuple(refused))


def _text(info: Any, key: str) -> str:
    return str(info[key].astype(str)) if key in info else ""

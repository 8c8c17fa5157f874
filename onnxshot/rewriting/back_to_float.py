"""Put nodes of a quantized model back to float in its proto, which is much quicker than planning and rewriting anew.

The result is for measurements: it computes what a plan with these nodes in float would, but for what the planner
decides anew about their neighbours, and it stores more than it needs.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from onnx import ModelProto, NodeProto

from onnxshot.graph import Constant
from onnxshot.graph.lean_model import LeanModel
from onnxshot.graph.ops import OPS

_FUSED = ("Relu", "Clip")
_FLOAT, _INT8 = "#float", "#int8"  # appended to names


def back_to_float(
    int8: LeanModel, plain: LeanModel, made: Collection[str], static: Collection[str]
) -> LeanModel | None:
    """Return the quantized model with some nodes of the float model in place of its own.

    What only moves values, Relu and Clip behind the nodes go with them.

    Args:
        int8: The quantized model, with Q/DQ pairs or dynamic products.
        plain: The float model that it was made of.
        made: First outputs of the nodes; those inside subgraphs are ignored.
        static: First outputs of all static int8 nodes. Other readers of a float node read it without a Q/DQ pair.

    Returns:
        The model; None where the quantized model lacks a tensor that the float nodes read.
    """
    wanted = _with_followers(plain.proto, set(made))
    nodes = {name: node for node in plain.proto.graph.node if (name := first_output(node)) in wanted}
    outputs = {name for node in nodes.values() for name in node.output}
    constants = {name for node in nodes.values() for name in node.input if plain.holds(name)}
    there = {name for node in int8.proto.graph.node for name in node.output}
    there |= {info.name for info in int8.proto.graph.input} | {*int8.initializers, *int8.weights}
    read = {name for node in nodes.values() for name in node.input if name and name not in constants}
    if not nodes or not read | nodes.keys() <= there:
        return None

    def change(proto: ModelProto) -> None:
        old = list(proto.graph.node)
        del proto.graph.node[:]
        for node in old:
            if not all(name in outputs for name in node.output if name):
                kept = proto.graph.node.add()
                kept.CopyFrom(node)
                kept.output[:] = [name + _INT8 if name in outputs else name for name in node.output]
            proto.graph.node.extend(_renamed(nodes[name], constants) for name in node.output if name in nodes)
        _bypass_pairs(proto, outputs, set(static) - nodes.keys())
        for name in sorted(constants & plain.initializers.keys()):
            tensor = proto.graph.initializer.add()
            tensor.CopyFrom(plain.initializers[name])
            tensor.name = name + _FLOAT

    large = {
        name + _FLOAT: Constant(name + _FLOAT, plain.weights[name]._values) for name in constants & plain.weights.keys()
    }
    return replace(int8.edited(change), weights={**int8.weights, **large})


def first_output(node: NodeProto) -> str:
    """The first output of a node that it really has; empty where it has none."""
    return next((name for name in node.output if name), "")


def _with_followers(proto: ModelProto, made: set[str]) -> set[str]:
    """The tensors, and those that come from them by moving values, Relu or Clip alone."""
    found = set(made)
    for node in proto.graph.node:
        follows = node.op_type in _FUSED or (node.op_type in OPS and OPS[node.op_type].keeps_range)
        if follows and len(node.output) == 1 and node.input and node.input[0] in found:
            found.add(node.output[0])
    return found


def _bypass_pairs(proto: ModelProto, made: Collection[str], static: Collection[str]) -> None:
    """Let what is not in int8 read these tensors in place of their dequantized integers."""
    rounded = {node.output[0]: node.input[0] for node in proto.graph.node if node.op_type == "QuantizeLinear"}
    pairs = {
        node.output[0]: source
        for node in proto.graph.node
        if node.op_type == "DequantizeLinear" and (source := rounded.get(node.input[0])) in made
    }
    for node in proto.graph.node:
        if first_output(node) not in static:
            node.input[:] = [pairs.get(name) or name for name in node.input]


def _renamed(node: NodeProto, constants: Collection[str]) -> NodeProto:
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.name = f"{first_output(node)}{_FLOAT}"
    copy.input[:] = [name + _FLOAT if name in constants else name for name in node.input]
    return copy

"""Read which precision each layer was compiled to from the builder's verbose log. Written for TensorRT-RTX 1.7.

With detailed profiling verbosity, the log has a line for every kernel of the engine: its name, type, tensors with their
types, and the ONNX nodes it was made of. A node may be in several kernels: one quantizes the input of a Conv, the next
("correlation") computes it, a third rescales. The kernel that multiplies has the node's name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from onnxshot.graph import Model, Node, edit
from onnxshot.graph.macs import Shape, concrete_shapes, count
from onnxshot.runtimes.executed import Execution, NodeExecution

_KERNEL = re.compile(r"\w+\|\s*Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[(?P<rest>.*)$")
_TYPE = re.compile(r"Datatype: [^}]*?\b(Int8|Int4|FP8|Float|Half|BFloat16|BF16|FP16|FP32|Int32|Int64|Bool|UInt8)\b")
_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=\x1f|\[ONNX Layer: |\s*$)")
_SUFFIX = re.compile(r"_myl\d+_\d+$")
_PRECISION = {"Int8": "int8", "Int4": "int4", "FP8": "float8"}
_GENERATED = ("kgen", "runtime_fusion")  # kernels that dequantize before they multiply, if they multiply at all


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel of an engine.

    Attributes:
        name: Its name.
        kind: Its layer type.
        inputs: Types of the tensors it reads.
        constants: Types of its constants.
        nodes: ONNX nodes it was made of.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    constants: tuple[str, ...]
    nodes: tuple[str, ...]

    @property
    def precision(self) -> str:
        """Precision of its products: that of its first input, unless it dequantizes before it multiplies."""
        if self.kind in _GENERATED or not self.inputs:
            return "float"
        return _PRECISION.get(self.inputs[0], "float")

    def computes(self, node: str) -> bool:
        """True if its name contains the node, alone or fused with others."""
        return node in [part.strip() for part in re.split(r" \+ |\+", _SUFFIX.sub("", self.name))]


def kernels(lines: Iterable[str]) -> list[Kernel]:
    """The kernels in the lines of a log, in the order they run."""
    found = []
    for line in lines:
        match = _KERNEL.match(line)
        if match is None:
            continue
        read = match["rest"].partition("], Outputs: [")[0]
        inputs, constants = (tuple(_TYPE.findall(part)) for part in read.partition("], Constants: [")[::2])
        nodes = _NODE.findall(match["rest"].partition("Metadata: ")[2])
        found.append(Kernel(match["name"], match["kind"], inputs, constants, tuple(nodes)))
    return found


def execution(model: Model, feed_shapes: Mapping[str, Shape], log: Path) -> Execution:
    """What each node that multiplies was compiled to, read from the log of the build.

    A node that names no kernel counts as float: it was folded away, or unrolled into kernels without names, as
    recurrent layers are.

    Args:
        model: The ONNX model.
        feed_shapes: Usual shapes of the inputs.
        log: The log.
    """
    with log.open(encoding="utf-8") as lines:
        made = kernels(lines)
    by_node: dict[str, list[Kernel]] = {}
    for kernel in made:
        for name in kernel.nodes:
            by_node.setdefault(name, []).append(kernel)
    if not made:
        return Execution((), {}, note="the builder's log names no layers: what runs in int8 is not known")
    ran, wanted = [], []
    for _, node in model.walk():
        tables = [k for k in by_node.get(node.name, ()) if "Int4" in k.constants] if node.op == "Gather" else []
        if tables:
            ran.append(NodeExecution(node.label, node.op, "float", 0, stored="int4"))
    for row in count(model, concrete_shapes(model, feed_shapes)):
        name = row.node.name or f"node_of_{row.node.outputs[0].name}"  # the parser's name for an unnamed node
        makers = by_node.get(name, ())
        precision = next((k.precision for k in makers if k.computes(name)), "float")
        stored = "int4" if any("Int4" in k.constants for k in makers) else ""
        asked = _asked_for(row.node)
        ran.append(NodeExecution(row.node.label, row.node.op, precision, row.macs, row.exact, asked, stored))
        if precision == "float" and asked:
            wanted.append(f"{row.node.op} {row.node.label}")
    return Execution(tuple(ran), dict(Counter(k.kind for k in made).most_common()), tuple(wanted))


def _asked_for(node: Node) -> bool:
    """True if both factors come from a DequantizeLinear."""
    makers = [edit.producer(tensor) for tensor in node.inputs[:2]]
    return len(makers) == 2 and all(m is not None and m.op == "DequantizeLinear" for m in makers)

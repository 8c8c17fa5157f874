"""Which precision each layer was compiled to, read from the builder's verbose log; written for TensorRT-RTX 1.7.

With detailed profiling verbosity the log prints a line for every kernel of the engine: its name, type, tensors with
their datatypes, and the ONNX nodes it was made of. A node may be in several kernels: one quantizes the input of a Conv,
the next ("correlation") computes it, a third rescales. The one that multiplies bears the node's name.
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
    """One kernel of an engine: the types of what it reads and of its constants, and the ONNX nodes it stands for."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    constants: tuple[str, ...]
    nodes: tuple[str, ...]

    @property
    def precision(self) -> str:
        """That of its products: of what it reads first, where it is a kernel that multiplies what it reads."""
        if self.kind in _GENERATED or not self.inputs:
            return "float"
        return _PRECISION.get(self.inputs[0], "float")

    def computes(self, node: str) -> bool:
        """True where it bears the name of the node, alone or with others it was fused with."""
        return node in [part.strip() for part in re.split(r" \+ |\+", _SUFFIX.sub("", self.name))]


def kernels(lines: Iterable[str]) -> list[Kernel]:
    """The kernels that the lines of a log tell of, in the order they run."""
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
    """What the nodes of a model that multiply were compiled to, by the log of the build.

    feed_shapes: the usual sizes of the inputs. A node that no kernel bears the name of counts as float: one that was
    folded away, or unrolled into kernels without names as recurrent ones are.
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
    for row in count(model, concrete_shapes(model, feed_shapes)):
        name = row.node.name or f"node_of_{row.node.outputs[0].name}"  # as the parser calls those without a name
        makers = by_node.get(name, ())
        precision = next((k.precision for k in makers if k.computes(name)), "float")
        stored = "int4" if any("Int4" in k.constants for k in makers) else ""
        asked = _asked_for(row.node)
        ran.append(NodeExecution(row.node.label, row.node.op, precision, row.macs, row.exact, asked, stored))
        if precision == "float" and asked:
            wanted.append(f"{row.node.op} {row.node.label}")
    return Execution(tuple(ran), dict(Counter(k.kind for k in made).most_common()), tuple(wanted))


def _asked_for(node: Node) -> bool:
    """True where both operands come out of a DequantizeLinear."""
    makers = [edit.producer(tensor) for tensor in node.inputs[:2]]
    return len(makers) == 2 and all(m is not None and m.op == "DequantizeLinear" for m in makers)

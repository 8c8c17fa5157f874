"""What ONNX Runtime really executes: work per node from a run of the file, precision from the optimized graph.

Work cannot be counted in the optimized graph: its layouts pad channels, and its fusions hide what they multiply.
Therefore the file is run without optimizations to get shapes, and each node is found again in the optimized graph to
get its precision.
"""

from __future__ import annotations

import re
from collections import ChainMap, Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import partial

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto

from onnxshot.errors import ModelError
from onnxshot.files.atomic_write import scratch
from onnxshot.graph import edit
from onnxshot.graph.ir import Constant, Node
from onnxshot.graph.lean_model import LeanModel
from onnxshot.graph.load import first_line
from onnxshot.graph.local_functions import inlined
from onnxshot.graph.macs import NodeMacs, Shape, concrete_shapes, count, node_macs
from onnxshot.graph.model import Model
from onnxshot.graph.ops import weight_slot
from onnxshot.runtimes.executed import Execution, NodeExecution
from onnxshot.runtimes.mapped_weights import serialized
from onnxshot.runtimes.ort_profile import Event, profiled
from onnxshot.runtimes.ort_runtime import Feed, Runnable, session

_INT8 = ("MatMulInteger", "ConvInteger", "DynamicQuantize", "QGemm", "QAttention", "QMoE", "QEmbedLayer", "QLinear")
_BLOCKS = ("MatMulNBits", "MatMulBnb4", "MatMulNBitsMlp", "MatMulNBitsQkv", "MatMulNBitsQLoRA")
_ROUNDS = 4  # the accuracy_level at which products by blocks round their activations to int8
_AFTER = ("Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSwish", "HardSigmoid")
_QDQ = ("QuantizeLinear", "DequantizeLinear")
_TOKEN = re.compile(r"~(\d+)~")  # name given to a node of the file; optimizers keep it within the names they make


def executed(model: Runnable, *, sample: Feed | None = None, threads: int = 2) -> Execution:
    """What ONNX Runtime executes of a model on the CPU.

    The sample is run once, without optimizations. The work counted is that of each node in this run, loops and branches
    included.

    Args:
        model: The model. A large one is run and optimized in parts.
        sample: Input arrays. Without them, zeros are run with free dimensions of 1. If the model cannot run them,
            shapes are inferred as far as possible.
        threads: CPU threads.

    Raises:
        ModelError: The model does not load, or does not run on the sample.
    """
    lean = LeanModel.of(model)
    lean = lean.in_shape_of(inlined(lean.outline()))  # ONNX Runtime inlines functions too, but with other names
    labels = _tokens(lean.proto)
    written = lean.to_graph()
    seen = _Seen(written)
    events, feed_shapes = profiled(lean, sample, threads=threads, look=partial(seen.look, threads=threads))
    if seen.unread:
        return Execution((), {}, note=f"ONNX Runtime's optimized graph cannot be read: {seen.unread}")
    rows = tuple(_rows(written, seen, _work_of_nodes(written, events, feed_shapes), labels))
    unfused = tuple(dict.fromkeys(_with_labels(text, labels) for text in seen.unfused))
    return Execution(rows, dict(seen.ops.most_common()), unfused)


# ---------------------------------------------------------------------- work, by a run of the file


def _work_of_nodes(written: Model, events: list[Event], feed_shapes: Mapping[str, Shape]) -> dict[Node, NodeMacs]:
    """The work of every node that multiplies, over all its runs."""
    if not events:
        return {row.node: row for row in count(written, concrete_shapes(written, feed_shapes))}
    by_name = defaultdict(list)
    for event in events:
        by_name[event.node].append(event)
    known = _shapes_of(written, by_name) | dict(feed_shapes)
    work, top = {}, set(written.graph.nodes)
    if any(node_macs(node, known) is not None and node.name not in by_name for node in top):
        # An operator that runs as the nodes of its function has no profile entry of its own.
        known = concrete_shapes(written, feed_shapes) | known
    for _, node in written.walk():
        rows = [node_macs(node, ChainMap(_shapes_in_run(node, event), known)) for event in by_name.get(node.name, [])]
        if not rows and node in top:
            rows = [node_macs(node, known)]
        if node_macs(node, known) is None:
            continue
        held = [row for row in rows if row is not None]
        total, aside = sum(row.macs for row in held), sum(row.in_float for row in held)
        work[node] = NodeMacs(node, total, all(row.exact for row in held), aside)
    return work


def _shapes_in_run(node: Node, event: Event) -> dict[str, Shape]:
    """Shapes of a node's tensors in one of its runs."""
    made = [t.name for t in node.outputs if t.name]
    read = [t.name for t in node.inputs if t.name]
    found: dict[str, Shape] = {}
    if len(read) == len(event.inputs):
        found |= zip(read, event.inputs, strict=True)
    if len(made) == len(event.outputs):
        found |= zip(made, event.outputs, strict=True)
    return found


def _shapes_of(written: Model, by_name: Mapping[str, list[Event]]) -> dict[str, Shape]:
    known: dict[str, Shape] = {}
    for _, node in written.walk():
        for event in by_name.get(node.name, [])[-1:]:
            known |= _shapes_in_run(node, event)
    return known


# ---------------------------------------------------------------------- precision, by the optimized graph


class _Seen:
    """What the optimized graphs of a model, or of its parts, show. Nodes of the file are known by their tokens.

    Attributes:
        int8: Nodes that run in int8.
        blocks: Nodes that multiply by weights in blocks -> how these are stored, and whether the activations are
            rounded to int8. Below accuracy_level 4 the runtime dequantizes blocks on the way and computes in float.
        rounded: Nodes with weights that the runtime rounded to int8.
        ops: Number of nodes per operator in the optimized graphs.
        unfused: Float nodes between Q and DQ.
        unread: Why an optimized graph cannot be read; empty if all can.
    """

    def __init__(self, written: Model) -> None:
        self._makers = {out.name: node for _, node in written.walk() for out in node.outputs if out.name}
        self._readers = {t.name: node for _, node in written.walk() for t in node.inputs if isinstance(t, Constant)}
        self.int8, self.rounded = set[str](), set[str]()
        self.blocks: dict[str, tuple[str, bool]] = {}
        self.ops = Counter[str]()
        self.unfused: list[str] = []
        self.unread = ""

    def look(self, part: LeanModel, threads: int) -> None:
        """Optimize a part, and add what its graph shows. Raises ModelError if ONNX Runtime does not load it."""
        with scratch() as made, serialized(part) as (source, folder):
            at = made / "optimized.onnx"
            session(source, threads=threads, folder=folder, save_optimized=at, pack=False, label=part.label)
            try:
                # Weights are not loaded: only their shapes are needed.
                optimized = Model(onnx.load(str(at), load_external_data=False), folder=made)
            except (OSError, DecodeError, ValueError, ModelError) as e:
                self.unread = first_line(e)
                return
        self._add(optimized)

    def _add(self, optimized: Model) -> None:
        for _, node in optimized.walk():
            self.ops[node.op] += 1
            tokens = {match.group(0) for match in _TOKEN.finditer(node.name)}
            if precision_of(node) != "float":
                tokens = tokens or _by_tensors(node, self._makers, self._readers)
                self.int8 |= tokens
                if node.op in _BLOCKS:
                    rounds = node.attrs.get("accuracy_level", 0) == _ROUNDS
                    self.blocks |= dict.fromkeys(tokens, (precision_of(node), rounds))
            elif _reads_stored_integers(node):
                self.rounded |= tokens
        self.unfused += _unfused(optimized)


def _by_tensors(node: Node, makers: Mapping[str, Node], readers: Mapping[str, Node]) -> set[str]:
    """Tokens of the nodes of the file that a node without a token replaces, found by its outputs or its weights."""
    found = set[str]()
    for out in node.outputs:
        maker = makers.get(out.name)
        while maker is not None and maker.op in (*_QDQ, *_AFTER) and maker.inputs:
            maker = edit.producer(maker.inputs[0])
        found |= {maker.name} if maker is not None else set()
    for tensor in node.inputs:
        reader = readers.get(tensor.name) if isinstance(tensor, Constant) and len(tensor.shape) > 1 else None
        if reader is not None and reader.op in _QDQ:
            found |= {user.name for user in edit.consumers(reader.outputs[0])}
        elif reader is not None:
            found.add(reader.name)
    return found


def _reads_stored_integers(node: Node) -> bool:
    """Whether the weight comes from a DequantizeLinear of stored integers."""
    makers = (edit.producer(tensor) for tensor in node.inputs[1:2])
    return any(m is not None and m.op == "DequantizeLinear" and isinstance(m.inputs[0], Constant) for m in makers)


def _rows(
    written: Model, found: _Seen, all_work: Mapping[Node, NodeMacs], labels: Mapping[str, str]
) -> Iterator[NodeExecution]:
    for _, node in written.walk():
        work, precision = all_work.get(node), precision_of(node)
        if precision == "float" and node.name in found.int8:
            precision = "int8"
        stored, rounds = found.blocks.get(node.name, ("", True))
        precision = "float" if not rounds else stored or precision
        if work is None and (precision == "float" or node.op in _QDQ):
            continue
        slot = weight_slot(node)
        own = slot is not None and precision_of(node) == "float" and node.inputs[slot].dtype == np.float32
        by_itself = own and (precision != "float" or node.name in found.rounded)
        macs, exact, aside = (work.macs, work.exact, work.in_float) if work is not None else (0, True, 0)
        name = labels[node.name]
        yield NodeExecution(name, node.op, precision, macs - aside, exact, stored=stored, by_itself=by_itself)
        if aside:
            yield NodeExecution(name, node.op, "float", aside, exact)


def precision_of(node: Node) -> str:
    """What an operator computes in, judged by its name.

    Returns:
        "int8", "float", or for example "int4" if the operator stores its weight so.
    """
    if node.op in _BLOCKS:
        return f"int{node.attrs.get('bits', 4)}"
    if node.op.startswith(_INT8) and node.op != "DynamicQuantizeLinear":
        return "int8"
    return "float"


def _unfused(model: Model) -> Iterator[str]:
    """Float nodes that read a DequantizeLinear and feed a QuantizeLinear, directly or through one activation."""
    for _, node in model.walk():
        if node.op in _QDQ or precision_of(node) != "float":
            continue
        makers = (edit.producer(t) for t in node.inputs)
        if not any(maker is not None and maker.op == "DequantizeLinear" for maker in makers):
            continue
        users = [user for out in node.outputs for user in edit.consumers(out)]
        users += [u for user in users if user.op in _AFTER for u in edit.consumers(user.outputs[0])]
        if any(user.op == "QuantizeLinear" for user in users):
            yield f"{node.op} {node.label}"


# ---------------------------------------------------------------------- the file, with names that can be found again


def _tokens(proto: ModelProto) -> dict[str, str]:
    """Rename every node to a unique token, in place. Returns the names the nodes had, by token."""
    name_nodes(proto.graph, set())
    labels: dict[str, str] = {}
    for node in _nodes(proto.graph):
        token = f"~{len(labels)}~"
        labels[token], node.name = node.name, token
    return labels


def _nodes(graph: GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in _graphs(attribute):
                yield from _nodes(inner)


def _graphs(attribute: onnx.AttributeProto) -> Iterable[GraphProto]:
    return [attribute.g] if attribute.HasField("g") else attribute.graphs


def _with_labels(text: str, labels: Mapping[str, str]) -> str:
    return _TOKEN.sub(lambda match: labels.get(match.group(0), match.group(0)), text)


def name_nodes(graph: GraphProto, taken: set[str]) -> None:
    """Give every node a unique name, in place, so that a profile can tell nodes apart."""
    for node in graph.node:
        if not node.name or node.name in taken:
            stem = node.name or next(iter(o for o in node.output if o), node.op_type)
            node.name = next(name for name in _variants(stem) if name not in taken)
        taken.add(node.name)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                name_nodes(attribute.g, taken)


def _variants(stem: str) -> Iterator[str]:
    yield stem
    number = 2
    while True:
        yield f"{stem}_{number}"
        number += 1

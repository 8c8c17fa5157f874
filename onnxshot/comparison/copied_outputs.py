"""Find outputs that partly copy inputs, such as the past in a decoder's key/value cache: only the computed part counts.

A copy is equal in every model, so it would raise the SQNR of the output. Instead of the output, a second tensor is
compared. The same nodes make it from zeros in place of the copied inputs: Concat(past, new) becomes Concat(0, new).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxshot.comparison.proto_edits import PREFIX, STANDARD, makers, opset_of

_COPYING: Mapping[str, tuple[int, ...] | None] = {  # op -> inputs whose values it moves unchanged; None: all
    "Identity": (0,), "Reshape": (0,), "Transpose": (0,), "Squeeze": (0,), "Unsqueeze": (0,), "Flatten": (0,),
    "Slice": (0,), "Split": (0,), "Gather": (0,), "GatherElements": (0,), "GatherND": (0,), "Expand": (0,),
    "Tile": (0,), "Concat": None, "Where": (1, 2), "ScatterND": (0, 2), "ScatterElements": (0, 2), "Scatter": (0, 2),
    "TensorScatter": (0, 1),
}  # fmt: skip
_CACHES: Mapping[tuple[str, str], Mapping[int, tuple[int, int]]] = {  # (domain, op) -> output -> (its past, its axis)
    ("", "Attention"): {1: (4, 2), 2: (5, 2)},
    ("com.microsoft", "Attention"): {1: (4, 3)},
    ("com.microsoft", "MultiHeadAttention"): {1: (6, 2), 2: (7, 2)},
    ("com.microsoft", "GroupQueryAttention"): {1: (3, 2), 2: (4, 2)},
}
_OPSET = 10  # the first with ConstantOfShape, and with a Slice that takes inputs
_TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)


@dataclass(frozen=True, slots=True)
class Copied:
    """An output that copies inputs.

    Attributes:
        output: Its name.
        sources: The inputs it copies, in the order they are found.
        judged: Name of the tensor with zeros in their place, which is compared; empty if nothing is computed.
    """

    output: str
    sources: tuple[str, ...]
    judged: str


def copied_outputs(proto: ModelProto) -> tuple[Copied, ...]:
    """The float outputs of a model that copy inputs, partly or entirely."""
    if opset_of(proto) < _OPSET:
        return ()
    made, floats = makers(proto.graph), _float_inputs(proto.graph)
    found = []
    for output in proto.graph.output:
        trace = _Trace(made, floats)
        trace.look(output.name)
        if trace.sources:
            judged = f"{PREFIX}computed/{output.name}" if trace.computes else ""
            found.append(Copied(output.name, tuple(trace.sources), judged))
    return tuple(found)


def add_computed(proto: ModelProto, copied: tuple[Copied, ...]) -> None:
    """Add the computed part of each of these outputs to the outputs of the model, in place."""
    graph, made, floats = proto.graph, makers(proto.graph), _float_inputs(proto.graph)
    new, done = list[NodeProto](), dict[str, str]()

    def twin(name: str) -> str:
        """Name of the tensor that replaces this one."""
        if name in done:
            return done[name]
        found = name
        if name in floats:
            found = f"{PREFIX}zeros/{name}"
            zero = numpy_helper.from_array(np.zeros(1, helper.tensor_dtype_to_np_dtype(floats[name])))
            new.append(helper.make_node("Shape", [name], [f"{found}/shape"]))
            new.append(helper.make_node("ConstantOfShape", [f"{found}/shape"], [found], value=zero))
        elif (node := made.get(name)) is not None and (cache := _cache(node, name)) is not None:
            found = f"{PREFIX}new/{name}"
            new.extend(_behind_past(name, cache, found))
        elif node is not None and _touches(node, made, floats):
            copy = NodeProto()
            copy.CopyFrom(node)
            slots = _moved(node)
            copy.input[:] = [twin(x) if i in slots and x else x for i, x in enumerate(node.input)]
            copy.output[:] = [f"{PREFIX}twin/{x}" if x else "" for x in node.output]
            copy.name = f"{PREFIX}twin/{node.name or node.output[0]}"
            new.append(copy)
            done.update(zip(node.output, copy.output, strict=True))
            return done[name]
        done[name] = found
        return found

    for one in copied:
        if one.judged:
            new.append(helper.make_node("Identity", [twin(one.output)], [one.judged]))
            graph.output.append(helper.make_tensor_value_info(one.judged, TensorProto.UNDEFINED, None))
            graph.output[-1].ClearField("type")
    graph.node.extend(new)


@dataclass(slots=True)
class _Trace:
    """Finds the inputs a tensor copies values from, through nodes that only move values."""

    made: Mapping[str, NodeProto]
    floats: Mapping[str, int]
    sources: dict[str, None] = field(default_factory=dict)
    computes: bool = False
    _seen: set[str] = field(default_factory=set)

    def look(self, name: str) -> None:
        waiting = [name]
        while waiting:
            name = waiting.pop()
            if name in self._seen:
                continue
            self._seen.add(name)
            node = self.made.get(name)
            if name in self.floats:
                self.sources[name] = None
            elif node is not None and node.op_type == "Constant":
                continue  # neither copied from an input nor computed
            elif node is not None and (cache := _cache(node, name)) is not None:
                waiting.append(cache[0])
                self.computes = True
            elif node is not None and (slots := _moved(node)):
                waiting += [x for i, x in enumerate(node.input) if i in slots and x]
            elif node is not None:
                self.computes = True


def _cache(node: NodeProto, output: str) -> tuple[str, int] | None:
    """The past that an attention node puts before this output, and its axis; None if there is none."""
    domain = "" if node.domain in STANDARD else node.domain
    past, axis = _CACHES.get((domain, node.op_type), {}).get(list(node.output).index(output), (len(node.input), 0))
    return (node.input[past], axis) if past < len(node.input) and node.input[past] else None


def _behind_past(name: str, cache: tuple[str, int], made: str) -> list[NodeProto]:
    """Nodes that slice off the past. If the past is a buffer as long as the output, they slice off nothing."""
    past, axis = cache
    parts = ("all", "past", "longer", "start", "end", "axis", "factor")
    whole, before, longer, start, end, at, factor = (f"{made}/{part}" for part in parts)
    ints = {at: axis, end: np.iinfo(np.int64).max}
    constants = {k: numpy_helper.from_array(np.asarray([v], np.int64), k) for k, v in ints.items()}
    return [
        *(helper.make_node("Constant", [], [k], value=v) for k, v in constants.items()),
        *_length(name, at, whole),
        *_length(past, at, before),
        helper.make_node("Greater", [whole, before], [longer]),
        helper.make_node("Cast", [longer], [factor], to=TensorProto.INT64),
        helper.make_node("Mul", [before, factor], [start]),
        helper.make_node("Slice", [name, start, end, at], [made]),
    ]


def _length(name: str, axis: str, made: str) -> list[NodeProto]:
    shape = f"{made}/shape"
    return [helper.make_node("Shape", [name], [shape]), helper.make_node("Gather", [shape, axis], [made])]


def _touches(node: NodeProto, made: Mapping[str, NodeProto], floats: Mapping[str, int]) -> bool:
    """Whether the values that the node moves include an input of the model."""
    trace = _Trace(made, floats)
    slots = _moved(node)
    for i, name in enumerate(node.input):
        if i in slots and name:
            trace.look(name)
    return bool(trace.sources)


def _moved(node: NodeProto) -> tuple[int, ...]:
    if node.domain not in STANDARD or node.op_type not in _COPYING:
        return ()
    slots = _COPYING[node.op_type]
    if any(a.name == "reduction" and a.s not in (b"", b"none") for a in node.attribute):
        return ()  # a scatter that adds
    return tuple(range(len(node.input))) if slots is None else slots


def _float_inputs(graph: GraphProto) -> dict[str, int]:
    """Element types of the float inputs that samples feed."""
    stored = {t.name for t in graph.initializer}
    kinds = {i.name: i.type.tensor_type.elem_type for i in graph.input if i.name not in stored}
    return {name: kind for name, kind in kinds.items() if kind in _TYPES}

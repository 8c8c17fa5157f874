"""Find the logits of a language model: the output that scores tokens, the input ids, and the cache that feeds back.

An output is logits of tokens if it is a float of rank 3, [batch, positions, vocabulary], and either has the name
`logits`, or as many scores as the table has rows that a Gather reads by ids. Whether position i predicts token i + 1 is
not read from the graph: it is measured (`onnxshot.verification.causality`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from onnxshot.comparison.proto_edits import makers

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_INTEGERS = (TensorProto.INT64, TensorProto.INT32)
_IDS = ("decoder_input_ids", "input_ids")  # by name; the first that a model has
_MOVES = ("Identity", "Cast", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "DequantizeLinear")
_TABLES = ("Gather", "GatherBlockQuantized")
_CACHE = re.compile(r"(past|present)(_key_values?|_states?)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class TokenOutput:
    """The logits of a language model, and what belongs to them.

    Attributes:
        logits: Name of the output, [batch, positions, vocabulary].
        ids: Name of the input of token ids, [batch, positions].
        mask: Name of the input that is 0 at padding, [batch, pasts and positions]; empty if there is none.
        presents: The output that becomes a past input in the next step, by the name of that input. Empty for a model
            without a cache.
    """

    logits: str
    ids: str
    mask: str = ""
    presents: Mapping[str, str] = field(default_factory=dict)


def token_output(proto: ModelProto) -> TokenOutput | None:
    """The logits of tokens among the outputs of a model; None if it is no language model.

    Args:
        proto: The model; the values of its large weights are not needed.
    """
    graph = proto.graph
    given = _fed(graph)
    tables = _tables(graph)
    ids = next((name for name in _IDS if name in given), "") or next((name for name in tables if name in given), "")
    if not ids or _kind(given[ids]) not in _INTEGERS:
        return None
    width = _widths(graph)
    found = [
        port.name for port in graph.output
        if _kind(port) in _FLOATS
        and ((port.name == "logits" and _rank(port) == 3)
             or (_rank(port) in (None, 3) and width.get(port.name, -1) in tables.get(ids, ())))
    ]  # fmt: skip
    if not found:
        return None
    logits = "logits" if "logits" in found else found[0]
    return TokenOutput(logits, ids, _mask(ids, given), caches(graph))


def token_ids(proto: ModelProto) -> tuple[str, ...]:
    """The inputs that hold token ids: those named so, and those by which a Gather reads a table of floats."""
    given, tables = _fed(proto.graph), _tables(proto.graph)
    return tuple(n for n in given if (n in _IDS or n in tables) and _kind(given[n]) in _INTEGERS)


def caches(graph: GraphProto) -> dict[str, str]:
    """The output that each past input takes in the next step: names that differ in `past` and `present` alone."""
    ends = {stem: port for port in graph.output if (stem := _stem(port.name, "present")) is not None}
    found = {}
    for name, port in _fed(graph).items():
        end = ends.get(_stem(name, "past") or "")
        if end is not None and _kind(end) == _kind(port) and _rank(end) in (None, _rank(port)):
            found[name] = end.name
    return found


def _stem(name: str, word: str) -> str | None:
    """A name without its `past` or `present`; None if it does not hold that word."""
    found = _CACHE.search(name)
    if found is None or found[1].lower() != word:
        return None
    return "/" + (name[: found.start()] + name[found.end() :]).strip("._/")


def _fed(graph: GraphProto) -> dict[str, ValueInfoProto]:
    """The inputs that samples feed, by name."""
    stored = {t.name for t in graph.initializer}
    return {port.name: port for port in graph.input if port.name not in stored and port.type.HasField("tensor_type")}


def _tables(graph: GraphProto) -> dict[str, set[int]]:
    """Numbers of rows of the tables that are read by each input, directly or through nodes that move its values."""
    made, shapes = makers(graph), {t.name: tuple(t.dims) for t in graph.initializer}
    found: dict[str, set[int]] = {}
    for node in graph.node:
        if node.op_type not in _TABLES or len(node.input) < 2:
            continue
        shape = shapes.get(_source(node.input[0], made), ())
        ids = _source(node.input[1], made)
        if len(shape) == 2 and ids not in shapes and ids not in made:
            found.setdefault(ids, set()).update(shape[:1])
    return found


def _widths(graph: GraphProto) -> dict[str, int]:
    """Length of the last axis of each output, as it is stated, or as the weight that makes it has."""
    made, shapes = makers(graph), {t.name: tuple(t.dims) for t in graph.initializer}
    found = {}
    for port in graph.output:
        dims = port.type.tensor_type.shape.dim
        if dims and dims[-1].dim_value:
            found[port.name] = int(dims[-1].dim_value)
        elif (width := _weight_width(port.name, made, shapes)) is not None:
            found[port.name] = width
    return found


def _weight_width(name: str, made: Mapping[str, NodeProto], shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """Number of outputs of the linear layer that makes a tensor; None if no linear layer makes it."""
    for node in _behind(name, made):
        if node.op_type not in ("MatMul", "Gemm", "MatMulNBits") or len(node.input) < 2:
            continue
        number = next((a.i for a in node.attribute if a.name == "N"), None)
        shape = shapes.get(_source(node.input[1], made), ())
        turned = (m := made.get(node.input[1])) is not None and m.op_type == "Transpose"
        turned ^= any(a.name == "transB" and a.i for a in node.attribute)
        return int(number) if number is not None else (shape[0 if turned else -1] if len(shape) == 2 else None)
    return None


def _behind(name: str, made: Mapping[str, NodeProto]) -> Iterator[NodeProto]:
    """The nodes that make a tensor, along first inputs, as long as they only move or shift values."""
    for _ in range(len(made)):
        node = made.get(name)
        if node is None:
            return
        yield node
        if node.op_type not in (*_MOVES, "Add", "Mul", "Div", "Sub") or not node.input:
            return
        name = next((x for x in node.input if x in made), node.input[0])


def _source(name: str, made: Mapping[str, NodeProto]) -> str:
    """The tensor whose values a tensor holds, before nodes that only move or convert them."""
    for _ in range(len(made)):
        node = made.get(name)
        if node is None or node.op_type not in _MOVES or not node.input:
            return name
        name = node.input[0]
    return name


def _mask(ids: str, given: Mapping[str, ValueInfoProto]) -> str:
    """The mask that belongs to these ids; that of an encoder does not belong to the ids of a decoder."""
    names = [ids.replace("input_ids", "attention_mask")] if "input_ids" in ids else []
    names += [] if ids.startswith("decoder") else ["attention_mask"]
    return next((name for name in names if name in given and _rank(given[name]) in (None, 2)), "")


def _kind(port: ValueInfoProto) -> int:
    return int(port.type.tensor_type.elem_type)


def _rank(port: ValueInfoProto) -> int | None:
    kind = port.type.tensor_type
    return len(kind.shape.dim) if kind.HasField("shape") else None

"""Cut a model into parts that run one after the other, so that only the weights of one part are in memory.

A part is a run of nodes between two narrow places of the graph: places where few bytes cross. In a transformer they are
on the residual stream, between two layers. What depends on constants alone is computed again in every part that reads
it, and so is a DequantizeLinear: its integers cross, so that ONNX Runtime fuses it with its readers as in the whole
model.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, TypeProto, ValueInfoProto, helper

from onnxshot.graph import weights
from onnxshot.graph.lean_model import LeanModel

_FREE_DIM = 128  # size that is assumed for a free dimension, to compare cuts
_UNKNOWN_BYTES = 1 << 20  # of a tensor of unknown rank
_NEVER = 1 << 60  # cost of a cut that something else than a tensor crosses
_NO_TENSORS = (
    "SequenceConstruct", "SequenceEmpty", "SequenceInsert", "SequenceErase", "SequenceMap", "SplitToSequence",
    "Optional", "OptionalGetElement",
)  # fmt: skip
_RANDOM = "Random", "Bernoulli", "Multinomial", "Dropout"


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a model.

    Attributes:
        nodes: Indices of its nodes in the whole graph, in order, with those that are computed again here.
        reads: Tensors that it reads from earlier parts, and inputs of the model.
        makes: Tensors that no earlier part makes.
        passes: Those of `makes` that later parts read.
    """

    nodes: tuple[int, ...]
    reads: tuple[str, ...]
    makes: frozenset[str]
    passes: tuple[str, ...]


class Parts:
    """The parts of a model, in the order in which they run.

    Args:
        model: The model, whose nodes are in topological order.
        limit: Most bytes of weights of a part; a single node may have more.
        stops: Where to cut instead: for each part but the last, tensors that it computes, with all that they need.
            Names that the model does not compute are ignored.
    """

    def __init__(self, model: LeanModel, limit: int, stops: Sequence[Collection[str]] | None = None) -> None:
        self._model = model
        self._nodes: list[NodeProto] = list(model.proto.graph.node)
        self._reads = [tuple(dict.fromkeys(reads(node))) for node in self._nodes]
        self._maker = {name: i for i, node in enumerate(self._nodes) for name in node.output if name}
        self._outputs = [info.name for info in model.proto.graph.output]
        self._again = self._computed_again()
        numbers = self._following(stops) if stops is not None else self._narrow(limit)
        self.parts = self._made(numbers)

    def __len__(self) -> int:
        return len(self.parts)

    @cached_property
    def stops(self) -> list[tuple[str, ...]]:
        """For each part but the last, the tensors that cross from it and earlier parts to later ones."""
        crossing, found = set[str](), []
        for number, part in enumerate(self.parts[:-1]):
            crossing |= set(part.passes)
            crossing &= {name for later in self.parts[number + 1 :] for name in later.reads}
            found.append(tuple(sorted(crossing, key=lambda name: self._maker[name])))
        return found

    @property
    def label(self) -> str:
        """How messages name the model."""
        return self._model.label

    @cached_property
    def kinds(self) -> dict[str, int]:
        """The element types that the model states, by tensor name."""
        return {name: int(info.elem_type) for name, info in self._infos.items() if info.elem_type}

    def part_of(self, name: str) -> int | None:
        """The number of the part that makes a tensor; None for inputs, constants and tensors of subgraphs."""
        return next((i for i, part in enumerate(self.parts) if name in part.makes), None)

    def until(self, names: Iterable[str]) -> int:
        """How many parts must run, from the first one, to compute these tensors."""
        wanted = set(names)
        return max((i for i, part in enumerate(self.parts, 1) if part.makes & wanted), default=0)

    def model_of(self, number: int, outputs: Iterable[str], given: Mapping[str, NDArray[Any]]) -> LeanModel:
        """Return a part as a model of its own.

        Args:
            number: Of the part.
            outputs: Its outputs, tensors that it computes.
            given: An array for each tensor that it reads, which shows its type and rank.
        """
        part, whole = self.parts[number], self._model.proto
        nodes = [self._nodes[i] for i in part.nodes]
        read = {name for i in part.nodes for name in self._reads[i]}
        wanted = list(outputs)
        constants = read | set(wanted)
        proto = ModelProto(ir_version=max(whole.ir_version, 4), opset_import=whole.opset_import)
        proto.functions.extend(whole.functions)
        proto.graph.name = whole.graph.name or "part"
        proto.graph.node.extend(nodes)
        proto.graph.initializer.extend(t for name, t in self._model.initializers.items() if name in constants)
        proto.graph.input.extend(self._input(name, given[name]) for name in part.reads)
        made = {name for node in nodes for name in node.output}
        proto.graph.value_info.extend(v for v in whole.graph.value_info if v.name in made and v.name not in wanted)
        proto.graph.output.extend(ValueInfoProto(name=name) for name in wanted)
        large = {name: c for name, c in self._model.weights.items() if name in constants}
        return LeanModel(proto, large, self._model.label)

    def _input(self, name: str, value: NDArray[Any]) -> ValueInfoProto:
        known = self._infos.get(name)
        stated = known.elem_type if known is not None else 0
        kind = stated if stated == TensorProto.BFLOAT16 else int(helper.np_dtype_to_tensor_dtype(_plain(value.dtype)))
        dims: list[int | str] = [f"{name}/{axis}" for axis in range(value.ndim)]
        if known is not None and known.HasField("shape") and len(known.shape.dim) == value.ndim:
            # A file may state sizes of inner tensors that only hold for the sample it was exported with.
            certain = range(value.ndim) if self._fixed else {1, value.ndim - 1} if value.ndim > 2 else {value.ndim - 1}
            for axis, dim in enumerate(known.shape.dim):
                if axis in certain and dim.dim_value > 0 and dim.dim_value == value.shape[axis]:
                    dims[axis] = dim.dim_value
                elif dim.dim_param:
                    dims[axis] = dim.dim_param
        return helper.make_tensor_value_info(name, kind, dims)

    @cached_property
    def _fixed(self) -> bool:
        """Whether all sizes of all inputs of the model are fixed."""
        types = (info.type.tensor_type for info in self._model.proto.graph.input)
        return all(kind.HasField("shape") and all(d.dim_value > 0 for d in kind.shape.dim) for kind in types)

    @cached_property
    def _infos(self) -> dict[str, TypeProto.Tensor]:
        graph = self._model.proto.graph
        return {v.name: v.type.tensor_type for v in (*graph.value_info, *graph.input, *graph.output)}

    # ------------------------------------------------------------------ which nodes belong to which part

    def _computed_again(self) -> set[int]:
        """Nodes that each part computes for itself: those of constants alone, and DequantizeLinear."""
        found, fixed = set[int](), set[str]()
        for i, node in enumerate(self._nodes):
            random = node.op_type.startswith(_RANDOM) or any(map(_has_graph, node.attribute))
            if not random and all(name in fixed or self._model.holds(name) for name in self._reads[i]):
                found.add(i)
                fixed.update(node.output)
            elif node.op_type == "DequantizeLinear" and node.input[0] in self._maker:
                found.add(i)
        return found

    def _closure(self, names: Iterable[str]) -> tuple[set[int], set[str]]:
        """The nodes to compute again for these tensors, and the tensors that these and the nodes read otherwise."""
        again, held, left = set[int](), set[str](), list(names)
        while left:
            name = left.pop()
            maker = self._maker.get(name)
            if maker is None or maker not in self._again:
                held.add(name)
            elif maker not in again:
                again.add(maker)
                left += self._reads[maker]
        return again, {name for name in held if not self._model.holds(name)}

    @cached_property
    def _own(self) -> list[int]:
        """Indices of the nodes that are computed once."""
        return [i for i in range(len(self._nodes)) if i not in self._again]

    @cached_property
    def _needs(self) -> dict[int, tuple[set[int], set[str]]]:
        """For each node that is computed once, what `_closure` gives of its inputs."""
        return {i: self._closure(self._reads[i]) for i in self._own}

    def _narrow(self, limit: int) -> dict[int, int]:
        """Cut at narrow places, so that no part has more weights than the limit. Returns node -> part."""
        own = self._own
        loads = [self._load(i) for i in own]
        costs = self._costs()
        numbers, part, start, left = dict[int, int](), 0, 0, sum(loads)
        while left > limit:
            size, ends = 0, list[tuple[int, int]]()  # bytes up to a node, and the node's position
            most = max(limit, next(filter(None, loads[start:])))
            for position in range(start, len(own)):
                size += loads[position]
                if size > most:
                    break
                ends.append((size, position))
            late = [end for taken, end in ends if 2 * taken >= ends[-1][0] and costs[end] < _NEVER]
            late = late or [end for end in range(ends[-1][1] + 1, len(own)) if costs[end] < _NEVER][:1]
            cut = min(late, key=lambda end: (costs[end], -end), default=len(own) - 1)
            if cut == len(own) - 1:
                break
            numbers |= dict.fromkeys(own[start : cut + 1], part)
            left -= sum(loads[start : cut + 1])
            part, start = part + 1, cut + 1
        return numbers | dict.fromkeys(own[start:], part)

    def _load(self, node: int) -> int:
        """Bytes that the large weights take which a node reads, directly or through nodes that are computed again.

        ONNX Runtime stores a dequantized weight in float32, unless a kernel for integers reads it: that of a node whose
        input is dequantized too.
        """
        again = self._needs[node][0]
        dequantized = [i for i in again if self._nodes[i].op_type == "DequantizeLinear"]
        stored = {self._nodes[i].input[0] for i in dequantized if self._model.holds(self._nodes[i].input[0])}
        floats = stored if len(stored) == len(dequantized) else set()
        names = {name for i in (node, *again) for name in self._reads[i]}
        large = {name: self._model.weights[name] for name in names if name in self._model.weights}
        return sum(4 * math.prod(c.shape) if n in floats else weights.size_bytes(c) for n, c in large.items())

    def _costs(self) -> list[int]:
        """Bytes that cross a cut behind each node that is computed once, inputs of the model not counted."""
        position = {i: at for at, i in enumerate(self._own)}
        last: dict[str, int] = {}
        for i in self._own:
            for name in self._needs[i][1]:
                if name in self._maker:
                    last[name] = position[i]
        steps: NDArray[np.object_] = np.zeros(len(self._own) + 1, object)
        for name, end in last.items():
            begin = position[self._maker[name]]
            size = self._size(name)
            steps[begin] += size
            steps[end] -= size
        return [int(total) for total in np.cumsum(steps)]

    def _size(self, name: str) -> int:
        """Bytes of a tensor with _FREE_DIM in place of free dimensions."""
        if self._nodes[self._maker[name]].op_type in _NO_TENSORS:
            return _NEVER
        info = self._infos.get(name)
        if info is None or not info.HasField("shape"):
            return _UNKNOWN_BYTES
        item = 1 if info.elem_type in (TensorProto.INT8, TensorProto.UINT8, TensorProto.BOOL) else 4
        return item * math.prod(d.dim_value if d.dim_value > 0 else _FREE_DIM for d in info.shape.dim)

    def _following(self, stops: Sequence[Collection[str]]) -> dict[int, int]:
        """Put the nodes that the tensors of each stop need into one part. Returns node -> part."""
        numbers: dict[int, int] = {}
        for part, names in enumerate(stops):
            left = [name for name in names if name in self._maker]
            seen = set[str](left)
            while left:
                maker = self._maker.get(left.pop())
                if maker is None or maker in numbers:
                    continue
                if maker not in self._again:
                    numbers[maker] = part
                more = set(self._reads[maker]) - seen
                seen |= more
                left += more
        return numbers | {i: len(stops) for i in self._own if i not in numbers}

    def _made(self, numbers: Mapping[int, int]) -> list[Part]:
        """The parts, given the part of each node that is computed once."""
        count = max(numbers.values(), default=0) + 1
        members: list[list[int]] = [[] for _ in range(count)]
        for i in self._own:
            members[numbers[i]].append(i)
        found, made_before = list[Part](), set[str]()
        needs: list[set[str]] = []
        for number, own in enumerate(members):
            again, held = set[int](), set[str]()
            for i in own:
                again |= self._needs[i][0]
                held |= self._needs[i][1]
            if number == count - 1:  # outputs of the model that are computed again
                more = self._closure(n for n in self._outputs if self._maker.get(n) in self._again)
                again, held = again | more[0], held | more[1]
            makes = {name for i in (*own, *again) for name in self._nodes[i].output if name}
            inside = {name for i in own for name in self._nodes[i].output}
            needs.append(held - inside)
            found.append(Part(tuple(sorted({*own, *again})), (), frozenset(makes - made_before), ()))
            made_before |= makes
        for number, part in enumerate(found):
            later = set[str]().union(*needs[number + 1 :])
            own_made = {name for i in members[number] for name in self._nodes[i].output if name}
            found[number] = Part(
                part.nodes, tuple(sorted(needs[number])), part.makes, tuple(sorted(own_made & later))
            )
        return found


def reads(node: NodeProto) -> Iterable[str]:
    """Yield the names of all tensors that a node reads, with those that its subgraphs read from outside."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            made = {name for inner in graph.node for name in inner.output}
            made |= {info.name for info in graph.input} | {t.name for t in graph.initializer}
            yield from (name for inner in graph.node for name in reads(inner) if name not in made)
            yield from (info.name for info in graph.output if info.name not in made)


def _has_graph(attribute: Any) -> bool:
    return attribute.HasField("g") or bool(attribute.graphs)


def _plain(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The type of strings without their length, which numpy adds."""
    return np.dtype(object) if dtype.kind in "SU" else dtype

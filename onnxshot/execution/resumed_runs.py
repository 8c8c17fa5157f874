"""Run a float model with some of its tensors quantized; what stands before those tensors is not run again.

The model is cut at a few narrow places. The float tensors that cross the cuts are computed once for each sample, and so
are those that the nodes behind a quantized tensor read. A run with quantized tensors takes the nodes from there to the
next cut, and then the sections behind it, whose sessions all runs share.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from onnxshot import memory
from onnxshot.graph.lean_model import LeanModel
from onnxshot.maths.affine import QuantParams
from onnxshot.runtimes.mapped_weights import serialized
from onnxshot.runtimes.ort_session import Feed, SessionRunner
from onnxshot.runtimes.parallel import in_order
from onnxshot.runtimes.parts import reads
from onnxshot.runtimes.spool import Spool

_SECTIONS = 8  # more cost more copies in each run, fewer cost larger sessions for each group of tensors
_SCALE, _ZERO_POINT = "resumed/scale", "resumed/zero_point"
_UNKNOWN = 1 << 20  # values of a tensor of unknown shape

Tensors = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class _Pair:
    """A QuantizeLinear and the DequantizeLinear that reads it."""

    quantize: NodeProto
    dequantize: NodeProto


class ResumedRuns:
    """Runs of a model with one group of its tensors quantized.

    Memory: the weights of the model, packed for the kernels, and `memory.waiting_bytes()` of float tensors; more are in
    a temporary file.

    Args:
        model: The model with a QuantizeLinear and DequantizeLinear for each tensor of the groups.
        groups: Name of a group -> names of its tensors, as before or as behind their pair.
        shapes: Shapes of the model's tensors; cuts are made where few values cross.
    """

    def __init__(
        self, model: LeanModel, groups: Mapping[str, Iterable[str]], shapes: Mapping[str, Sequence[int]]
    ) -> None:
        self._model = model
        self._outputs = [info.name for info in model.proto.graph.output]
        self._inputs = {info.name for info in model.proto.graph.input if not model.holds(info.name)}
        makers = {name: node for node in model.proto.graph.node for name in node.output}
        found: dict[str, _Pair] = {}
        for node in model.proto.graph.node:
            quantize = makers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
            if quantize is not None and quantize.op_type == "QuantizeLinear":
                found[quantize.input[0]] = found[node.output[0]] = _Pair(quantize, node)
        self._groups = {
            group: tuple({id(found[name].dequantize): found[name] for name in names if name in found}.values())
            for group, names in groups.items()
        }
        self._nodes = self._plain({id(n) for pair in found.values() for n in (pair.quantize, pair.dequantize)}, found)
        self._reads = [tuple(dict.fromkeys(reads(node))) for node in self._nodes]
        self._maker = {name: i for i, node in enumerate(self._nodes) for name in node.output if name}
        self._last = {name: i for i, names in enumerate(self._reads) for name in names}
        self._cuts = self._chosen_cuts(shapes)
        self._spool = Spool(memory.waiting_bytes())
        self._kinds: dict[str, int] = {}
        self._sections: dict[int, SessionRunner | None] = {}
        self._runners: dict[str, SessionRunner] = {}
        self._tails: dict[str, _Tail] = {}
        self._crossings: dict[int, tuple[str, ...]] = {}
        self._lock = Lock()
        self._feeds: Sequence[Feed] = ()

    def prepare(self, feeds: Sequence[Feed], groups: Iterable[str], threads: int) -> None:
        """Compute the float tensors that runs of these groups on these samples need."""
        self._spool.close()
        self._spool, self._feeds = Spool(memory.waiting_bytes()), feeds
        needed = {name for group in groups for name in self._tail(group).reads}
        needed |= {name for cut in range(1, len(self._cuts) - 1) for name in self._crossing(cut)}
        wanted = (needed | set(self._outputs)) & self._maker.keys()
        if not feeds:
            return
        self._see(feeds[0])
        for number, (begin, end) in enumerate(pairwise(self._cuts)):
            inside = range(begin, end)
            outputs = [name for i in inside for name in self._nodes[i].output if name in wanted]
            runner = self._session([self._nodes[i] for i in inside], outputs)
            if runner is None:
                continue
            inputs = self._crossing(number)

            def work(
                sample: int, runner: SessionRunner = runner, inputs: Sequence[str] = inputs,
                outputs: Sequence[str] = outputs,
            ) -> None:  # fmt: skip
                found = runner.run({name: self._value(name, sample) for name in inputs})
                for name in outputs:
                    self._spool.put((name, sample), found[name])

            for _ in in_order(work, range(len(feeds)), threads):
                pass
            self._see({name: self._spool.get((name, 0)) for name in outputs})  # types, for the next sections

    def _see(self, values: Tensors) -> None:
        self._kinds |= {name: int(helper.np_dtype_to_tensor_dtype(array.dtype)) for name, array in values.items()}

    def run(self, group: str, params: QuantParams, sample: int) -> dict[str, NDArray[Any]]:
        """Return the outputs of the model on a sample with the tensors of this group quantized.

        Args:
            group: One that `prepare` was told of.
            params: Its scale and zero point.
            sample: Number of a sample of `prepare`.

        Raises:
            ModelError: The run fails.
        """
        tail = self._tail(group)
        given = {name: self._value(name, sample) for name in tail.reads}
        given |= {_SCALE: np.asarray(params.scale, np.float32), _ZERO_POINT: np.asarray(params.zero_point)}
        changed = dict(self._runner_of(group, tail).run(given)) if tail.outputs else {}  # nothing may read the group
        for number in range(tail.next_section, len(self._cuts) - 1):
            inputs = self._crossing(number)
            if changed.keys().isdisjoint(inputs):
                continue
            runner = self._section(number)
            if runner is None:
                continue
            feed = {name: changed[name] if name in changed else self._value(name, sample) for name in inputs}
            changed |= runner.run(feed)
        return {name: changed[name] if name in changed else self._value(name, sample) for name in self._outputs}

    def release(self, group: str) -> None:
        """Let go the session of a group."""
        self._runners.pop(group, None)

    def _value(self, name: str, sample: int) -> NDArray[Any]:
        feed = self._feeds[sample]
        return feed[name] if name in self._inputs and name in feed else self._spool.get((name, sample))

    # ------------------------------------------------------------------ the graph without pairs, and its cuts

    def _plain(self, pairs: set[int], found: Mapping[str, _Pair]) -> list[NodeProto]:
        """The nodes, with an Identity in place of each pair."""
        behind = {id(pair.dequantize): pair for pair in found.values()}
        nodes = []
        for node in self._model.proto.graph.node:
            if id(node) in behind:
                nodes.append(helper.make_node("Identity", [behind[id(node)].quantize.input[0]], [node.output[0]]))
            elif id(node) not in pairs:
                nodes.append(node)
        return nodes

    def _chosen_cuts(self, shapes: Mapping[str, Sequence[int]]) -> list[int]:
        """Positions of cuts at narrow places: the first is 0, the last the number of nodes."""
        count = len(self._nodes)
        size = {name: math.prod(shapes[name]) if name in shapes else _UNKNOWN for name in self._maker}
        steps = np.zeros(count + 1)
        for name, made in self._maker.items():
            last = self._last.get(name, -1)
            if last > made and self._nodes[made].op_type != "Identity":
                steps[made + 1] += size[name]
                steps[last + 1] -= size[name]
        crossing = np.cumsum(steps)
        load = np.cumsum([sum(size[name] for name in node.output if name) + 1 for node in self._nodes])
        cuts = [0]
        for number in range(1, _SECTIONS):
            low, high = (int(np.searchsorted(load, load[-1] * (number + d) / _SECTIONS)) for d in (-0.4, 0.4))
            low, high = max(low, cuts[-1]) + 1, min(high, count - 1)
            if low <= high:
                cuts.append(low + int(np.argmin(crossing[low : high + 1])))
        return [*cuts, count]

    def _crossing(self, number: int) -> tuple[str, ...]:
        """What a section reads from before it, inputs of the model included."""
        if number not in self._crossings:
            begin, end = self._cuts[number], self._cuts[number + 1]
            names = {n for i in range(begin, end) for n in self._reads[i] if self._maker.get(n, -1) < begin}
            self._crossings[number] = tuple(sorted(n for n in names if not self._model.holds(n)))
        return self._crossings[number]

    def _leaves(self, inside: Iterable[int], end: int) -> list[str]:
        """What these nodes make that is read at or behind a position, or is an output of the model."""
        outputs = set(self._outputs)
        made = (name for i in inside for name in self._nodes[i].output if name)
        return [name for name in made if name in outputs or self._last.get(name, -1) >= end]

    def _section(self, number: int) -> SessionRunner | None:
        with self._lock:
            if number not in self._sections:
                inside = range(self._cuts[number], self._cuts[number + 1])
                leaves = self._leaves(inside, self._cuts[number + 1])
                self._sections[number] = self._session([self._nodes[i] for i in inside], leaves)
            return self._sections[number]

    # ------------------------------------------------------------------ from quantized tensors to the next cut

    def _tail(self, group: str) -> _Tail:
        if group not in self._tails:
            self._tails[group] = self._made_tail(group)
        return self._tails[group]

    def _runner_of(self, group: str, tail: _Tail) -> SessionRunner:
        with self._lock:
            if group not in self._runners:
                runner = self._session(tail.nodes, tail.outputs, tail.kind)
                assert runner is not None
                self._runners[group] = runner
            return self._runners[group]

    def _made_tail(self, group: str) -> _Tail:
        pairs = {self._maker[pair.dequantize.output[0]]: pair for pair in self._groups[group]}
        next_section = next(i for i, cut in enumerate(self._cuts) if cut > max(pairs))
        end = self._cuts[next_section]
        behind, inside = set[str](), list[int]()
        for i in range(min(pairs), end):
            if i in pairs or not behind.isdisjoint(self._reads[i]):
                inside.append(i)
                behind.update(self._nodes[i].output)
        nodes = list[NodeProto]()
        for i in inside:
            if i not in pairs:
                nodes.append(self._nodes[i])
                continue
            for node in (pairs[i].quantize, pairs[i].dequantize):
                copy = NodeProto()
                copy.CopyFrom(node)
                del copy.input[1:]
                copy.input.extend([_SCALE, _ZERO_POINT])
                nodes.append(copy)
        read = {name for i in inside for name in self._reads[i]} - behind
        leaves = self._leaves(inside, end)
        zero = next(iter(pairs.values())).quantize.input[2]
        read_before = tuple(sorted(name for name in read if not self._model.holds(name)))
        return _Tail(tuple(nodes), read_before, tuple(leaves), next_section, self._model.kind_of(zero)[0])

    def _session(self, nodes: Sequence[NodeProto], outputs: Sequence[str], kind: int = 0) -> SessionRunner | None:
        """These nodes as a session; None where nothing is wanted of them.

        kind: element type of the zero point, where the scale and zero point are inputs.
        """
        if not outputs:
            return None
        whole = self._model.proto
        part = ModelProto(ir_version=max(whole.ir_version, 4), opset_import=whole.opset_import)
        part.functions.extend(whole.functions)
        part.graph.name = "section"
        part.graph.node.extend(nodes)
        read = dict.fromkeys(name for node in nodes for name in reads(node))
        made = {name for node in nodes for name in node.output}
        part.graph.initializer.extend(t for name, t in self._model.initializers.items() if name in read)
        large = {name: constant for name, constant in self._model.weights.items() if name in read}
        for name in read:
            if name in (_SCALE, _ZERO_POINT):
                part.graph.input.append(
                    helper.make_tensor_value_info(name, TensorProto.FLOAT if name == _SCALE else kind, [])
                )
            elif name not in made and not self._model.holds(name):
                part.graph.input.append(helper.make_tensor_value_info(name, self._kinds.get(name, 1), None))
        part.graph.output.extend(ValueInfoProto(name=name) for name in outputs)
        with serialized(LeanModel(part, large, self._model.label)) as (source, folder):
            return SessionRunner(source, threads=1, outputs=outputs, inner=True, folder=folder)


@dataclass(frozen=True, slots=True)
class _Tail:
    """The nodes from the quantized tensors of a group to the next cut.

    Attributes:
        nodes: The nodes.
        reads: The float tensors that they read.
        outputs: What they make that is read behind the cut, and outputs of the model.
        next_section: Number of the section behind the cut.
        kind: Element type of the zero point.
    """

    nodes: tuple[NodeProto, ...]
    reads: tuple[str, ...]
    outputs: tuple[str, ...]
    next_section: int
    kind: int

"""Check that a normalized model still computes what the given model computes, up to rounding.

If the outputs differ on a sample, they are compared again with equal random numbers and equal picks of TopK in both
models. If they still differ, all tensors that both models have are compared in graph order: passes keep a name only for
the same value. Each tensor that differs is computed again from the same values in both models, by only the nodes that
lead to it. This separates a node whose meaning changed from a node that amplifies rounding by choosing between nearly
equal values, as TopK, ArgMax and Round do.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper

from onnxshot.calibration.readers import Sample
from onnxshot.comparison.comparison_setup import comparison_setup
from onnxshot.comparison.proto_edits import PREFIX, opset_of
from onnxshot.comparison.random_nodes import fix_randomness, inlined, random_sources
from onnxshot.errors import ModelError
from onnxshot.graph.lean_model import LeanModel
from onnxshot.graph.weights import elem_type
from onnxshot.maths.sqnr import SqnrSum
from onnxshot.runtimes.ort_runtime import Feed, Runner

_DIGITS: Mapping[int, int] = {TensorProto.FLOAT16: 11, TensorProto.BFLOAT16: 8}  # bits of a significand; float32: 24
_DB_PER_BIT = 20 * math.log10(2)
_AT_ONCE = 16  # tensors returned by one run
_SUSPECTS = 32  # most differing tensors that are computed again
_ROUNDED = 2.0**-22  # tolerance relative to the largest input: what rounding leaves if values cancel out

_Outputs = Mapping[str, NDArray[Any]]


def check_same_outputs(
    given: Path | LeanModel, normal: LeanModel, sample: Sample, wanted: _Outputs, *, threads: int
) -> None:
    """Check that the normalized model computes the same outputs as the given one.

    Two values agree if half of the significand's bits do. The narrowest float type in either model counts. Rounding
    reaches that far only where values cancel out.

    Args:
        given: The model as it was given.
        normal: The normalized model.
        sample: One sample.
        wanted: Outputs of the given model on the sample.
        threads: CPU threads of each session.

    Raises:
        ModelError: A node computes something else. Names the node.
    """
    # Without optimizations, a session of a large graph takes a quarter of the time.
    got = Runner(normal, optimize=False, threads=threads).run(sample.feed)
    held = [name for name in wanted if name in got]
    least_db = agreement_db(normal)
    if all(_agree(wanted[name], got[name], least_db) for name in held):
        return
    lean = LeanModel.of(given)
    least_db = min(least_db, agreement_db(lean))  # normalization widens 16-bit floats, which removes rounding
    differing = [name for name in held if not _agree(wanted[name], got[name], least_db)]
    if not differing or _agree_when_comparable(given, normal, sample, differing, least_db, threads):
        return
    try:
        found = _Pair(*_with_equal_randomness(lean, normal), sample.feed, least_db, threads).first_changed()
    except ModelError:
        return  # a model does not run with its inner tensors as outputs: its nodes cannot be checked
    if found is not None:
        opsets = f"from opset {opset_of(lean.proto)} to {opset_of(normal.proto)}"
        raise ModelError(
            f"normalizing the model, {opsets}, changes the output of {found}",
            "a fault of onnxshot: report it, and export the model again with a newer opset",
        )


def _agree_when_comparable(
    given: Path | LeanModel, normal: LeanModel, sample: Sample, differing: Sequence[str], least_db: float, threads: int
) -> bool:
    """Whether these outputs agree with equal random numbers and equal picks in both models."""
    try:
        setup = comparison_setup(given, sample.feed)
        if setup.plain:
            return False
        setup, other = setup.load_candidate(normal, given, threads)
        wanted = Runner(setup.reference, threads=threads).run(sample.feed)
        got = other.run(setup.feed(sample.feed, wanted))
    except ModelError:
        return False
    names = setup.compared(wanted, got)
    return set(differing) <= set(names) and all(_agree(wanted[name], got[name], least_db) for name in names)


def _with_equal_randomness(given: LeanModel, normal: LeanModel) -> tuple[LeanModel, LeanModel]:
    """Both models, made to draw the same random numbers if they draw any. Raises ModelError."""
    flat = inlined(given.outline())
    drawn = random_sources(flat)
    if not drawn:
        return given, normal
    copy = normal.outline()
    fix_randomness(flat)
    fix_randomness(copy, drawn)
    return given.in_shape_of(flat), normal.in_shape_of(copy)


def agreement_db(model: LeanModel) -> float:
    """SQNR in dB above which rounding explains a difference.

    It is half of the significand's bits of the narrowest float type in the model, in dB.
    """
    proto = model.proto
    types = set(map(elem_type, model.weights.values()))
    nodes = [node for function in proto.functions for node in function.node]
    graphs = [proto.graph, *(graph for node in nodes for graph in _subgraphs(node))]
    while graphs:
        graph = graphs.pop()
        types |= {t.data_type for t in graph.initializer}
        types |= {i.type.tensor_type.elem_type for i in (*graph.input, *graph.value_info, *graph.output)}
        nodes += graph.node
        graphs += [inner for node in graph.node for inner in _subgraphs(node)]
    types |= {a.i for n in nodes if n.op_type == "Cast" for a in n.attribute if a.name == "to"}
    return _DB_PER_BIT * min(_DIGITS.get(kind, 24) for kind in types | {TensorProto.FLOAT}) / 2


def _agree_widened(wanted: NDArray[Any], got: NDArray[Any], least_db: float) -> bool:
    """Whether inner tensors agree when one model may compute in a wider float type than the other."""
    if wanted.dtype.kind == got.dtype.kind == "f":
        return _agree(wanted.astype(np.float64), got.astype(np.float64), least_db)
    return _agree(wanted, got, least_db)


def _agree(wanted: NDArray[Any], got: NDArray[Any], least_db: float) -> bool:
    if wanted.dtype != got.dtype or wanted.shape != got.shape:
        return False
    if wanted.dtype.kind != "f":
        return bool(np.array_equal(wanted, got))
    total = SqnrSum()
    total.add(wanted, got)
    return total.db >= least_db


@dataclass(slots=True)
class _Pair:
    """The given model, the normalized model, and the sample to run them on."""

    given: LeanModel
    normal: LeanModel
    feed: Feed
    least_db: float
    threads: int

    def first_changed(self) -> str | None:
        """The nodes behind the first tensor that differs even when computed from equal values; None if all agree."""
        there = {name for node in self.normal.proto.graph.node for name in node.output}
        shared = [name for node in self.given.proto.graph.node for name in node.output if name in there]
        shared = [name for name in shared if name and not name.startswith(PREFIX)]
        first, second = (self._runner(model, shared) for model in (self.given, self.normal))
        stops = {*first.outputs, *self.feed}
        suspects = islice(self._differing(first, second), _SUSPECTS)
        return next((found for name in suspects if (found := self._changed(name, stops, first, second))), None)

    def _runner(self, model: LeanModel, names: Collection[str]) -> Runner:
        return Runner(model.with_outputs(names), optimize=False, threads=self.threads)

    def _differing(self, first: Runner, second: Runner) -> Iterator[str]:
        """Names of the tensors that differ between the models, in graph order."""
        for start in range(0, len(first.outputs), _AT_ONCE):
            names = first.outputs[start : start + _AT_ONCE]
            wanted, got = first.run(self.feed, names), second.run(self.feed, names)
            yield from (name for name in names if not _agree_widened(wanted[name], got[name], self.least_db))

    def _changed(self, name: str, stops: Collection[str], first: Runner, second: Runner) -> str:
        """The nodes that make a tensor, if the models compute it differently from the same values; else empty."""
        parts = [_Part.of(model, name, stops) for model in (self.given, self.normal)]
        inside = sorted({read for part in parts for read in part.reads} - set(self.feed))
        values = {**self.feed, **first.run(self.feed, inside)}
        types = {n: value.dtype for n, value in second.run(self.feed, inside).items()}
        try:
            wanted = parts[0].run(values)
            got = parts[1].run({n: value.astype(types.get(n, value.dtype)) for n, value in values.items()})
            if _agree_widened(wanted, got, self.least_db) or self._rounding_decides(parts, values, wanted):
                return ""
        except ModelError:
            return ""
        read = [float(np.abs(values[n]).max(initial=0)) for p in parts for n in p.reads if values[n].dtype.kind == "f"]
        if wanted.shape == got.shape and wanted.dtype.kind == got.dtype.kind == "f":
            near = _ROUNDED * max(read, default=0.0)
            if np.allclose(wanted, got, rtol=0, atol=near, equal_nan=True):
                return ""
        nodes = parts[0].model.proto.graph.node[-3:]
        return " and ".join(f"node {n.name or n.output[0]!r} ({n.op_type})" for n in nodes)

    def _rounding_decides(self, parts: Sequence[_Part], values: _Outputs, wanted: NDArray[Any]) -> bool:
        """Whether rounding decides the result: inputs moved by one rounding step give another one.

        A single node gets exactly the same values in both models, so it cannot differ by rounding.
        """
        if all(len(part.model.proto.graph.node) == 1 for part in parts):
            return False
        rng = np.random.default_rng(0)
        moved = {name: _perturbed(value, rng) for name, value in values.items()}
        return not _agree_widened(wanted, parts[0].run(moved), self.least_db)


def _perturbed(value: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """The values with their last bits changed at random."""
    if value.dtype.kind != "f":
        return value
    factors = 1 + rng.choice([-2, 0, 2], value.shape) * np.finfo(value.dtype).eps
    return np.asarray(value * factors, value.dtype)


@dataclass(frozen=True, slots=True)
class _Part:
    """The nodes that make one tensor from others, as a model of their own."""

    model: LeanModel
    target: str
    reads: tuple[str, ...]

    @classmethod
    def of(cls, whole: LeanModel, target: str, stops: Collection[str]) -> _Part:
        """Cut out the nodes between the nearest of `stops` and the target."""
        proto, graph = whole.proto, whole.proto.graph
        makers = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
        used, seen, left = set[int](), set[str](), [target]
        while left:
            name = left.pop()
            if name in makers and (name == target or name not in stops) and makers[name] not in used:
                used.add(makers[name])
                left += _reads(graph.node[makers[name]]) - seen
            seen.add(name)
        nodes = [graph.node[i] for i in sorted(used)]
        made = {name for node in nodes for name in node.output}
        read = {name for node in nodes for name in _reads(node)}
        constants = [tensor for tensor in graph.initializer if tensor.name in read]
        large = {name: constant for name, constant in whole.weights.items() if name in read}
        stored = {tensor.name for tensor in constants} | large.keys()
        inner = helper.make_graph(nodes, "part", [], [ValueInfoProto(name=target)], constants)
        model = helper.make_model(
            inner, opset_imports=proto.opset_import, functions=proto.functions, ir_version=max(proto.ir_version, 4)
        )
        reads = tuple(sorted(name for name in (read & set(stops)) - made - stored))
        return cls(LeanModel(model, large), target, reads)

    def run(self, values: _Outputs) -> NDArray[Any]:
        """Compute the tensor. Raises ModelError if ONNX Runtime does not run these nodes alone."""
        kinds = {name: helper.np_dtype_to_tensor_dtype(values[name].dtype) for name in self.reads}
        infos = [helper.make_tensor_value_info(name, kind, values[name].shape) for name, kind in kinds.items()]
        part = self.model.edited(lambda proto: proto.graph.input.extend(infos))
        return Runner(part, optimize=False, threads=1).run(values)[self.target]


def _subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        yield from (attribute.g,) if attribute.HasField("g") else ()
        yield from attribute.graphs


def _reads(node: NodeProto) -> set[str]:
    """Names that a node or its subgraphs read."""
    inner = {name for graph in _subgraphs(node) for n in graph.node for name in _reads(n)}
    results = {info.name for graph in _subgraphs(node) for info in graph.output}
    return {name for name in node.input if name} | inner | results

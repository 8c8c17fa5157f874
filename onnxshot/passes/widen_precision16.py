"""Widen float16 and bfloat16 tensors to float32. Inputs and outputs keep their types behind Casts.

CPUs compute float16 in float32 or not at all, and int8 kernels read and write float32. Large weights are widened when
they are read; each remembers the type that it was stored in (`stored_as`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import AttributeProto, TensorProto, ValueInfoProto, numpy_helper

from onnxshot.graph import Constant, Graph, Model, Node, Tensor, Variable, edit, shape_inference, weights
from onnxshot.graph.float16_types import HALF_TYPES, TYPE_ATTRIBUTES, elem_type, has_half, holds_half
from onnxshot.graph.ops import STANDARD_DOMAINS
from onnxshot.graph.weight_pieces import reads_rows, rows
from onnxshot.passes import evaluate_constants
from onnxshot.passes.base import Change
from onnxshot.passes.inline_functions import InlineFunctions
from onnxshot.passes.name_nodes import NameNodes

_KNOWN_DOMAINS = frozenset({*STANDARD_DOMAINS, None, "com.microsoft", "ai.onnx.ml"})
_BY_BITS = frozenset({"BitCast"})  # operators that read the bits of a float, so that float32 gives other results
_LAZY_BYTES = 1 << 20  # larger weights are widened each time they are read, and never held


@dataclass(slots=True)
class WidenPrecision16:
    """Widen all float16 and bfloat16 tensors, in subgraphs too. Local functions are inlined first.

    Edits count the tensors. One skip means that the model was not changed: it has an operator of an unknown domain, an
    operator that reads the bits of a float, or an input or output that is a sequence of 16-bit floats.

    Attributes:
        computed: filled by `run`: name of each tensor that was computed in 16 bits -> ONNX element type. Empty if the
            model only stores weights in 16 bits.
        known: filled by `run`: names of all tensors.
        makers: filled by `run`: names of the nodes that produced 16-bit tensors, without Casts.
    """

    computed: dict[str, int] = field(default_factory=dict)
    known: frozenset[str] = frozenset()
    makers: frozenset[str] = frozenset()
    name: str = "widen_precision16"

    @property
    def runs_nowhere(self) -> bool:
        """Whether the model computes in bfloat16, for which ONNX Runtime has no CPU kernels."""
        return TensorProto.BFLOAT16 in self.computed.values()

    def run(self, model: Model) -> Change:
        """Widen the tensors, or skip the whole model."""
        change = Change()
        if not holds_half(model):
            return change
        InlineFunctions().run(model)
        NameNodes().run(model)
        shape_inference.infer(model)
        refused = _refusal(model)
        if refused is not None:
            change.skip(*refused)
            return change
        half = _half_tensors(model)
        self.computed = half if _computes(model, half) else {}
        self.known = frozenset(model.tensors())
        made = (n for n in model.graph.nodes if n.op != "Cast" and any(t.name in half for t in n.outputs))
        self.makers = frozenset(n.name for n in made)
        _unfold_constant_nodes(model)
        ports = [*_narrow_inputs(model), *_narrow_outputs(model)]
        seen = {id(t) for t in ports}
        for constant in model.constants():
            if weights.elem_type(constant) in HALF_TYPES and id(constant) not in seen:
                _widen_constant(constant)
                change.edits += 1
        narrowing = {edit.producer(t) for t in ports}
        for _, node in model.walk():
            if node not in narrowing:
                _widen_attributes(node)
        for graph in model.graphs():
            _widen_infos(graph, {t.name for t in ports} if graph is model.graph else None)
        edit.toposort(model)
        change.edits += len(half)
        return change


def _computes(model: Model, half: Mapping[str, int]) -> bool:
    """Whether a node computes in 16-bit floats. A Cast of a stored weight does not count."""
    makers = (node for _, node in model.walk() if node.op not in ("Cast", "Constant", "Identity"))
    return any(t.name in half for node in makers for t in node.outputs)


def _half_tensors(model: Model) -> dict[str, int]:
    return {
        name: elem_type(info.type)
        for graph in model.graphs()
        for name, info in graph.value_infos.items()
        if elem_type(info.type) in HALF_TYPES
    }


def _refusal(model: Model) -> tuple[Node, str] | None:
    """(node, skip reason) if the model cannot be widened; else None."""
    half = _half_tensors(model)
    ports = [*model.graph.inputs, *model.graph.outputs]
    infos = model.graph.value_infos
    for tensor in ports:
        info = infos.get(tensor.name)
        if info is not None and not info.type.HasField("tensor_type") and elem_type(info.type) in HALF_TYPES:
            node = next(iter(edit.consumers(tensor)), edit.producer(tensor))
            if node is not None:
                return node, f"{tensor.name!r} is a sequence of 16-bit floats, which Cast does not support"
    for _, node in model.walk():
        touches = any(
            t.name in half or (isinstance(t, Constant) and weights.elem_type(t) in HALF_TYPES)
            for t in (*node.inputs, *node.outputs)
        )
        if touches and (node.domain not in _KNOWN_DOMAINS or node.op in _BY_BITS):
            return node, "it is not known to compute the same in float32"
    return None


def _unfold_constant_nodes(model: Model) -> None:
    """Turn Constant nodes of 16 bits into weights, which remember their stored type."""
    gone = []
    for _, node in list(model.walk()):
        if node.op != "Constant" or not has_half(node) or any(edit.is_output(model, t) for t in node.outputs):
            continue
        values = evaluate_constants.constant_value(node)
        if values is not None:
            edit.replace_uses(model, node.outputs[0], Constant(model.fresh(node.outputs[0].name, "value"), values))
            gone.append(node)
    edit.remove(model, gone)


def _narrow_inputs(model: Model) -> Iterator[Tensor]:
    """Add a Cast to float32 after each 16-bit input and after each 16-bit constant that an input may override."""
    infos = model.graph.value_infos
    for tensor in (*model.graph.inputs, *model.graph.overridable.values()):
        kind = weights.elem_type(tensor) if isinstance(tensor, Constant) else model.elem_type(tensor)
        if kind not in HALF_TYPES:
            continue
        users = edit.consumers(tensor)
        if users:
            cast = edit.add_node(
                model, "Cast", [tensor], base=tensor.name, suffix="float", attrs={"to": TensorProto.FLOAT}
            )
            infos[cast.outputs[0].name] = _as_float(infos.get(tensor.name), cast.outputs[0].name)
            for user in users:
                for i, t in enumerate(user.inputs):
                    if t is tensor:
                        user.inputs[i] = cast.outputs[0]
            _read_inside(model, tensor, cast.outputs[0])
        yield tensor


def _read_inside(model: Model, tensor: Tensor, wide: Tensor) -> None:
    """Let subgraphs that return the outer tensor return the widened one."""
    for graph in model.graphs():
        if graph is not model.graph:
            graph.outputs[:] = [wide if t is tensor else t for t in graph.outputs]


def _narrow_outputs(model: Model) -> Iterator[Tensor]:
    """Add a Cast before each 16-bit output, which keeps its name and type."""
    graph, made = model.graph, dict[int, Tensor]()
    given = {id(t) for t in (*graph.inputs, *graph.overridable.values())}
    for i, (tensor, info) in enumerate(zip(list(graph.outputs), graph.output_infos, strict=True)):
        kind = elem_type(info.type)
        if kind not in HALF_TYPES or id(tensor) in given:
            continue
        if id(tensor) not in made:
            made[id(tensor)] = _narrowed(model, tensor, kind)
        graph.outputs[i] = made[id(tensor)]
        yield made[id(tensor)]


def _narrowed(model: Model, tensor: Tensor, kind: int) -> Tensor:
    name, infos = tensor.name, model.graph.value_infos
    out = Variable(name)
    tensor.name = model.fresh(name, "float")
    info = infos.get(name)
    infos[tensor.name] = _as_float(info, tensor.name)
    edit.add_node(model, "Cast", [tensor], base=name, suffix="narrow", outputs=[out], attrs={"to": kind})
    model.renamed[name] = tensor.name
    return out


def _widen_constant(constant: Constant) -> None:
    kind, source = weights.elem_type(constant), Constant(constant.name, constant._values)

    def wide() -> NDArray[Any]:
        return np.asarray(weights.read(source)).astype(np.float32)

    def wide_rows(start: int, stop: int) -> NDArray[Any]:
        return rows(source, start, stop).astype(np.float32)

    large, shape = 2 * weights.size_bytes(constant) > _LAZY_BYTES, tuple(constant.shape)
    some = wide_rows if reads_rows(source) else None
    lazy = weights.ComputedValues(shape, np.dtype(np.float32), wide, some, source)
    constant._values = lazy if large else wide().reshape(shape)
    constant.stored_as = kind


def _widen_attributes(node: Node) -> None:
    for key, value in node.attrs.items():
        if key in TYPE_ATTRIBUTES and isinstance(value, int) and value in HALF_TYPES:
            node.attrs[key] = int(TensorProto.FLOAT)
        elif isinstance(value, AttributeProto) and value.t.data_type in HALF_TYPES:
            wide = AttributeProto()
            wide.CopyFrom(value)
            values = numpy_helper.to_array(value.t).astype(np.float32)
            wide.t.CopyFrom(numpy_helper.from_array(values, value.t.name))
            node.attrs[key] = wide


def _widen_infos(graph: Graph, ports: set[str] | None) -> None:
    """Set the recorded types to float32. ports: 16-bit inputs and outputs that keep theirs; None for a subgraph."""
    for name, info in list(graph.value_infos.items()):
        if name not in (ports or ()) and elem_type(info.type) in HALF_TYPES:
            graph.value_infos[name] = _as_float(info, name)
    if ports is None:
        infos = graph.output_infos
        graph.output_infos = [_as_float(i, i.name) if elem_type(i.type) in HALF_TYPES else i for i in infos]


def _as_float(info: ValueInfoProto | None, name: str) -> ValueInfoProto:
    made = ValueInfoProto(name=name)
    if info is None:
        made.type.tensor_type.elem_type = TensorProto.FLOAT
        return made
    made.CopyFrom(info)
    made.name = name
    kind = made.type
    while not kind.HasField("tensor_type"):
        kind = kind.sequence_type.elem_type if kind.HasField("sequence_type") else kind.optional_type.elem_type
    kind.tensor_type.elem_type = TensorProto.FLOAT
    return made

"""Multiply-accumulates of every node that multiplies: how much of a network's work a decision touches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray
from onnx import GraphProto, TypeProto

from onnxshot.graph.ir import Node
from onnxshot.graph.mac_rules import Shape, Shapes, Work, rules_of
from onnxshot.graph.model import Model
from onnxshot.graph.shape_rules import Dims
from onnxshot.graph.symbolic_shapes import propagate

SAMPLE, FROZEN, INFERRED = "sample", "frozen", "inferred"

__all__ = [
    "NodeMacs", "Shape", "Shapes", "Sizes", "by_label", "concrete_shapes", "count", "macs", "tensor_sizes", "work_of",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class NodeMacs:
    """Work of one node in one run.

    exact: False where a shape was missing and one output position was counted; in_float: the part of `macs` that is
    done in float whatever the precision of the rest, as the attention inside an operator with quantized weights.
    """

    node: Node
    macs: int
    exact: bool
    in_float: int = 0


def macs(model: Model, feed_shapes: Shapes | None = None) -> dict[str, int]:
    """Multiply-accumulates of one run per node label, for the nodes that multiply matrices; nodes of branches once.

    feed_shapes: shapes of the graph inputs; free dimensions that it leaves open count as 1.
    """
    return by_label(tensor_sizes(model, feed_shapes).work(model))


def by_label(rows: Iterable[NodeMacs]) -> dict[str, int]:
    """Multiply-accumulates per node label."""
    found: dict[str, int] = {}
    for row in rows:
        found[row.node.label] = found.get(row.node.label, 0) + row.macs
    return found


def count(model: Model, shapes: Shapes, times: Mapping[str, int | None] | None = None) -> list[NodeMacs]:
    """One row per node that multiplies matrices, given the shapes of tensors by name; subgraphs included.

    times: how often nodes run that do not run once, by label; what is not known counts once, and is not exact.
    """
    rows = []
    for _, node in model.walk():
        row = work_of(node, shapes)
        often = (times or {}).get(node.label, 1)
        if row is not None and often is None:
            row = replace(row, exact=False)
        elif row is not None and often is not None and often != 1:
            row = replace(row, macs=row.macs * often, in_float=row.in_float * often)
        if row is not None:
            rows.append(row)
    return rows


def work_of(node: Node, shapes: Shapes) -> NodeMacs | None:
    """The work of one node, given the shapes of its tensors by name; None where it multiplies no matrices."""
    rule, inner = rules_of(node)
    if rule is None:
        return None
    work = Work(node, shapes)
    result, aside = rule(work), inner(work) if inner is not None else 0
    if result is None or aside is None:
        return NodeMacs(node, work.smallest(), False)
    return NodeMacs(node, result + aside, True, aside)


# ---------------------------------------------------------------------- shapes


@dataclass(frozen=True, slots=True)
class Sizes:
    """Shapes of tensors in one run, and how often the nodes of subgraphs run in it.

    Attributes:
        shapes: by name; what cannot be told is left out.
        times: by label, of nodes that do not run once; None where that is not known.
        source: where the sizes are from: of a 'sample'; 'frozen', as all inputs have fixed sizes; or 'inferred', with
            free dimensions as 1.
    """

    shapes: dict[str, Shape]
    times: dict[str, int | None]
    source: str

    def work(self, model: Model) -> list[NodeMacs]:
        """The work of every node that multiplies."""
        return count(model, self.shapes, self.times)

    def report_entry(self, rows: Iterable[NodeMacs]) -> dict[str, Any]:
        """What a report says of the sizes: where they are from, and of which nodes the work is not known by them."""
        return {"from": self.source, "unknown": [row.node.label for row in rows if not row.exact]}


def concrete_shapes(model: Model, feed_shapes: Shapes | None = None) -> dict[str, Shape]:
    """Shapes of the model's tensors when inputs of these shapes are fed; what cannot be told is left out."""
    return tensor_sizes(model, feed_shapes).shapes


def tensor_sizes(
    model: Model, feed_shapes: Shapes | None = None, values: Mapping[str, NDArray[Any]] | None = None
) -> Sizes:
    """Shapes of the model's tensors as they are when inputs of these shapes are fed.

    Shapes that the file states serve where inference stops, at custom operators for one. values: of inputs; small ones
    that hold whole numbers may tell sizes.
    """
    proto, lifted = model.skeleton()
    symbols = _symbols(proto.graph, feed_shapes or {}, lifted)
    pinned: dict[str, Dims] = {}
    for info in proto.graph.input:
        if info.name not in lifted and info.type.HasField("tensor_type"):
            shape = _pinned(info.type.tensor_type, (feed_shapes or {}).get(info.name), symbols)
            if shape is not None:
                pinned[info.name] = shape
    # Inference starts from the inputs alone: an exporter's hints hold its example's sizes, not these.
    stated = {i.name: _resolved(i.type.tensor_type, symbols) for i in (*proto.graph.value_info, *proto.graph.output)}
    hints = {name: shape for name, shape in stated.items() if shape is not None}
    whole = {name: array for name, array in (values or {}).items() if array.dtype.kind in "biu"}
    found = propagate(proto, pinned, whole, dict(hints))
    shapes: dict[str, Shape] = {}
    for name, dims in found.shapes.items():
        known = tuple(d for d in dims if isinstance(d, int))
        if len(known) == len(dims):
            shapes[name] = known
    return Sizes({**hints, **shapes}, found.times, _source(proto.graph, feed_shapes or {}, lifted))


def _source(graph: GraphProto, feed_shapes: Shapes, lifted: Iterable[str]) -> str:
    inputs = [info for info in graph.input if info.name not in lifted]
    if inputs and all(info.name in feed_shapes for info in inputs):
        return SAMPLE
    free = (not d.HasField("dim_value") for info in inputs for d in info.type.tensor_type.shape.dim)
    return INFERRED if any(free) else FROZEN


def _symbols(graph: GraphProto, feed_shapes: Shapes, lifted: Iterable[str]) -> dict[str, int]:
    """Values of the named dimensions, from the inputs that are fed; 1 for those of inputs that are not."""
    symbols: dict[str, int] = {}
    for info in graph.input:
        shape = feed_shapes.get(info.name)
        dims = info.type.tensor_type.shape.dim
        if shape is not None and len(shape) == len(dims):
            symbols |= {d.dim_param: size for d, size in zip(dims, shape, strict=True) if d.dim_param}
    for info in graph.input:
        if info.name not in lifted:
            for dim in info.type.tensor_type.shape.dim:
                if dim.dim_param:
                    symbols.setdefault(dim.dim_param, 1)
    return symbols


def _pinned(tensor: TypeProto.Tensor, shape: Shape | None, symbols: Mapping[str, int]) -> Shape | None:
    """The fed shape of an input, or 1 for each dimension nothing is known of; None where its rank is not known."""
    if shape is not None:
        return tuple(int(size) for size in shape)
    if not tensor.HasField("shape"):
        return None
    return tuple(d.dim_value if d.HasField("dim_value") else symbols.get(d.dim_param, 1) for d in tensor.shape.dim)


def _resolved(tensor: TypeProto.Tensor, symbols: Mapping[str, int]) -> Shape | None:
    """The stated shape with symbols replaced; None where the shape or a dimension is not known."""
    if not tensor.HasField("shape"):
        return None
    sizes = [d.dim_value if d.HasField("dim_value") else symbols.get(d.dim_param, -1) for d in tensor.shape.dim]
    return None if any(size < 0 for size in sizes) else tuple(sizes)

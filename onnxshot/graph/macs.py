"""Count the multiply-accumulates (MACs) of every node that multiplies matrices, at the shapes of one run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray
from onnx import GraphProto, TypeProto

from onnxshot.graph.ir import Node
from onnxshot.graph.mac_rules import NodeShapes, Shape, Shapes, rules_of
from onnxshot.graph.model import Model
from onnxshot.graph.shape_rules import Dims
from onnxshot.graph.symbolic_shapes import propagate

SAMPLE, FROZEN, INFERRED = "sample", "frozen", "inferred"

__all__ = [
    "NodeMacs",
    "Shape",
    "Shapes",
    "Sizes",
    "by_label",
    "concrete_shapes",
    "count",
    "macs",
    "node_macs",
    "tensor_sizes",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class NodeMacs:
    """Multiply-accumulates of one node in one run.

    Attributes:
        node: the node.
        macs: multiply-accumulates.
        exact: False where a shape was unknown, and one output position was counted.
        in_float: the part of `macs` that runs in float whatever the precision of the weights, such as the attention
            inside an operator with quantized projection weights.
    """

    node: Node
    macs: int
    exact: bool
    in_float: int = 0


def macs(model: Model, feed_shapes: Shapes | None = None) -> dict[str, int]:
    """Count the multiply-accumulates of one run.

    Args:
        model: the model.
        feed_shapes: shapes of graph inputs by name; free dimensions of other inputs count as 1.

    Returns:
        Node label -> multiply-accumulates, for nodes that multiply matrices.
    """
    return by_label(tensor_sizes(model, feed_shapes).work(model))


def by_label(rows: Iterable[NodeMacs]) -> dict[str, int]:
    """Add up multiply-accumulates per node label."""
    found: dict[str, int] = {}
    for row in rows:
        found[row.node.label] = found.get(row.node.label, 0) + row.macs
    return found


def count(model: Model, shapes: Shapes, times: Mapping[str, int | None] | None = None) -> list[NodeMacs]:
    """Count the multiply-accumulates of every node that multiplies matrices, subgraphs included.

    Args:
        model: the model.
        shapes: shapes of tensors by name.
        times: node label -> number of runs, for nodes that do not run exactly once; None where unknown, which counts
            as one run and is not exact.
    """
    rows = []
    for _, node in model.walk():
        row = node_macs(node, shapes)
        often = (times or {}).get(node.label, 1)
        if row is not None and often is None:
            row = replace(row, exact=False)
        elif row is not None and often is not None and often != 1:
            row = replace(row, macs=row.macs * often, in_float=row.in_float * often)
        if row is not None:
            rows.append(row)
    return rows


def node_macs(node: Node, shapes: Shapes) -> NodeMacs | None:
    """Count the multiply-accumulates of one node, given shapes by tensor name; None where it multiplies no matrices."""
    rule, inner = rules_of(node)
    if rule is None:
        return None
    at = NodeShapes(node, shapes)
    result, aside = rule(at), inner(at) if inner is not None else 0
    if result is None or aside is None:
        return NodeMacs(node, at.smallest(), False)
    return NodeMacs(node, result + aside, True, aside)


# ---------------------------------------------------------------------- shapes


@dataclass(frozen=True, slots=True)
class Sizes:
    """Shapes of tensors in one run, and how often the nodes of subgraphs run in it.

    Attributes:
        shapes: tensor name -> shape; tensors of unknown shape are missing.
        times: node label -> number of runs, for nodes that do not run exactly once; None where unknown.
        source: 'sample' where the shapes follow from a sample, 'frozen' where all inputs have fixed shapes, 'inferred'
            where free dimensions count as 1.
    """

    shapes: dict[str, Shape]
    times: dict[str, int | None]
    source: str

    def work(self, model: Model) -> list[NodeMacs]:
        """Count the multiply-accumulates of every node that multiplies matrices."""
        return count(model, self.shapes, self.times)

    def report_entry(self, rows: Iterable[NodeMacs]) -> dict[str, Any]:
        """Return the report's entry: where the shapes come from, and which nodes have unknown shapes."""
        return {"from": self.source, "unknown": [row.node.label for row in rows if not row.exact]}


def concrete_shapes(model: Model, feed_shapes: Shapes | None = None) -> dict[str, Shape]:
    """Return the shapes of the model's tensors for inputs of these shapes; unknown ones are missing."""
    return tensor_sizes(model, feed_shapes).shapes


def tensor_sizes(
    model: Model, feed_shapes: Shapes | None = None, values: Mapping[str, NDArray[Any]] | None = None
) -> Sizes:
    """Infer the shapes of the model's tensors for given inputs.

    Shapes that the file states are used where inference ends, for example at custom operators.

    Args:
        model: the model.
        feed_shapes: shapes of graph inputs by name; free dimensions of other inputs count as 1.
        values: values of graph inputs by name; small integer inputs may determine shapes.
    """
    proto, lifted = model.skeleton()
    symbols = _symbols(proto.graph, feed_shapes or {}, lifted)
    pinned: dict[str, Dims] = {}
    for info in proto.graph.input:
        if info.name not in lifted and info.type.HasField("tensor_type"):
            shape = _pinned(info.type.tensor_type, (feed_shapes or {}).get(info.name), symbols)
            if shape is not None:
                pinned[info.name] = shape
    # Inference starts from the inputs alone: shapes in the file may be those of the exporter's example input.
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
    """Values of symbolic dimensions, from the fed inputs; 1 for symbols of other inputs."""
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
    """The fed shape of an input, else its stated one with 1 for unknown dimensions; None where the rank is unknown."""
    if shape is not None:
        return tuple(int(size) for size in shape)
    if not tensor.HasField("shape"):
        return None
    return tuple(d.dim_value if d.HasField("dim_value") else symbols.get(d.dim_param, 1) for d in tensor.shape.dim)


def _resolved(tensor: TypeProto.Tensor, symbols: Mapping[str, int]) -> Shape | None:
    """The stated shape with symbols replaced by their values; None where it is not fully known."""
    if not tensor.HasField("shape"):
        return None
    sizes = [d.dim_value if d.HasField("dim_value") else symbols.get(d.dim_param, -1) for d in tensor.shape.dim]
    return None if any(size < 0 for size in sizes) else tuple(sizes)

"""Shape inference with symbolic sizes, which also follows shapes that the graph itself computes.

ONNX infers the output shapes of a node from its input shapes. It loses shapes that other nodes compute, from Shape by
Slice, Range, Expand or a division. Here the values of such small tensors are computed too (`value_rules`), and they may
be symbolic (`symbolic_dims`). Nodes are visited once; the body of a Loop or Scan whose state changes its shape, twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, helper, numpy_helper

from onnxshot.graph.control_flow import CONTROL, count_runs
from onnxshot.graph.shape_rules import (
    BEYOND,
    BROADCASTS,
    LIKE_FIRST,
    READS_VALUES,
    RULES,
    STANDS_FOR,
    Dims,
    Given,
    broadcast,
)
from onnxshot.graph.symbolic_dims import Expr, is_known, named, pack, unknown_size
from onnxshot.graph.value_rules import MOST, VALUES, values_of

Array = NDArray[Any]

_FOLLOWED = 1 << 24  # values that are kept, of all tensors together
_COMPARES = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "And", "Or")
_FAILURES = (
    onnx.shape_inference.InferenceError,
    onnx.checker.ValidationError,  # raised for operators that the opset has deprecated but runtimes run
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
)


@dataclass(slots=True)
class Found:
    """What is known about the tensors of a graph and its subgraphs, by name.

    Attributes:
        shapes: tensor name -> sizes, ints or symbolic; tensors of unknown rank are missing.
        values: tensor name -> values of small tensors that shapes are computed with; some may be symbolic.
        kinds: tensor name -> ONNX element type, for tensors with values.
        times: node in a subgraph (its name, or that of its first output) -> how often it runs; None where unknown.
    """

    shapes: dict[str, Dims] = field(default_factory=dict)
    values: dict[str, Array] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)
    times: dict[str, int | None] = field(default_factory=dict)


def propagate(
    proto: ModelProto,
    inputs: Mapping[str, Dims],
    values: Mapping[str, Array] | None = None,
    stated: Mapping[str, Dims] | None = None,
) -> Found:
    """Infer the shapes of all tensors of a model. Its value_info is not used.

    Args:
        proto: the model, with its nodes in topological order; large weights may be among its inputs (a skeleton).
        inputs: input name -> shape, for inputs whose shape is to differ from the one in the file.
        values: input name -> values, for small inputs.
        stated: tensor name -> shape, used behind operators that ONNX does not know.
    """
    walk = Walk(proto, stated or {})
    for info in proto.graph.input:
        walk.declare(info, inputs.get(info.name))
    walk.found.values.update({name: v for name, v in (values or {}).items() if v.size <= MOST})
    walk.graph(proto.graph)
    count_runs(walk, proto.graph)
    for tensor in proto.graph.initializer:
        walk.found.shapes.setdefault(tensor.name, tuple(tensor.dims))
    return walk.found


class Walk:
    """One pass over the nodes of a model; holds what is known about the tensors so far.

    Attributes:
        found: the shapes and values so far.
        types: tensor name -> type, as ONNX's inference reads and writes it.
        trips: (first output of a node, name of its subgraph) -> how often the subgraph runs; None where unknown.
        depth: how many loops the walk is inside of.
    """

    def __init__(self, proto: ModelProto, stated: Mapping[str, Dims]) -> None:
        self.found = Found()
        self._stated = stated
        self._imports = list(proto.opset_import)
        self._opsets = {entry.domain or "": entry.version for entry in proto.opset_import}
        self._opsets.setdefault("", self._opsets.get("ai.onnx", 1))
        self._ir = proto.ir_version
        self._schemas: dict[tuple[str, str], Any] = {}
        self._stored: dict[str, TensorProto] = {}
        self.types: dict[str, TypeProto] = {}
        self._names: dict[str, Expr] = {}  # dim_param that ONNX's inference gets -> symbolic size
        self._tokens: dict[Expr, str] = {}
        self.trips: dict[tuple[str, str], int | None] = {}
        self._held = self.depth = 0

    # ------------------------------------------------------------------ facts so far

    def declare(self, info: onnx.ValueInfoProto, dims: Dims | None) -> None:
        """Set the type and shape of a graph input; `dims` takes the place of the stated shape."""
        if not info.type.HasField("tensor_type"):
            self.types[info.name] = info.type
            return
        kind = info.type.tensor_type
        if dims is None and kind.HasField("shape"):
            dims = tuple(
                d.dim_value if d.HasField("dim_value") and d.dim_value >= 0
                else named(d.dim_param) if d.dim_param
                else unknown_size()
                for d in kind.shape.dim
            )  # fmt: skip
        self.set(info.name, kind.elem_type, dims)

    def set(self, name: str, kind: int, dims: Dims | None) -> None:
        """Set the element type and shape of a tensor; dims: None where its rank is unknown."""
        made = TypeProto()
        made.tensor_type.elem_type = kind
        if dims is not None:
            self.found.shapes[name] = dims
            shape = made.tensor_type.shape
            shape.SetInParent()
            for dim in dims:
                if isinstance(dim, Expr):
                    shape.dim.add(dim_param=self._token(dim))
                else:
                    shape.dim.add(dim_value=int(dim))
        else:
            self.found.shapes.pop(name, None)
        self.types[name] = made

    def _token(self, dim: Expr) -> str:
        token = self._tokens.get(dim)
        if token is None:
            token = self._tokens[dim] = f"d{len(self._tokens)}"
            self._names[token] = dim
        return token

    def _set_inferred(self, name: str, kind: TypeProto) -> None:
        """Set the type of a tensor to what ONNX has inferred."""
        if not kind.HasField("tensor_type"):
            self.types[name] = kind
            self.found.shapes.pop(name, None)
            return
        tensor = kind.tensor_type
        dims: Dims | None = None
        if tensor.HasField("shape"):
            dims = tuple(
                d.dim_value if d.HasField("dim_value") else self._names.get(d.dim_param) or unknown_size()
                for d in tensor.shape.dim
            )
            if all(d.HasField("dim_value") for d in tensor.shape.dim):
                self.found.shapes[name], self.types[name] = dims, kind
                return
        self.set(name, tensor.elem_type, dims)

    def kind(self, name: str) -> int:
        """Return the ONNX element type of a tensor; 0 where it is unknown."""
        held = self.types.get(name)
        return 0 if held is None else int(held.tensor_type.elem_type)

    def shape(self, name: str) -> Dims | None:
        """Return the shape of a tensor; None where its rank is unknown."""
        return self.found.shapes.get(name)

    def value(self, name: str) -> Array | None:
        """Return the values of a tensor or a small constant; None where they are unknown."""
        held = self.found.values.get(name)
        tensor = self._stored.get(name)
        if held is not None or tensor is None or int(np.prod(tensor.dims, dtype=np.float64)) > MOST:
            return held
        if tensor.data_type == TensorProto.STRING or tensor.data_location == TensorProto.EXTERNAL:
            return None
        array = numpy_helper.to_array(tensor)
        if array.dtype.kind in "biuf":
            self.found.values[name] = array
            return array
        return None

    # ------------------------------------------------------------------ nodes

    def graph(self, graph: GraphProto) -> None:
        """Visit the nodes of a graph."""
        for tensor in graph.initializer:
            self._stored[tensor.name] = tensor
            self.set(tensor.name, tensor.data_type, tuple(tensor.dims))
        for node in graph.node:
            self._node(node)

    def _node(self, node: NodeProto) -> None:
        standard = node.domain in ("", "ai.onnx")
        if standard and node.op_type in CONTROL:
            try:
                CONTROL[node.op_type](self, node)
            except (KeyError, IndexError, ValueError):  # invalid: its outputs stay unknown
                return
        elif not (standard and self._by_value(node)):
            self._by_shape(node, standard=standard)

    def _by_value(self, node: NodeProto) -> bool:
        """Compute the values of the node's outputs; False where values of its inputs are unknown."""
        op = node.op_type
        if op == "Constant":
            return self._constant(node)
        if op in ("Shape", "Size"):
            return self._shape_or_size(node)
        if op not in VALUES or self._held > _FOLLOWED:
            return False
        given = [self.value(name) if name else None for name in node.input]
        if not given or any(v is None and name for v, name in zip(given, node.input, strict=True)):
            return False
        attrs = attributes(node)
        found = values_of(op, attrs, given)
        if found is None or len(found) != len(node.output) or any(array.size > MOST for array in found):
            return False
        for name, array in zip(node.output, found, strict=True):
            self._set_value(name, array, self._computed_kind(op, attrs, node, array))
        return True

    def _computed_kind(self, op: str, attrs: Mapping[str, Any], node: NodeProto, array: Array) -> int:
        """Element type of the output of an operator whose values were computed."""
        if op == "Cast":
            return int(attrs["to"])
        if op in _COMPARES:
            return int(TensorProto.BOOL)
        if op in ("ConstantOfShape", "NonZero"):
            return int(helper.np_dtype_to_tensor_dtype(array.dtype))
        return self.kind(node.input[1 if op == "Where" else 0])

    def _set_value(self, name: str, array: Array, kind: int) -> None:
        self._held += array.size
        self.found.values[name], self.found.kinds[name] = array, kind
        self.set(name, kind, array.shape)

    def _constant(self, node: NodeProto) -> bool:
        attrs = attributes(node)
        key, value = next(iter(attrs.items()), ("", None))
        if key == "value":
            tensor = next(a.t for a in node.attribute if a.name == "value")
            self._stored[node.output[0]] = tensor
            self.set(node.output[0], tensor.data_type, tuple(tensor.dims))
            return True
        if key in ("value_int", "value_ints"):
            self._set_value(node.output[0], np.asarray(value, np.int64), TensorProto.INT64)
            return True
        return False

    def _shape_or_size(self, node: NodeProto) -> bool:
        dims = self.shape(node.input[0])
        if dims is None:
            return False
        if node.op_type == "Size":
            total: Any = 1
            for dim in dims:
                total = total * dim
            self._set_value(node.output[0], pack(total), TensorProto.INT64)
            return True
        attrs = attributes(node)
        dims = dims[attrs.get("start", 0) : attrs.get("end")]
        self._set_value(node.output[0], pack(list(dims)).reshape(len(dims)), TensorProto.INT64)
        return True

    def _by_shape(self, node: NodeProto, *, standard: bool) -> None:
        """Infer the shapes of the node's outputs from those of its inputs."""
        rule = RULES.get(node.op_type) if standard else BEYOND.get(node.op_type)
        if len(node.output) > 1:
            rule = None  # rules know only the first output
        if rule is not None:
            given = Given(
                attributes(node), tuple(self.shape(n) if n else None for n in node.input),
                tuple(self.value(n) if n else None for n in node.input), self._opsets[""],
            )  # fmt: skip
            dims = rule(given)
            if dims is not None:
                kind = self.kind(node.input[0])
                if node.op_type == "ConstantOfShape":
                    value = given.attrs.get("value")
                    kind = TensorProto.FLOAT if value is None else helper.np_dtype_to_tensor_dtype(value.dtype)
                self.set(node.output[0], kind, dims)
                return
        if not self._inferred(node):
            self._fall_back(node)

    def _schema(self, op: str, domain: str) -> Any:
        key = (op, domain)
        if key not in self._schemas:
            try:
                self._schemas[key] = onnx.defs.get_schema(op, self._opsets.get(domain, 1), domain)
            except onnx.defs.SchemaError:
                self._schemas[key] = None
        return self._schemas[key]

    def _inferred(self, node: NodeProto) -> bool:
        """Run ONNX's inference on the node; False where it fails."""
        domain = "" if node.domain == "ai.onnx" else node.domain
        schema = self._schema(node.op_type, domain)
        if schema is None and node.op_type in STANDS_FOR:
            node, schema = _standing_for(node), self._schema(STANDS_FOR[node.op_type], "")
        if schema is None:
            return False
        types = {name: self.types.get(name) or TypeProto() for name in node.input if name}
        held: dict[str, TensorProto] = {}
        for name in node.input if node.op_type in READS_VALUES else ():
            value = self.value(name) if name else None
            if value is not None and is_known(value):
                kind = self.kind(name)
                held[name] = numpy_helper.from_array(value.astype(helper.tensor_dtype_to_np_dtype(kind)), name)
        try:
            found = onnx.shape_inference.infer_node_outputs(
                schema, node, types, held, opset_imports=self._imports, ir_version=self._ir
            )
        except _FAILURES:
            return False
        for name in node.output:
            if name and name in found:
                self._set_inferred(name, found[name])
        if node.op_type in BROADCASTS:
            self._name_broadcast_sizes(node)
        return True

    def _name_broadcast_sizes(self, node: NodeProto) -> None:
        """Replace unknown sizes of a broadcast output by symbolic ones that follow from the inputs."""
        name = node.output[0]
        dims, given = self.shape(name), [self.shape(n) for n in node.input]
        if dims is None or all(isinstance(d, int) for d in dims) or any(g is None for g in given):
            return
        joined: Dims = ()
        for shape in given:
            joined = broadcast(joined, shape or ())
        self.set(name, self.kind(name), joined)

    def _fall_back(self, node: NodeProto) -> None:
        """Use the shape that the file states, or that of the first input for operators that keep it."""
        kind, dims = (self.kind(node.input[0]), self.shape(node.input[0])) if node.input else (0, None)
        for slot, name in enumerate(node.output):
            if name and name in self._stated:
                self.set(name, kind, self._stated[name])
            elif name and slot == 0 and node.op_type in LIKE_FIRST:
                self.set(name, kind, dims)


def attributes(node: NodeProto) -> dict[str, Any]:
    """Return the attributes of a node by name, small tensors as arrays; subgraphs and large tensors are left out."""
    found: dict[str, Any] = {}
    for attribute in node.attribute:
        if attribute.type == AttributeProto.TENSOR:
            external = attribute.t.data_location == TensorProto.EXTERNAL
            if not external and attribute.t.data_type != TensorProto.STRING and int(np.prod(attribute.t.dims)) <= MOST:
                found[attribute.name] = numpy_helper.to_array(attribute.t)
        elif attribute.type not in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
            found[attribute.name] = helper.get_attribute_value(attribute)
    return found


def _standing_for(node: NodeProto) -> NodeProto:
    """The standard operator that has the same output shapes as a fused one."""
    other = NodeProto(op_type=STANDS_FOR[node.op_type], name=node.name)
    other.input.extend(list(node.input)[:3])
    other.output.extend(node.output)
    known: Iterable[str] = onnx.defs.get_schema(other.op_type).attributes
    other.attribute.extend(a for a in node.attribute if a.name in known)
    return other

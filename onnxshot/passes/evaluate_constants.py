"""Evaluate a node with constant inputs: in numpy if it only moves or casts data, else in ONNX Runtime.

Large results of moving data are lazy: they are computed each time they are read, and never kept in memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper

from onnxshot.graph import Constant, Model, Node, sparse_tensors, weights
from onnxshot.graph.load import first_line
from onnxshot.graph.shape_inference import infer_proto

LAZY_BYTES = 1 << 20  # results of moving data above this size are lazy
_HINT_BYTES = 4096  # values of inputs up to this size are given to shape inference: shapes, axes, repeats
_CASTS = ("float16", "bfloat16", "float32", "float64")  # numpy and ONNX agree on casts between these

Array = NDArray[Any]
Values = Array | weights.ComputedValues | weights.StoredValues


class CannotEvaluate(Exception):  # not an error of the user: its message becomes a skip reason
    """Neither ONNX Runtime nor ONNX's reference evaluator could compute tensors; the message says why."""


def constant_value(node: Node) -> Values | None:
    """Values of a Constant node; None if its attribute is of an unknown kind."""
    for key, value in node.attrs.items():
        if key == "value" and isinstance(value, AttributeProto):
            return weights.StoredValues(value.t, None)
        if key == "sparse_value" and isinstance(value, AttributeProto):
            return sparse_tensors.dense(value.sparse_tensor, None)
        if key in _CONSTANT_TYPES:
            return np.array(value, _CONSTANT_TYPES[key])
    return None


_CONSTANT_TYPES: dict[str, Any] = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
    "value_string": object,
    "value_strings": object,
}


def moved(model: Model, node: Node) -> Values | None:
    """Result of a node of `MOVERS`, computed by numpy.

    Returns None where numpy's result would differ from ONNX's, and where the node is invalid: the caller then evaluates
    it in ONNX Runtime, whose error message says why.
    """
    try:
        return _moved(model, node)
    except (ValueError, KeyError, IndexError, TypeError, OverflowError):
        return None


def _moved(model: Model, node: Node) -> Values | None:
    """As `moved`; raises what numpy raises for invalid nodes."""
    source = Constant(node.inputs[0].name, node.inputs[0]._values)
    shape, dtype = tuple(source.shape), np.dtype(source._values.dtype)
    if dtype.kind == "O":
        return None
    compute: Callable[[], Array]
    if node.op == "Cast":
        target = np.dtype(helper.tensor_dtype_to_np_dtype(int(node.attrs["to"])))
        if dtype != target and not {dtype.name, target.name} <= set(_CASTS):
            return None
        dtype = target

        def compute() -> Array:
            with np.errstate(over="ignore"):  # ONNX Cast-13: values out of range become infinite
                return weights.read(source).astype(target)

    elif node.op == "Transpose":
        perm = list(node.attrs.get("perm") or range(len(shape) - 1, -1, -1))
        if sorted(perm) != list(range(len(shape))):
            return None
        shape = tuple(shape[i] for i in perm)

        def compute() -> Array:
            return weights.read(source).transpose(perm)

    else:
        known = _reshaped(model, node, shape)
        if known is None or math.prod(known) != math.prod(shape):
            return None
        shape = known

        def compute() -> Array:
            return weights.read(source).reshape(shape)

    if weights.stored_bytes(int(helper.np_dtype_to_tensor_dtype(dtype)), shape) > LAZY_BYTES:
        return weights.ComputedValues(shape, dtype, compute)
    return np.ascontiguousarray(compute()).reshape(shape)  # keeps scalars scalar


def _reshaped(model: Model, node: Node, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Output shape of a Reshape, Flatten, Squeeze or Unsqueeze; None if it is unknown or invalid."""
    argument = node.attrs.get("axes", node.attrs.get("shape"))  # inputs since opset 13; the shape since Reshape-5
    if argument is None and len(node.inputs) > 1 and node.inputs[1].name:
        argument = weights.read(node.inputs[1]).reshape(-1).tolist()
    if node.op == "Flatten":
        axis = int(node.attrs.get("axis", 1))
        return math.prod(shape[:axis]), math.prod(shape[axis:])
    if node.op == "Squeeze":
        axes = [a % max(1, len(shape)) for a in argument] if argument else [i for i, d in enumerate(shape) if d == 1]
        return tuple(d for i, d in enumerate(shape) if i not in axes)
    if argument is None:
        return None
    if node.op == "Unsqueeze":
        rank = len(shape) + len(argument)
        new = list(shape)
        for axis in sorted({a % rank for a in argument}):
            new.insert(axis, 1)
        return tuple(new) if len(new) == rank else None  # a repeated axis is an error, which ONNX Runtime reports
    zero_is_zero = bool(node.attrs.get("allowzero", 0))
    if not zero_is_zero and any(d == 0 for d in argument[len(shape) :]):
        return None
    target = [shape[i] if d == 0 and not zero_is_zero else int(d) for i, d in enumerate(argument)]
    if -1 in target:
        others = -math.prod(target)
        target[target.index(-1)] = math.prod(shape) // others if others else 0
    return tuple(target)


MOVERS = ("Cast", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze")
"""Operators that `moved` computes."""


_BY_VALUE = ("NonZero", "Unique", "Compress")  # sizes depend on values, and are at most 8 * rank times the input's


def result_bytes(model: Model, node: Node) -> int | None:
    """Size in bytes of the node's results by shape inference; None if it cannot infer them.

    Results that are not numeric tensors count as 0, and so do those of operators whose sizes depend on values.
    """
    if node.op in _BY_VALUE:
        return 0
    proto, constants = _alone(model, node)
    for constant in constants.values():
        if weights.size_bytes(constant) <= _HINT_BYTES:
            proto.graph.initializer.append(weights.to_proto(constant))
    try:
        inferred = infer_proto(proto)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        return None
    total = 0
    for info in inferred.graph.output:
        kind = info.type.tensor_type
        if not info.type.HasField("tensor_type") or kind.elem_type == TensorProto.STRING:
            continue
        dims = [d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim]
        if kind.elem_type == TensorProto.UNDEFINED or not kind.HasField("shape") or any(d < 0 for d in dims):
            return None
        total += weights.stored_bytes(kind.elem_type, tuple(dims))
    return total


def evaluate(model: Model, node: Node) -> list[Array]:
    """Compute a node with constant inputs.

    Returns:
        One array for each named output.

    Raises:
        CannotEvaluate: neither ONNX Runtime nor ONNX's reference evaluator can compute the node, or a result is not a
            tensor.
    """
    proto, constants = _alone(model, node)
    feeds = {name: weights.read(constant) for name, constant in constants.items()}
    results, reason = _run_ort(proto, feeds)
    if results is None:
        results = _run_reference(proto, feeds)
    if results is None:
        raise CannotEvaluate(reason)
    if not all(isinstance(r, np.ndarray | np.generic) for r in results):
        raise CannotEvaluate("it gives a sequence or another value that cannot be stored")
    return [np.asarray(r) for r in results]


def _alone(model: Model, node: Node) -> tuple[ModelProto, dict[str, Constant]]:
    """A model of this node alone, and its inputs by name."""
    proto = NodeProto(op_type=node.op, name="node", domain=node.domain or "")
    proto.input.extend(t.name for t in node.inputs)
    proto.output.extend(t.name for t in node.outputs)
    for key, value in node.attrs.items():
        if isinstance(value, AttributeProto):
            proto.attribute.append(value)
        elif isinstance(value, list) and not value:
            kind = getattr(value, "kind", AttributeProto.INTS)
            proto.attribute.append(helper.make_attribute(key, value, attr_type=kind))
        else:
            proto.attribute.append(helper.make_attribute(key, value))
    constants = {t.name: t for t in node.inputs if t.name}
    inputs = [helper.make_tensor_value_info(n, weights.elem_type(t), t.shape) for n, t in constants.items()]
    outputs = [helper.make_empty_tensor_value_info(t.name) for t in node.outputs if t.name]
    graph = helper.make_graph([proto], "alone", inputs, outputs)
    alone = helper.make_model(graph, opset_imports=model.envelope.opset_import, ir_version=8)
    return alone, constants


def _run_ort(proto: ModelProto, feeds: dict[str, Array]) -> tuple[list[Any] | None, str]:
    """(results, '') from ONNX Runtime; (None, reason) if it fails."""
    import onnxruntime  # slow to import, and most models need it for few nodes or none

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # fatal only: the exception reports failures
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return session.run(None, {n: np.ascontiguousarray(v).reshape(v.shape) for n, v in feeds.items()}), ""
    except Exception as e:  # ONNX Runtime raises a dozen classes, not exported in one place
        return None, f"ONNX Runtime cannot compute it: {first_line(e)}"


def _run_reference(proto: ModelProto, feeds: dict[str, Array]) -> list[Any] | None:
    """Results from ONNX's reference evaluator; None if it fails."""
    from onnx.reference import ReferenceEvaluator

    try:
        with np.errstate(all="ignore"):
            return list(ReferenceEvaluator(proto).run(None, feeds))
    except Exception:  # Python code of 200 operators: it may raise anything
        return None

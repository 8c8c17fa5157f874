"""What can be done with one node that has a weight, seen alone: by its op, its weight, the target and the mode."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from onnxshot.graph import Constant, Node, weights
from onnxshot.graph.ops import STANDARD_DOMAINS, data_slots, op_of, weight_slot
from onnxshot.planning.plan import DYNAMIC, FLOAT, STATIC, WEIGHTS
from onnxshot.planning.slow_convs import ConvSize, slower_in_int8
from onnxshot.recipes.recipe import Recipe
from onnxshot.targets.base import Target

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN")
_MIN_TABLE_BYTES = 1 << 16  # an embedding table below this stays as it is


def treatment(
    node: Node, target: Target, recipe: Recipe, *, is_top: bool, forced: bool, rows: int | None = None
) -> tuple[str, str]:
    """How a weighted node can be treated, and the reason where that is float.

    is_top: it stands in the top-level graph, where activations are calibrated. forced: the user asked for it. rows: of
    the input of a MatMul, where they are known.
    """
    slot = weight_slot(node)
    if slot is None:
        if node.op == "MatMul":
            return FLOAT, "activation x activation: int8 brings at most 1.15x and costs accuracy"
        return FLOAT, "its weight is computed at run time or already quantized"
    weight = node.inputs[slot]
    kind = TensorProto.DataType.Name(weights.elem_type(weight)).lower()
    if getattr(weight, "overridable", False):
        return FLOAT, "its weight may be overridden by an input"
    if not elements(weight):
        return FLOAT, "its weight is empty"
    if recipe.mode == WEIGHTS:
        return (WEIGHTS, "") if kind in ("float", "float16") else (FLOAT, f"its weight is {kind}, not float or float16")
    if kind != "float":
        return FLOAT, f"its weight is {kind}; int8 kernels need float32 around them"
    if node.op == "LSTM" and "LSTM" in target.contrib and is_top:
        refused = _unsupported_lstm(node)
        if not refused and recipe.portable_ops and not forced:
            refused = "int8 LSTM exists only as com.microsoft.DynamicQuantizeLSTM: ask for it with --include LSTM"
        return (FLOAT, refused) if refused else (DYNAMIC, "")
    if node.op == "LSTM" and "LSTM" in target.contrib and not is_top:
        return FLOAT, "inside a subgraph (If, Loop, Scan), where LSTM has no int8 form"
    refusal = "" if forced else target.float_reasons.get(node.op, "")
    refusal = refusal or _refusal(node, slot)
    if refusal:
        return FLOAT, refusal
    size = ConvSize.of(node) if target.slow_thin and not forced else None
    if size is not None and recipe.mode == STATIC and (slower := slower_in_int8(size)):
        return FLOAT, slower
    if node.op == "MatMul" and len(weight.shape) > 2:
        if "MatMul" not in target.dynamic:
            return FLOAT, f"its weight has rank {len(weight.shape)}; {target.name}'s int8 kernels take matrices"
        if rows == 1 and not forced:
            return FLOAT, "one row for each of its matrices: int8 runs at 0.8x of float"
        return DYNAMIC, ""
    odd_bias = _unfused_bias(node)
    if recipe.mode == STATIC and is_top and node.op in target.static and not odd_bias:
        return STATIC, ""
    if node.op in target.dynamic:
        if elements(weight) < target.min_dynamic_weights and not forced:
            return FLOAT, "too small to pay back quantizing its input at run time"
        return DYNAMIC, ""
    if not is_top:
        return FLOAT, "inside a subgraph (If, Loop, Scan), where activations are not calibrated"
    if recipe.mode == STATIC and odd_bias:
        return FLOAT, odd_bias
    if recipe.mode == DYNAMIC:
        return FLOAT, f"dynamic {node.op} is slower than float on {target.name}"
    return FLOAT, f"{target.name} has no int8 kernel for it"


def _unsupported_lstm(node: Node) -> str:
    """Why an LSTM has no dynamic form; empty where it has one."""
    if not all(isinstance(weight, Constant) for weight in node.inputs[1:3]):
        return "one of its weights is computed at run time"
    if any(getattr(weight, "overridable", False) for weight in node.inputs[1:3]):
        return "its weight may be overridden by an input"
    return "DynamicQuantizeLSTM has no batch-first layout" if node.attrs.get("layout", 0) else ""


def is_weighted(node: Node) -> bool:
    """True for standard ops that multiply with a weight."""
    return node.op in WEIGHTED and node.domain in STANDARD_DOMAINS


def is_embedding(node: Node) -> bool:
    """True for a Gather of rows out of a large constant float table."""
    table = node.inputs[0] if node.inputs else None
    return (
        node.op == "Gather"
        and node.domain in STANDARD_DOMAINS
        and isinstance(table, Constant)
        and node.attrs.get("axis", 0) == 0
        and len(table.shape) == 2
        and weights.elem_type(table) == TensorProto.FLOAT
        and weights.size_bytes(table) >= _MIN_TABLE_BYTES
        and not getattr(table, "overridable", False)
    )


def pools_otherwise(node: Node) -> str:
    """Why int8 kernels do not compute what this AveragePool does; empty where they do.

    ONNX Runtime's QLinearAveragePool knows no dilations, so that the model does not load, and divides by the size of
    the whole window where ceil_mode lets one reach beyond the padding; its float kernel leaves out what is beyond.
    """
    if node.op != "AveragePool" or node.domain not in STANDARD_DOMAINS:
        return ""
    if any(d != 1 for d in node.attrs.get("dilations", ())):
        return "int8 kernels of AveragePool know no dilations"
    if node.attrs.get("ceil_mode", 0) and node.attrs.get("count_include_pad", 0):
        return "int8 kernels divide by another count where a window reaches beyond the padding"
    return ""


def elements(weight: Constant) -> int:
    """Number of values of a weight."""
    return int(np.prod(weight.shape, dtype=np.int64))


def _refusal(node: Node, slot: int) -> str:
    """Why the node has no int8 form with a weight in this slot; empty where it has one."""
    if not data_slots(node):
        return "its input is constant"
    if node.op not in ("MatMul", "Gemm"):
        return ""
    if slot != 1:
        return "its weight is the left operand, for which int8 kernels are slower than float"
    if node.op == "MatMul":
        return ""
    if node.attrs.get("transA", 0):
        return "its input is transposed"
    if node.attrs.get("alpha", 1.0) != 1.0 or (len(node.inputs) > 2 and node.attrs.get("beta", 1.0) != 1.0):
        return "alpha or beta is not 1"
    return ""


def _unfused_bias(node: Node) -> str:
    """Why the bias of a Conv or Gemm keeps it from being fused with its Q and DQ; empty where it does not."""
    slot = op_of(node).bias
    if slot is None or slot >= len(node.inputs) or not node.inputs[slot].name:
        return ""
    bias = node.inputs[slot]
    if not isinstance(bias, Constant):
        return "its bias is computed at run time: int8 kernels take a constant one"
    return "its bias has a value for each row" if any(size != 1 for size in bias.shape[:-1]) else ""

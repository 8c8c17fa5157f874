"""Choose the mode of one weighted node, seen alone: static, dynamic, weights or float, with the skip reason.

Neighbours are not considered here; int8_or_float.py does that.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from onnxshot.graph import Constant, Node, weights
from onnxshot.graph.ops import STANDARD_DOMAINS, data_slots, op_of, weight_slot
from onnxshot.planning.plan import DYNAMIC, FLOAT, STATIC, WEIGHTS
from onnxshot.planning.slow_convs import ConvSize, slower_in_int8
from onnxshot.recipes.recipe import Recipe
from onnxshot.targets.base import Target
from onnxshot.wording import worded

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN")
_MIN_TABLE_BYTES = 1 << 16  # smaller embedding tables stay in float


def node_mode(
    node: Node, target: Target, recipe: Recipe, *, is_top: bool, forced: bool, rows: int | None = None
) -> tuple[str, str]:
    """The mode of one node that is_weighted, and the skip reason if the mode is "float".

    The first check that applies decides:

    1. The weight is not a constant, may be overridden by an input, or is empty.
    2. Mode "weights": the node is quantized if its weight is float32 or float16. No further check applies.
    3. The weight is not float32.
    4. LSTM on a target with an int8 LSTM operator (`_unsupported_lstm`, and `include` is needed).
    5. The target leaves the operator in float on purpose (`Target.float_reasons`).
    6. The form is one that int8 kernels do not compute (`_unsupported_form`).
    7. A Conv whose size makes int8 slower (`slow_convs.slower_in_int8`; static mode).
    8. A MatMul with a stack of matrices, which is quantized dynamically or not at all (`_unsupported_stack`).
    9. Static int8, if the node is at the top level, the target has a kernel, and the bias fits (`_unsupported_bias`).
    10. Dynamic int8, if the target has a kernel and the weight is not small.
    11. Float: inside a subgraph, because of the bias, or for lack of a kernel.

    Args:
        node: the node, for which `is_weighted` holds.
        target: the rules of the runtime.
        recipe: the recipe of this node.
        is_top: whether the node is in the top-level graph, where activations are calibrated.
        forced: whether the user wants it quantized even if that does not pay.
        rows: rows of each matrix of a MatMul's input [..., rows, K]; None if unknown.
    """
    slot = weight_slot(node)
    if slot is None:
        if node.op == "MatMul":
            return FLOAT, "both inputs are activations: int8 is at most 1.15x as fast and costs accuracy"
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
    if node.op == "LSTM" and "LSTM" in target.contrib:
        reason = _unsupported_lstm(node, is_top=is_top)
        if not reason and recipe.portable_ops and not forced:
            ask = worded("ask for it with [[include=LSTM]]")
            reason = f"int8 LSTM exists only as com.microsoft.DynamicQuantizeLSTM: {ask}"
        return (FLOAT, reason) if reason else (DYNAMIC, "")
    reason = "" if forced else target.float_reasons.get(node.op, "")
    reason = reason or _unsupported_form(node, slot)
    if reason:
        return FLOAT, reason
    size = ConvSize.of(node) if target.slow_thin and not forced else None
    if size is not None and recipe.mode == STATIC and (slower := slower_in_int8(size)):
        return FLOAT, slower
    if node.op == "MatMul" and len(weight.shape) > 2:
        reason = _unsupported_stack(weight, target, rows=None if forced else rows)
        return (FLOAT, reason) if reason else (DYNAMIC, "")
    unsupported_bias = _unsupported_bias(node)
    if recipe.mode == STATIC and is_top and node.op in target.static and not unsupported_bias:
        return STATIC, ""
    if node.op in target.dynamic:
        if elements(weight) < target.min_dynamic_weights and not forced:
            return FLOAT, "its weight is small: quantizing its input at run time would cost more than it saves"
        return DYNAMIC, ""
    if not is_top:
        return FLOAT, "inside a subgraph (If, Loop, Scan), where activations are not calibrated"
    if recipe.mode == STATIC and unsupported_bias:
        return FLOAT, unsupported_bias
    if recipe.mode == DYNAMIC:
        return FLOAT, f"dynamic {node.op} is slower than float on {target.name}"
    return FLOAT, f"{target.name} has no int8 kernel for it"


def _unsupported_stack(weight: Constant, target: Target, *, rows: int | None) -> str:
    """Why a MatMul with a stack of matrices as weight stays in float; empty if it is quantized dynamically."""
    if "MatMul" not in target.dynamic:
        return f"its weight has rank {len(weight.shape)}; {target.name}'s int8 kernels take matrices"
    return "its input has one row per matrix: int8 runs at 0.8x of float" if rows == 1 else ""


def _unsupported_lstm(node: Node, *, is_top: bool) -> str:
    """Why DynamicQuantizeLSTM cannot compute this LSTM; empty if it can."""
    if not is_top:
        return "inside a subgraph (If, Loop, Scan), where LSTM has no int8 form"
    if not all(isinstance(weight, Constant) for weight in node.inputs[1:3]):
        return "one of its weights is computed at run time"
    if any(getattr(weight, "overridable", False) for weight in node.inputs[1:3]):
        return "its weight may be overridden by an input"
    return "DynamicQuantizeLSTM has no batch-first layout" if node.attrs.get("layout", 0) else ""


def is_weighted(node: Node) -> bool:
    """True for standard ONNX operators that multiply by a weight."""
    return node.op in WEIGHTED and node.domain in STANDARD_DOMAINS


def is_embedding(node: Node) -> bool:
    """True for an embedding: a Gather of rows of a constant float32 table [V, D] of 64 KiB or more."""
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


def unsupported_pool(node: Node) -> str:
    """Why int8 kernels do not compute this AveragePool correctly; empty if they do.

    ONNX Runtime's QLinearAveragePool does not support dilations: the model does not load. With ceil_mode, a window may
    reach beyond the padding: QLinearAveragePool divides by the size of the whole window, the float kernel by the number
    of positions inside the padding.
    """
    if node.op != "AveragePool" or node.domain not in STANDARD_DOMAINS:
        return ""
    if any(d != 1 for d in node.attrs.get("dilations", ())):
        return "int8 kernels of AveragePool do not support dilations"
    if node.attrs.get("ceil_mode", 0) and node.attrs.get("count_include_pad", 0):
        return "with ceil_mode and count_include_pad, int8 kernels divide by another count than float ones"
    return ""


def elements(weight: Constant) -> int:
    """Number of values of a weight."""
    return int(np.prod(weight.shape, dtype=np.int64))


def _unsupported_form(node: Node, slot: int) -> str:
    """Why int8 kernels do not compute a node of this form with its weight in this slot; empty if they do."""
    if not data_slots(node):
        return "its input is constant"
    if node.op not in ("MatMul", "Gemm"):
        return ""
    if slot != 1:
        return "its weight is the left operand, for which int8 kernels are slower than float"
    if node.op == "MatMul":
        return ""
    if node.attrs.get("transA", 0):
        return "its input is transposed (transA)"
    if node.attrs.get("alpha", 1.0) != 1.0 or (len(node.inputs) > 2 and node.attrs.get("beta", 1.0) != 1.0):
        return "alpha or beta is not 1"
    return ""


def _unsupported_bias(node: Node) -> str:
    """Why its bias keeps a Conv or Gemm from being fused with its Q and DQ; empty if it does not."""
    slot = op_of(node).bias
    if slot is None or slot >= len(node.inputs) or not node.inputs[slot].name:
        return ""
    bias = node.inputs[slot]
    if not isinstance(bias, Constant):
        return "its bias is computed at run time: int8 kernels need a constant bias"
    if any(size != 1 for size in bias.shape[:-1]):
        return "its bias differs from row to row: int8 kernels take one value per output channel"
    return ""

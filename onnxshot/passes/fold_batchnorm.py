"""Fold BatchNormalization into the Conv, ConvTranspose, Gemm or MatMul before it: Conv, BatchNormalization -> Conv."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxshot.graph import Graph, Model, Node, edit, weights
from onnxshot.graph.ops import STANDARD_DOMAINS
from onnxshot.passes import linear_ops
from onnxshot.passes.base import Change


@dataclass(frozen=True, slots=True)
class FoldBatchNorm:
    """Fold a BatchNormalization in inference mode into the linear op that makes its input, in subgraphs too.

    A MatMul of two matrices becomes a Gemm, which has a bias. After MatMul and Add, the BatchNormalization becomes Mul
    and Add, which `FoldAffine` folds. A BatchNormalization before a Conv is not folded: the Conv's padding must not be
    shifted.

    Edits count the removed BatchNormalizations. Skip reasons: "no Conv, ConvTranspose, Gemm or MatMul makes its input";
    the op's output is read elsewhere too, or the op is in an outer graph; "it is in training mode"; "its statistics are
    per element" (`spatial` = 0); its parameters are not constant, not one per channel or not finite; and the reasons of
    `linear_ops.fold_after`.
    """

    name: str = "fold_batchnorm"

    def run(self, model: Model) -> Change:
        """Fold the BatchNormalizations."""
        change = Change()
        for graph, node in list(model.walk()):
            if node.op == "BatchNormalization" and node.domain in STANDARD_DOMAINS:
                reason = _fold(model, graph, node)
                if reason is None:
                    change.edits += 1
                else:
                    change.skip(node, reason)
        return change


def _fold(model: Model, graph: Graph, node: Node) -> str | None:
    """Fold one BatchNormalization; None if done, else the skip reason."""
    maker = edit.producer(node.inputs[0])
    behind_bias = _is_bias(model, maker)
    if maker is None or not (behind_bias or linear_ops.is_linear(maker)):
        return "no Conv, ConvTranspose, Gemm or MatMul makes its input"
    if maker not in graph.nodes:
        return f"{maker.label!r} is in an outer graph"
    if edit.only_consumer(model, maker.outputs[0]) is not node:
        return f"the output of {maker.label!r} is read elsewhere too"
    reason = _training(model, node)
    if reason is not None:
        return reason
    if not all(linear_ops.fixed(t) for t in node.inputs[1:5]):
        return "its parameters are not all constant"
    gamma, beta, mean, variance = (weights.read(t).astype(np.float64) for t in node.inputs[1:5])
    if gamma.ndim != 1 or any(p.shape != gamma.shape for p in (beta, mean, variance)):
        return "its parameters are not one per channel"
    with np.errstate(invalid="ignore", divide="ignore"):
        # BatchNormalization-15: Y = (X - mean) / sqrt(var + epsilon) * scale + B
        scale = gamma / np.sqrt(variance + float(node.attrs.get("epsilon", 1e-5)))
    shift = beta - mean * scale
    if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
        return "its parameters are not finite, or a variance is negative"
    if behind_bias:
        _split(model, graph, node, scale, shift)
        return None
    reason = linear_ops.weight_refusal(model, maker)
    if reason is not None:
        return reason
    if gamma.size != linear_ops.out_channels(maker):
        return f"it has {gamma.size} channels, {maker.label!r} makes {linear_ops.out_channels(maker)}"
    was = maker.op
    reason = _make_gemm(model, maker) if was == "MatMul" else None
    reason = reason or linear_ops.fold_after(model, maker, scale, shift)
    if reason is not None:
        maker.op = was
        return reason
    edit.absorb(model, maker, node)
    return None


def _is_bias(model: Model, add: Node | None) -> bool:
    """Whether the node adds a constant to a MatMul whose result is a matrix."""
    if add is None or add.op != "Add" or not any(linear_ops.fixed(t) for t in add.inputs):
        return False
    product = next((m for m in map(edit.producer, add.inputs) if m is not None), None)
    matrices = len(model.shape(add.outputs[0]) or ()) == 2
    return matrices and product is not None and product.op == "MatMul" and linear_ops.has_weight(product)


def _split(model: Model, graph: Graph, node: Node, scale: NDArray[np.float64], shift: NDArray[np.float64]) -> None:
    """Rewrite a BatchNormalization as Mul and Add, which `FoldAffine` folds into the MatMul and its bias."""
    dtype = weights.read(node.inputs[1]).dtype
    source, outputs, base = node.inputs[0], node.outputs[:1], node.label
    edit.remove(model, [node])
    factor = edit.add_constant(model, base, "scale", scale.astype(dtype))
    scaled = edit.add_node(model, "Mul", [source, factor], base=base, suffix="scaled", graph=graph)
    bias = edit.add_constant(model, base, "shift", shift.astype(dtype))
    edit.add_node(model, "Add", [scaled.outputs[0], bias], base=base, suffix="shifted", outputs=outputs, graph=graph)
    edit.toposort(model)


def _training(model: Model, node: Node) -> str | None:
    """Skip reason if the node is in training mode or normalizes per element; None otherwise."""
    if node.attrs.get("training_mode", 0) or any(t.name for t in node.outputs[1:]):
        return "it is in training mode"
    if model.opset < 7 and not node.attrs.get("is_test", 0):
        return "it is in training mode"
    if not node.attrs.get("spatial", 1):
        return "its statistics are per element"
    return None


def _make_gemm(model: Model, node: Node) -> str | None:
    """Change a MatMul of two matrices into a Gemm, which has a bias for the shift; the skip reason if it cannot."""
    shape = model.shape(node.inputs[0])
    if len(node.inputs[1].shape) != 2 or shape is None or len(shape) != 2:
        # On [N, C, L] the channels of the BatchNormalization are not the columns of the weight.
        return "MatMul is not known to multiply two matrices"
    if model.opset < 7:
        return "Gemm broadcasts its bias from opset 7 on"
    node.op = "Gemm"
    return None

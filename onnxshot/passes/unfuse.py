"""Replace fused operators of ONNX Runtime by standard ones: FusedConv -> Conv, Relu; BiasGelu -> Add, Gelu; and others.

They occur in files that ONNX Runtime saved after optimization, or that its tools wrote. Other passes then see the
single operators, and ONNX Runtime fuses them again when it loads the model. If it would not, the fused operator is kept
and only its products are moved out of it (for example those of Attention).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from onnxshot.graph import Graph, Model, Node, edit
from onnxshot.passes import nchwc_to_nchw, unfuse_attention, unfuse_norms, unfuse_products
from onnxshot.passes.base import Change

Rule = Callable[[Model, Graph, Node], str]
"""Replaces a node in a graph. Returns the skip reason, with nothing changed, or an empty string."""

RULES: dict[str, Rule] = {  # operators of com.microsoft
    "FusedConv": unfuse_products.unfuse_conv,
    "FusedGemm": unfuse_products.unfuse_gemm,
    "FusedMatMul": unfuse_products.unfuse_matmul,
    "TransposeMatMul": unfuse_products.unfuse_matmul,
    "FusedMatMulActivation": unfuse_products.unfuse_matmul,
    "GemmFastGelu": unfuse_products.unfuse_gelu_product,
    "SkipLayerNormalization": unfuse_norms.unfuse_skip_norm,
    "SkipSimplifiedLayerNormalization": unfuse_norms.unfuse_skip_norm,
    "EmbedLayerNormalization": unfuse_norms.unfuse_embeddings,
    "BiasGelu": unfuse_norms.unfuse_bias_gelu,
    "Gelu": unfuse_norms.unfuse_gelu,
    "FastGelu": unfuse_norms.unfuse_fast_gelu,
    "QuickGelu": unfuse_norms.unfuse_quick_gelu,
    "BiasAdd": unfuse_norms.unfuse_bias_add,
    "BiasSplitGelu": unfuse_norms.unfuse_bias_split_gelu,
    "Attention": unfuse_attention.unfuse_attention,
}
DOMAIN = "com.microsoft"


@dataclass(frozen=True, slots=True)
class Unfuse:
    """Replace the operators of RULES, in subgraphs too.

    Edits count the operators. Skipped: operators that the rule for their type cannot replace; see unfuse_*.py.
    """

    name: str = "unfuse"

    def run(self, model: Model) -> Change:
        """Replace the operators."""
        change = Change()
        for graph, node in list(model.walk()):
            rule = RULES.get(node.op) if node.domain == DOMAIN else None
            if rule is None:
                continue
            reason = rule(model, graph, node)
            if reason:
                change.skip(node, reason)
            else:
                change.edits += 1
        if change.edits:
            edit.toposort(model)
        return change


def holds_fused(model: Model) -> bool:
    """Whether the model has an operator of RULES, or one in the blocked NCHWc layout of ONNX Runtime."""
    return any(n.domain == nchwc_to_nchw.DOMAIN or (n.domain == DOMAIN and n.op in RULES) for _, n in model.walk())

"""Take apart the fused operators that ONNX Runtime's optimizers write, so that passes see the operators inside.

They are ONNX Runtime's own and stand in files that it saved after optimizing, or that its tools wrote. It fuses them
anew when it loads a model; where it would not, the fused core is kept and its products are taken out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from onnxshot.graph import Graph, Model, Node, edit
from onnxshot.passes import nchwc_to_nchw, unfuse_attention, unfuse_norms, unfuse_products
from onnxshot.passes.base import Change

Rule = Callable[[Model, Graph, Node], str]
"""Writes a node anew; why it could not, having changed nothing, or empty."""

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
    """Write the operators of RULES as standard ones, or as standard ones around a core that stays fused."""

    name: str = "unfuse"

    def run(self, model: Model) -> Change:
        """Unfuse; edits counts the operators, skips name those that stay."""
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
    """Whether the model has an operator of RULES, or one in ONNX Runtime's blocked layout."""
    return any(n.domain == nchwc_to_nchw.DOMAIN or (n.domain == DOMAIN and n.op in RULES) for _, n in model.walk())

"""Hide operators that ONNX's version converter converts wrongly, and rewrite them afterwards with `opset_rules`."""

from __future__ import annotations

from onnxshot.graph import edit
from onnxshot.graph.ir import Graph, Node
from onnxshot.graph.model import Model
from onnxshot.graph.onnx_checker import is_unknown
from onnxshot.graph.opset_rules import RULES, Rule

HIDDEN = "onnxshot.raised"
"""The domain of hidden nodes, which the converter does not change."""


def hide_nodes(model: Model, version: int) -> bool:
    """Move the nodes that the converter converts wrongly, or does not know, into the domain HIDDEN.

    Args:
        model: the model.
        version: the opset that it is raised to.

    Returns:
        Whether there are such nodes.

    Raises:
        ModelError: a node has no equivalent in newer opsets.
    """
    rules = _rules(model.opset, version)
    found = [
        node
        for _, node in model.walk()
        if node.domain in (None, "", "ai.onnx")
        and ((node.op in rules and rules[node.op].wrong(model, node)) or is_unknown(node.op, node.domain, model.opset))
    ]
    for node in found:
        node.domain = HIDDEN
    if found:
        model.require_domain(HIDDEN)
    return bool(found)


def rewrite_hidden_nodes(model: Model, opset: int) -> None:
    """Move hidden nodes back into their domain, and rewrite those of opset `opset` for the opset that the model has."""
    rules = _rules(opset, model.opset)
    for graph, node in restore_nodes(model):
        if node.op in rules:  # the others have the same definition in both opsets
            rules[node.op].rewrite(model, graph, node)
    edit.toposort(model)


def restore_nodes(model: Model) -> list[tuple[Graph, Node]]:
    """Move hidden nodes back into their domain unchanged; return them as (graph that holds it, node)."""
    found = [(graph, node) for graph, node in model.walk() if node.domain == HIDDEN]
    for _, node in found:
        node.domain = None
    left = [entry for entry in model.envelope.opset_import if entry.domain != HIDDEN]
    del model.envelope.opset_import[:]
    model.envelope.opset_import.extend(left)
    return found


def _rules(opset: int, version: int) -> dict[str, Rule]:
    """The rule of each operator between two opsets; of several that apply, the last."""
    return {rule.op: rule for rule in RULES if rule.since <= opset < rule.below <= version}

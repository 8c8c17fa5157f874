"""Operators that ONNX's version converter gets wrong are hidden from it, and raised by rules of our own."""

from __future__ import annotations

from onnxshot.graph import edit
from onnxshot.graph.ir import Graph, Node
from onnxshot.graph.model import Model
from onnxshot.graph.onnx_checker import is_unknown
from onnxshot.graph.opset_rules import RULES, Rule

HIDDEN = "onnxshot.raised"
"""Domain of the nodes that the converter is to leave alone."""


def hide_nodes(model: Model, version: int) -> bool:
    """Move the nodes that the converter gets wrong, or does not know, into a domain of their own; whether any.

    Raises ModelError for one that has no counterpart in newer opsets, with its name.
    """
    rules = {op: rule for op, rule in _rules(model.opset).items() if rule.below <= version}
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
    """Bring the nodes that were hidden, from this opset, into the form of the one that the model has now."""
    rules = _rules(opset)
    for graph, node in restore_nodes(model):
        if node.op in rules:  # the others are the same in every opset
            rules[node.op].rewrite(model, graph, node)
    edit.toposort(model)


def restore_nodes(model: Model) -> list[tuple[Graph, Node]]:
    """Move hidden nodes back into their domain, as they are; those nodes, and the graphs that they stand in."""
    found = [(graph, node) for graph, node in model.walk() if node.domain == HIDDEN]
    for _, node in found:
        node.domain = None
    left = [entry for entry in model.envelope.opset_import if entry.domain != HIDDEN]
    del model.envelope.opset_import[:]
    model.envelope.opset_import.extend(left)
    return found


def _rules(opset: int) -> dict[str, Rule]:
    """The rules for the operators of an opset: where several fit, the last."""
    return {rule.op: rule for rule in RULES if rule.since <= opset < rule.below}

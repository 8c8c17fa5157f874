"""What of a model may be cut, by what was asked for; and what not, with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnxshot.channels.branches import Branch, branches_of
from onnxshot.channels.groups import Group, Groups
from onnxshot.graph import Model
from onnxshot.graph.axis_coupling import Shape
from onnxshot.graph.skip import Skip
from onnxshot.planning.name_patterns import match_nodes
from onnxshot.recipes.stages import ShrinkStage


@dataclass(frozen=True, slots=True)
class Choice:
    """Groups that may lose channels, branches that may be left out, and layers that stay as they are."""

    groups: tuple[Group, ...]
    branches: tuple[Branch, ...]
    skips: tuple[Skip, ...]


def choose(model: Model, groups: Groups, shapes: Mapping[str, Shape], asked: ShrinkStage, *, sampled: bool) -> Choice:
    """What the scope, the includes and the excludes leave of a model's groups.

    shapes: of its tensors, concrete. sampled: there is data; without any, and where something narrows down what may be
    cut, no branch is left out. Raises UsageError for a glob that matches no node.
    """
    picked = match_nodes(model, asked.include, "include") if asked.include else None
    left = match_nodes(model, asked.exclude, "exclude")
    everywhere = sampled and asked.scope == "all" and picked is None
    branches = branches_of(model, groups, shapes, left) if everywhere else []
    rows, skips = [], list(groups.skips)
    for group in groups.rows:
        nodes = [node for node, _ in group.makers]
        reason = ""
        if asked.scope not in ("all", group.kind):
            reason = f"scope {asked.scope!r} leaves {group.kind} alone"
        elif picked is not None and not any(node in picked for node in nodes):
            reason = "not included"
        elif any(node in left for node in nodes):
            reason = f"excluded by {next(left[node] for node in nodes if node in left)!r}"
        if reason:
            skips += [Skip(node.label, node.op, reason) for node in nodes]
        else:
            rows.append(group)
    return Choice(tuple(rows), tuple(branches), tuple(skips))

"""Which groups and branches may be removed under the requested scope, includes and excludes, and why others may not."""

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
class Eligible:
    """What may be removed.

    Attributes:
        groups: Groups that may lose channels.
        branches: Residual branches that may be removed as a whole.
        skips: Layers that stay as they are, with the reason.
    """

    groups: tuple[Group, ...]
    branches: tuple[Branch, ...]
    skips: tuple[Skip, ...]


def eligible_of(
    model: Model, groups: Groups, shapes: Mapping[str, Shape], asked: ShrinkStage, *, sampled: bool
) -> Eligible:
    """Filter the groups of a model by scope, includes and excludes.

    Args:
        model: The normalized model.
        groups: All its groups.
        shapes: Concrete shapes of its tensors.
        asked: Scope and name patterns.
        sampled: Whether there are samples. Branches are eligible only if there are, and if neither a scope nor an
            include narrows the choice.

    Raises:
        UsageError: A pattern matches no node.
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
    return Eligible(tuple(rows), tuple(branches), tuple(skips))

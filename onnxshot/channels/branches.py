"""Residual branches that can be removed as a whole: paths of layers whose result is only added to another path."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from onnxshot.channels.groups import Group, Groups
from onnxshot.graph import Constant, Model, Node, Tensor, edit
from onnxshot.graph.axis_coupling import Ids, Shape


@dataclass(frozen=True, eq=False)
class Branch:
    """A residual branch that can be removed.

    Attributes:
        name: Label of its first layer.
        sums: Output name of each Add at its end -> name of the tensor that the branch contributes to it.
        ids: Numbers of the channels that only this branch produces.
    """

    name: str
    sums: Mapping[str, str]
    ids: Ids


def branches_of(
    model: Model, groups: Groups, shapes: Mapping[str, Shape], spared: Collection[Node] = ()
) -> list[Branch]:
    """Find the residual branches that end with the layers that read one group; none with a spared layer.

    Deep residual networks keep their accuracy without some of their blocks (Veit et al. 2016, Residual Networks Behave
    Like Ensembles of Relatively Shallow Networks, section 4.1).
    """
    found = []
    for group in groups.rows:
        sums = _sums(model, group, shapes)
        if sums is None:
            continue
        gone = _only_for(model, set(sums))
        if any(edit.producer(side) in gone for made, add in sums.items() for side in add.inputs if side is not made):
            continue  # both inputs of an Add would be removed
        layers = [(node, ids) for node, ids in groups.axes.made if node in gone]
        ends = [node for node, _ in group.readers]
        inside = [ids for node, ids in layers if node not in ends]
        ids = np.unique(np.concatenate(inside)) if inside else np.zeros(0, np.int64)
        own = all(node in gone for node, _ in group.makers) and not any(i in groups.axes.fixed for i in ids.tolist())
        if own and not any(node in spared for node in gone):
            found.append(Branch(group.name, {add.outputs[0].name: made.name for made, add in sums.items()}, ids))
    return found


def _sums(model: Model, group: Group, shapes: Mapping[str, Shape]) -> dict[Tensor, Node] | None:
    """Output of each reader of a group -> the Add that alone reads it; None if one of them has another reader."""
    found = {}
    for node, _ in group.readers:
        made = node.outputs[0]
        add = edit.only_consumer(model, made)
        if add is not None and add.op == "Add" and any(isinstance(t, Constant) for t in add.inputs):  # the bias
            made = add.outputs[0]
            add = edit.only_consumer(model, made)
        if add is None or add.op != "Add" or edit.is_output(model, add.outputs[0]):
            return None
        others = [t for t in add.inputs if t is not made]
        if len(others) != 1 or isinstance(others[0], Constant):
            return None
        if shapes.get(others[0].name) is None or shapes[others[0].name] != shapes.get(add.outputs[0].name):
            return None
        found[made] = add
    return found


def _only_for(model: Model, tensors: Collection[Tensor]) -> set[Node]:
    """The nodes whose outputs only serve to compute these tensors."""
    found: set[Node] = set()
    for node in reversed(model.graph.nodes):
        if all(
            not edit.is_output(model, t) and (t in tensors or all(user in found for user in edit.consumers(t)))
            for t in node.outputs
        ):
            found.add(node)
    return found

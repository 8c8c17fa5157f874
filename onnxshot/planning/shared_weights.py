"""Find products that share a weight: a SmoothQuant factor multiplied into it applies to all of them."""

from __future__ import annotations

from collections.abc import Sequence

from onnxshot.graph import Model, Node, Tensor, edit


def is_shared(model: Model, weight: Tensor, products: Sequence[Node]) -> bool:
    """Whether nodes other than these products read the weight or its tied transpose."""
    users = edit.consumers(weight)
    return any(user not in products for user in users) or (weight.name in model.tied and len(users) == 1)


def joined_by_weights(products: Sequence[Node]) -> list[tuple[list[Tensor], list[Node]]]:
    """Group products that read a common tensor or weight. Each group is (tensors read, products)."""
    groups: list[tuple[list[Tensor], list[Node]]] = []
    group_of: dict[Tensor, int] = {}
    for node in products:
        ends = node.inputs[:2]
        near = sorted({group_of[t] for t in ends if t in group_of})
        lead = near[0] if near else len(groups)
        if not near:
            groups.append(([], []))
        for other in near[1:]:
            groups[lead][0].extend(groups[other][0])
            groups[lead][1].extend(groups[other][1])
            groups[other][0].clear()
            groups[other][1].clear()
            group_of.update({t: lead for t, at in group_of.items() if at == other})
        if node.inputs[0] not in groups[lead][0]:
            groups[lead][0].append(node.inputs[0])
        groups[lead][1].append(node)
        group_of.update(dict.fromkeys(ends, lead))
    return [group for group in groups if group[1]]

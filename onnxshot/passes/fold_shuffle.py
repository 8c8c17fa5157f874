"""Write a channel shuffle (Reshape, Transpose, Reshape, then perhaps a split) as one Gather of channels per result.

ShuffleNet units move every value three times to reorder channels; a Gather along axis 1 copies whole planes once.
Which channels end up where is not guessed from the shapes: the chain is run on numbered values, and folded only where
what comes out is whole channels of what went in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.graph import Graph, Model, Node, Tensor, edit
from onnxshot.passes.base import Change

_MAX_ELEMENTS = 1 << 22  # numbered values of one chain: 32 MB
_FREE = 2  # stands for a dimension that is not known; one that a constant shape contradicts ends the attempt

Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class FoldShuffle:
    """Fold channel shuffles in the top-level graph."""

    name: str = "fold_shuffle"

    def run(self, model: Model) -> Change:
        """Fold; edits counts the Gathers made."""
        change = Change()
        for node in list(model.graph.nodes):
            if node.op != "Reshape" or not node.inputs:
                continue
            source = node.inputs[0]
            shape = model.shape(source)
            if shape is None or len(shape) < 3 or not isinstance(shape[1], int) or shape[1] < 2:
                continue
            sizes = [d if isinstance(d, int) and d > 0 else _FREE for d in shape]
            if int(np.prod(sizes, dtype=np.int64)) > _MAX_ELEMENTS:
                continue
            numbered = np.arange(int(np.prod(sizes)), dtype=np.int64).reshape(sizes)
            found = _selections(model, node, numbered)
            for leaf, channels in found:
                _gather(model, model.graph, source, leaf, channels)
            change.edits += len(found)
        if change.edits:
            edit.remove_unused(model)
            edit.toposort(model)
        return change


def _selections(model: Model, start: Node, x: Numbers) -> list[tuple[Tensor, Numbers]]:
    """Tensors behind `start` that are x[:, channels], with their channels; empty where any result is something else."""
    found: list[tuple[Tensor, Numbers]] = []
    stack = [(start, x)]
    transposed = False
    while stack:
        node, value = stack.pop()
        results = _apply(node, value)
        if results is None:
            return []
        transposed |= node.op == "Transpose"
        for tensor, result in zip(node.outputs, results, strict=False):
            users = edit.consumers(tensor)
            movable = users and all(u.op in _MOVES and u.inputs[0] is tensor for u in users)
            channels = _channels(x, result)
            if channels is not None and transposed:
                found.append((tensor, channels))
            elif movable and not edit.is_output(model, tensor) and len(users) <= 2:
                stack += [(u, result) for u in users]
            elif users or edit.is_output(model, tensor):
                return []
    return found


def _channels(x: Numbers, y: Numbers) -> Numbers | None:
    """Indices with y == x[:, indices]; None where there are none."""
    if y.ndim != x.ndim or y.shape[0] != x.shape[0] or y.shape[2:] != x.shape[2:] or not y.shape[1]:
        return None
    plane = int(np.prod(x.shape[2:], dtype=np.int64))
    picked = y[0].reshape(y.shape[1], -1)[:, 0] // plane
    return picked if picked.max() < x.shape[1] and np.array_equal(y, x[:, picked]) else None


def _gather(model: Model, graph: Graph, source: Tensor, leaf: Tensor, channels: Numbers) -> None:
    maker = edit.producer(leaf)
    assert maker is not None
    base = maker.label
    maker.outputs[next(i for i, t in enumerate(maker.outputs) if t is leaf)] = type(leaf)(model.fresh(leaf.name, "was"))
    indices = edit.add_constant(model, base, "channels", channels)
    edit.add_node(
        model, "Gather", [source, indices], base=base, suffix="channels", outputs=[leaf], attrs={"axis": 1}, graph=graph
    )


# ---------------------------------------------------------------------- what each op does to numbered values


def _apply(node: Node, x: Numbers) -> list[Numbers] | None:
    try:
        return _MOVES[node.op](node, x)
    except (ValueError, IndexError, TypeError):
        return None  # a constant shape does not fit: the free dimensions stand for something else


def _reshape(node: Node, x: Numbers) -> list[Numbers] | None:
    shape = edit.constant_input(node, 1)
    if shape is None:
        return None
    zero_copies = not node.attrs.get("allowzero", 0)
    sizes = [x.shape[i] if d == 0 and zero_copies else int(d) for i, d in enumerate(shape.tolist())]
    return [x.reshape(sizes)]


def _transpose(node: Node, x: Numbers) -> list[Numbers]:
    return [x.transpose(node.attrs.get("perm", list(reversed(range(x.ndim)))))]


def _pick(node: Node, x: Numbers) -> list[Numbers] | None:
    indices = edit.constant_input(node, 1)
    return None if indices is None else [np.take(x, indices, axis=int(node.attrs.get("axis", 0)))]


def _split(node: Node, x: Numbers) -> list[Numbers] | None:
    axis = int(node.attrs.get("axis", 0))
    sizes: Any = edit.constant_input(node, 1) if len(node.inputs) > 1 else node.attrs.get("split")
    if sizes is None and len(node.inputs) > 1 and node.inputs[1].name:
        return None
    if sizes is None:
        return list(np.split(x, len(node.outputs), axis))
    return list(np.split(x, np.cumsum(np.asarray(sizes))[:-1], axis))


_MOVES: dict[str, Callable[[Node, Numbers], list[Numbers] | None]] = {
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Gather": _pick,
    "Split": _split,
}

"""Fold a channel shuffle: Reshape, Transpose, Reshape [, Split or Slice] -> one Gather along axis 1 per result.

ShuffleNet units copy every value three times to reorder channels; a Gather along axis 1 copies whole planes once. The
order of the channels is not inferred from shapes: the chain is run on an array of consecutive numbers, and is folded
only if each result consists of whole channels of the input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.graph import Graph, Model, Node, Tensor, edit
from onnxshot.passes.base import Change
from onnxshot.passes.move_shapes import READS_SHAPE
from onnxshot.passes.shape_values import sliced, value_of

_MAX_ELEMENTS = 1 << 22  # elements of the array that a chain is run on: 32 MB
_FREE = ((2, 3, 5), (3, 4, 7))  # sizes to try for dynamic dimensions; the chain is run with each set

Numbers = NDArray[np.int64]
Arguments = list[NDArray[Any] | None]  # an op's inputs after the data; None for one that is left out


@dataclass(frozen=True, slots=True)
class FoldShuffle:
    """Fold channel shuffles in the top-level graph.

    Edits count the Gathers made. Nothing is reported as skipped.
    """

    name: str = "fold_shuffle"

    def run(self, model: Model) -> Change:
        """Fold the shuffles."""
        change = Change()
        for node in list(model.graph.nodes):
            if node.op != "Reshape" or len(node.inputs) < 2:
                continue
            source = node.inputs[0]
            shape = model.shape(source)
            if shape is None or len(shape) < 3 or not isinstance(shape[1], int) or shape[1] < 2:
                continue
            found = _for_all_sizes(model, node, shape)
            for leaf, channels in found:
                _gather(model, model.graph, source, leaf, channels)
            change.edits += len(found)
        if change.edits:
            edit.remove_unused(model)
            edit.toposort(model)
        return change


def _for_all_sizes(model: Model, start: Node, shape: Sequence[int | str | None]) -> list[tuple[Tensor, Numbers]]:
    """The selections of `_Chain` if two different sets of sizes for the dynamic dimensions give the same; else none."""
    attempts = []
    for numbers in _FREE:
        free = dict.fromkeys(d for d in shape if isinstance(d, str))
        sizes = {name: numbers[i % len(numbers)] for i, name in enumerate(free)}
        real = [d if isinstance(d, int) else sizes.get(str(d), numbers[-1]) for d in shape]
        count = int(np.prod(real, dtype=np.int64))
        if count > _MAX_ELEMENTS or count < 1:
            return []
        found = _Chain(model, sizes).selections(start, np.arange(count, dtype=np.int64).reshape(real))
        attempts.append(found)
        if not found or all(isinstance(d, int) for d in shape):
            return found
    first, second = attempts
    same = len(first) == len(second) and all(
        a is b and np.array_equal(x, y) for (a, x), (b, y) in zip(first, second, strict=True)
    )
    return first if same else []


class _Chain:
    """Runs the ops after a tensor on consecutive numbers. `sizes` maps each dynamic dimension to a size."""

    def __init__(self, model: Model, sizes: Mapping[str, int]) -> None:
        self._model, self._sizes = model, sizes
        self._shapes: dict[Tensor, tuple[int, ...]] = {}

    def selections(self, start: Node, x: Numbers) -> list[tuple[Tensor, Numbers]]:
        """Results of the chain from `start` that equal x[:, channels], each with its channels.

        If a shuffled tensor is only read in parts, by Split or Slice, the parts are returned instead. The list is empty
        if any result of the chain is not a selection of channels.
        """
        self._shapes[start.inputs[0]] = x.shape
        found: list[tuple[Tensor, Numbers]] = []
        stack = [(start, x)]
        transposed = False
        while stack:
            node, value = stack.pop()
            results = self._apply(node, value)
            if results is None:
                return []
            transposed |= node.op == "Transpose"
            for tensor, result in zip(node.outputs, results, strict=False):
                self._shapes[tensor] = result.shape
                users = [u for u in edit.consumers(tensor) if u.op not in READS_SHAPE]
                given_out = edit.is_output(self._model, tensor)
                movable = users and not given_out and all(u.op in _MOVES and u.inputs[0] is tensor for u in users)
                channels = _channels(x, result)
                parts = movable and all(self._takes_part(u, x, result) for u in users)
                if channels is not None and transposed and not parts:
                    found.append((tensor, channels))
                elif movable and len(users) <= 2:
                    stack += [(u, result) for u in users]
                elif users or given_out:
                    return []
        return found

    def _takes_part(self, node: Node, x: Numbers, value: Numbers) -> bool:
        """Whether a Slice or Split selects whole channels."""
        results = self._apply(node, value) if node.op in ("Slice", "Split") else None
        return bool(results) and all(_channels(x, result) is not None for result in results or ())

    def _apply(self, node: Node, x: Numbers) -> list[Numbers] | None:
        """Outputs of a node on numbers; None if an input is not known or does not fit."""
        try:
            arguments: Arguments = []
            for tensor in node.inputs[1:]:
                given = value_of(self._model, tensor, self._sizes, self._shapes) if tensor.name else None
                if given is None and tensor.name:
                    return None
                arguments.append(given)
            return _MOVES[node.op](node, x, arguments)
        except (ValueError, IndexError, TypeError):
            return None  # a constant shape does not fit the sizes that were chosen for dynamic dimensions


def _channels(x: Numbers, y: Numbers) -> Numbers | None:
    """Indices with y == x[:, indices]; None if there are none."""
    if y.ndim != x.ndim or not y.size or y.shape[0] != x.shape[0] or y.shape[2:] != x.shape[2:] or not y.shape[1]:
        return None
    plane = int(np.prod(x.shape[2:], dtype=np.int64))
    picked = y[0].reshape(y.shape[1], -1)[:, 0] // plane
    return picked if picked.max() < x.shape[1] and np.array_equal(y, x[:, picked]) else None


def _gather(model: Model, graph: Graph, source: Tensor, leaf: Tensor, channels: Numbers) -> None:
    """Let a Gather of channels make the tensor `leaf`."""
    maker = edit.producer(leaf)
    assert maker is not None
    base = maker.label
    maker.outputs[next(i for i, t in enumerate(maker.outputs) if t is leaf)] = type(leaf)(model.fresh(leaf.name, "was"))
    indices = edit.add_constant(model, base, "channels", channels)
    edit.add_node(
        model, "Gather", [source, indices], base=base, suffix="channels", outputs=[leaf], attrs={"axis": 1}, graph=graph
    )


# ---------------------------------------------------------------------- operators in numpy


def _reshape(node: Node, x: Numbers, given: Arguments) -> list[Numbers] | None:
    """Reshape; a size of 0 copies the input's size unless `allowzero` is set."""
    if given[0] is None:
        return None
    zero_copies = not node.attrs.get("allowzero", 0)
    sizes = [x.shape[i] if d == 0 and zero_copies else int(d) for i, d in enumerate(given[0].tolist())]
    return [x.reshape(sizes)]


def _transpose(node: Node, x: Numbers, given: Arguments) -> list[Numbers]:
    return [x.transpose(node.attrs.get("perm", list(reversed(range(x.ndim)))))]


def _pick(node: Node, x: Numbers, given: Arguments) -> list[Numbers] | None:
    return None if given[0] is None else [np.take(x, given[0], axis=int(node.attrs.get("axis", 0)))]


def _slice(node: Node, x: Numbers, given: Arguments) -> list[Numbers]:
    return [sliced(node, x, given)]


def _split(node: Node, x: Numbers, given: Arguments) -> list[Numbers] | None:
    """Split into equal parts, or into the given sizes."""
    axis = int(node.attrs.get("axis", 0))
    sizes: Any = given[0] if given else node.attrs.get("split")
    if sizes is None:
        return list(np.split(x, len(node.outputs), axis))
    return list(np.split(x, np.cumsum(np.asarray(sizes))[:-1], axis))


_MOVES: dict[str, Callable[[Node, Numbers, Arguments], list[Numbers] | None]] = {
    "Reshape": _reshape,
    "Transpose": _transpose,
    "Gather": _pick,
    "Slice": _slice,
    "Split": _split,
}

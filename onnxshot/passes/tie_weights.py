"""Store tied weights once: a matrix and its transpose become one matrix and Transpose(matrix).

Language models often use the embedding table, transposed, to compute the scores. Planning needs each form at its op. In
the file, one is a Transpose of the other, which runtimes fold when they load the model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from onnxshot.graph import Constant, Model, edit, weights
from onnxshot.graph.weight_pieces import reads_rows, row_blocks, rows
from onnxshot.passes.base import Change

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_MIN_BYTES = 4096
_CORNER = 8  # rows and columns that are compared before the whole matrix


@dataclass(frozen=True, slots=True)
class TieWeights:
    """Replace one of two equal matrices by the other, or by its transpose.

    Edits count the matrices that are no longer stored. Nothing is reported as skipped.

    Attributes:
        ties: (first, second, transposed): weights that were equal before quantization, or transposes of each other.
    """

    ties: Sequence[tuple[Constant, Constant, bool]]
    name: str = "tie_weights"

    def run(self, model: Model) -> Change:
        """Replace the matrices."""
        change = Change()
        if not self.ties:
            return change
        forms: dict[Constant, list[Constant]] = {}  # weight -> what is stored for it now: itself or its integers
        for constant in model.constants():
            source = cast(Constant, getattr(constant, "source", constant))
            forms.setdefault(source, []).append(constant)
        gone: set[Constant] = set()
        for first, second, turned in self.ties:
            for one in forms.get(first, ()):
                for other in forms.get(second, ()):
                    if one is other or gone & {one, other} or edit.is_output(model, other):
                        continue
                    crossed = turned ^ _turned(one) ^ _turned(other)
                    if _same(one, other, crossed):
                        _tie(model, one, other, crossed)
                        gone.add(other)
                        change.edits += 1
        if change.edits:
            edit.toposort(model)
        return change


def _turned(constant: Constant) -> bool:
    """Whether the constant holds the integers of the transpose of its source."""
    return bool(getattr(constant, "turned", False))


def tied_names(model: Model) -> frozenset[str]:
    """Names of all weights that are tied to another one."""
    return frozenset(c.name for first, second, _ in ties_of(model) for c in (first, second))


def ties_of(model: Model, names: Collection[str] | None = None) -> list[tuple[Constant, Constant, bool]]:
    """Find tied weights.

    Args:
        model: the model.
        names: names of the matrices to compare; None for all.

    Returns:
        (first, second, transposed) for each pair of float matrices of which the second equals the first or its
        transpose. A matrix that several nodes read is paired with itself. If a Gather reads one of them, that one is
        the first, and is stored unchanged.
    """
    if names is not None and not names:
        return []
    tables = [c for c in model.constants() if len(c.shape) == 2 and weights.size_bytes(c) >= _MIN_BYTES]
    tables = [c for c in tables if (names is None or c.name in names) and weights.elem_type(c) in _FLOATS]
    tables.sort(key=lambda c: all(node.op != "Gather" for node in edit.consumers(c)))
    groups: dict[tuple[object, ...], list[Constant]] = {}
    for constant in tables:
        groups.setdefault((str(constant._values.dtype), *sorted(constant.shape)), []).append(constant)
    found = [(c, c, False) for c in tables if len(edit.consumers(c)) > 1]
    for group in groups.values():
        found += _pairs(group)
    return found


def _pairs(group: Sequence[Constant]) -> Iterator[tuple[Constant, Constant, bool]]:
    taken: set[Constant] = set()
    corners = {c: _corner(c) for c in group} if len(group) > 1 else {}
    alike: dict[object, list[Constant]] = {}
    for constant, corner in corners.items():
        alike.setdefault(_either_way(corner), []).append(constant)
    places = {c: (same, i) for same in alike.values() for i, c in enumerate(same)}
    for first in corners:
        same, i = places[first]
        for second in same[i + 1 :]:
            if first in taken or second in taken:
                continue
            for turned in (False, True):
                corner = corners[second].T if turned else corners[second]
                if np.array_equal(corners[first], corner) and _same(first, second, turned):
                    taken.add(second)
                    yield first, second, turned
                    break


def _corner(constant: Constant) -> NDArray[Any]:
    # A copy: a view would keep the whole weight in memory.
    return np.array(rows(_stored(constant), 0, min(_CORNER, constant.shape[0]))[:, :_CORNER])


def _stored(constant: Constant) -> Constant:
    """The constant, or that of the narrower type whose numbers it holds."""
    narrow = getattr(constant._values, "widened", None)
    return constant if narrow is None else narrow


def _either_way(corner: NDArray[Any]) -> object:
    """Key that is equal for a corner and its transpose only."""
    values = corner.astype(np.float32) + np.float32(0)  # a zero has no sign
    return min((form.shape, form.tobytes()) for form in (values, values.T))


def _same(first: Constant, second: Constant, turned: bool) -> bool:
    shape = tuple(second.shape[::-1] if turned else second.shape)
    if tuple(first.shape) != shape or first._values.dtype != second._values.dtype:
        return False
    one, other = _stored(first), _stored(second)
    if one._values.dtype != other._values.dtype:
        one, other = first, second
    if turned:
        whole = np.asarray(weights.read(other)).T
        return all(np.array_equal(block, whole[at : at + len(block)]) for at, block in row_blocks(one))
    if not (reads_rows(one) and reads_rows(other)):
        return bool(np.array_equal(weights.read(one), weights.read(other)))
    return all(np.array_equal(block, rows(other, at, at + len(block))) for at, block in row_blocks(one))


def _tie(model: Model, first: Constant, second: Constant, turned: bool) -> None:
    if not turned:
        edit.replace_uses(model, second, first)
        return
    node = edit.add_node(model, "Transpose", [first], base=first.name, suffix="turned", attrs={"perm": [1, 0]})
    edit.replace_uses(model, second, node.outputs[0])

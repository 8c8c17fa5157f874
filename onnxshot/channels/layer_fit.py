"""Fit the weight and bias of one layer to the outputs it should have, by ridge regression.

A layer of many outputs is fitted a piece of its outputs at a time; each output has a fit of its own, so this bounds
memory alone. A layer of many inputs is fitted a block of its inputs at a time, each to what those before it have left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxshot.channels.layer_inputs import Layer, whole_columns
from onnxshot.execution.activation import Activation
from onnxshot.execution.layer_rows import product
from onnxshot.maths import optimal_brain_surgeon
from onnxshot.maths.bias_correction import corrected_bias
from onnxshot.maths.ridge_regression import Moments, change, ridge

# The sizes are the same at every memory budget, as results depend on them.
_ROWS = 12288  # output positions that a layer is fitted on, at most
_ROW_BYTES = 48 << 20  # bytes of its inputs at these positions, at most
_PIECE_BYTES = 64 << 20  # bytes of a piece of its outputs, at most
_STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # candidate ridge strengths, relative to the mean second moment
_LEFT_OUT = 4  # every 4th sample is held out of a fit to choose the ridge strength

RowsOfOutputs = Callable[[slice], NDArray[np.float32]]
"""Returns the values of a piece of a layer's outputs [N, P], sample after sample."""
Floats = NDArray[np.floating]


def most_rows(layer: Layer) -> int:
    """Output positions that a layer is fitted on, at most."""
    return min(_ROWS, _ROW_BYTES // (4 * layer.groups * layer.columns))


def output_pieces(layer: Layer) -> list[slice]:
    """The pieces of a layer's outputs [G * O]; one for a layer of several groups."""
    outputs = layer.groups * layer.outputs_of_group
    size = outputs if layer.groups > 1 else _PIECE_BYTES // (4 * max(most_rows(layer), 1))
    return [slice(start, min(start + size, outputs)) for start in range(0, outputs, size)]


def fit(
    layer: Layer,
    weight: Floats,
    bias: Floats | None,
    x: Sequence[NDArray[np.float32]],
    wanted: RowsOfOutputs,
    other: RowsOfOutputs | None,
    behind: Activation,
) -> dict[str, NDArray[np.float32]]:
    """Fit the weight and bias of a layer. Weights that are zero stay zero.

    Args:
        layer: The layer.
        weight: Its weight, as stored.
        bias: Its bias, as stored; None if it has none.
        x: Its inputs [N, G, K] on each sample.
        wanted: Its outputs, with `other` added.
        other: What is added to its outputs; None for nothing.
        behind: The activation behind it.

    Returns:
        New values by constant name; those that no fit improves are absent.
    """
    counts = np.asarray([len(rows) for rows in x])
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    rows = np.concatenate(x)
    held_out = np.repeat(np.arange(len(x)) % _LEFT_OUT == _LEFT_OUT - 1, counts)
    table = layer.table(weight)
    old = np.zeros(table.shape[0] * table.shape[1]) if bias is None else bias.reshape(-1).astype(np.float64)
    problem = _Problem(rows, table, old, bias is not None, wanted, other, held_out, output_pieces(layer))
    found: dict[str, NDArray[np.float32]] = {}
    fitted = problem.solve() if held_out.any() else None
    if fitted is not None:
        table = fitted
        found[layer.weight] = layer.stored(table)
    if bias is not None:
        learned = np.empty_like(old)
        for piece in problem.pieces:
            target = wanted(piece)
            got = problem.rest(piece, target) + _given(rows, problem.part(table, piece))
            # Start from the mean error before the activation: correction steps are short where the activation is flat.
            start = (target - got).mean(axis=0, dtype=np.float64) if fitted is not None else old[piece]
            learned[piece] = corrected_bias(target, got, start, behind, starts)
        found[layer.bias] = learned.astype(np.float32).reshape(bias.shape)
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _Problem:
    """The weight of a layer and what it is fitted to.

    Attributes:
        rows: Inputs [N, G, K].
        table: The weight [G, O, K].
        bias: [G * O].
        centred: Whether a bias takes the mean of the outputs.
        wanted, other: As in `fit`.
        held_out: Rows that a strength is chosen on [N].
        pieces: Pieces of the outputs.
    """

    rows: NDArray[np.float32]
    table: Floats
    bias: NDArray[np.float64]
    centred: bool
    wanted: RowsOfOutputs
    other: RowsOfOutputs | None
    held_out: NDArray[np.bool_]
    pieces: list[slice]

    def rest(self, piece: slice, like: NDArray[np.float32]) -> NDArray[np.float32]:
        """What is added to these outputs [N, P]."""
        return np.zeros_like(like) if self.other is None else self.other(piece)

    def part(self, table: Floats, piece: slice) -> Floats:
        """The rows of a weight that make these outputs."""
        return table if len(self.pieces) == 1 else table[:, piece]

    def solve(self) -> Floats | None:
        """The new weight, float32 [G, O, K]; None if nothing lowers the error on the held-out rows."""
        table, better = self.table, False
        for block in self._blocks():
            changed = self._block_solved(table, block)
            if changed is not None:
                table, better = changed, True
        return table if better else None

    def _blocks(self) -> list[slice]:
        """Blocks of inputs of equal size, each with moments that fit the budget."""
        columns = self.table.shape[2]
        size = -(-columns // -(-columns // whole_columns()))
        return [slice(start, min(start + size, columns)) for start in range(0, columns, size)]

    def _block_solved(self, table: Floats, block: slice) -> Floats | None:
        """The weight with the columns of a block fitted to what all columns leave."""
        x = self.rows[:, :, block]
        if self.centred:
            x = x - x.mean(axis=0, dtype=np.float64).astype(x.dtype)
        inputs = x.transpose(1, 0, 2)
        learn, check = (inputs[:, part] for part in (~self.held_out, self.held_out))
        second = tuple(part.transpose(0, 2, 1) @ part for part in (learn, check))
        gains = dict.fromkeys(_STRENGTHS, 0.0)
        known: list[tuple[Moments, Moments]] = []

        def moments() -> Iterator[tuple[Moments, Moments]]:
            for piece in self.pieces:
                residual = self._residual(table, piece).transpose(1, 0, 2)
                parts = zip((learn, check), second, (~self.held_out, self.held_out), strict=True)
                one, other = (Moments(xx, residual[:, at].transpose(0, 2, 1) @ x) for x, xx, at in parts)
                yield one, other

        for piece, (one, other) in zip(self.pieces, moments(), strict=True):
            gone, nothing = self.part(table, piece)[:, :, block] == 0, np.zeros_like(one.yx)
            for strength in _STRENGTHS:
                gains[strength] += change(other, nothing, _fitted(one, nothing, strength, gone))
            if len(self.pieces) == 1:
                known = [(one, other)]
        strength = min(gains, key=lambda strength: gains[strength])
        if gains[strength] >= 0:
            return None
        new = np.array(table, np.float32)
        for piece, (one, other) in zip(self.pieces, known or moments(), strict=True):
            own = self.part(table, piece)[:, :, block]
            step = _fitted(one + other, np.zeros_like(one.yx), strength, own == 0)
            self.part(new, piece)[:, :, block] = (own + step).astype(np.float32)
        return new

    def _residual(self, table: Floats, piece: slice) -> NDArray[np.float32]:
        """What the layer misses of these outputs [N, G, P]."""
        target = self.wanted(piece)
        bias = self.bias[piece].astype(np.float32)
        residual = target - self.rest(piece, target) - bias - _given(self.rows, self.part(table, piece))
        residual = residual.reshape(len(self.rows), len(table), -1)
        if self.centred:
            residual = residual - residual.mean(axis=0, dtype=np.float64).astype(residual.dtype)
        return residual


def _given(rows: NDArray[np.float32], table: Floats) -> NDArray[np.float32]:
    """Outputs [N, O] of a layer without its bias."""
    return product(rows.transpose(1, 0, 2), table)


def _fitted(moments: Moments, weight: Floats, strength: float, gone: NDArray[np.bool_]) -> Floats:
    """The change of a weight from `weight`; zero where a weight is gone."""
    found = ridge(moments, weight, strength)
    if not gone.any():
        return found
    # The ridge error is quadratic around its minimum, so the constrained minimum follows from the same moments.
    return optimal_brain_surgeon.refit(found.astype(np.float32), moments.damped(strength).astype(np.float32), gone)

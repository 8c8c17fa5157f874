"""Structured pruning by Optimal Brain Surgeon: which channels to remove first, and the error that remains.

The error is that of the outputs of the layers that read the channels, after the weights of their other inputs have
been changed to compensate the removed ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

DAMPING = 0.01
"""Added to the diagonal of second moments, as a share of its mean, so that inputs of little variance do not get huge
weights."""


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that reads the channels to prune, in G groups of O outputs and K inputs.

    Attributes:
        weight: float64 [G, O, K]; any float type where the moments are a diagonal.
        moments: second moments of its inputs, float64 [G, K, K]; about the mean where a bias can absorb the mean. Or
            only their diagonal [G, K]: then inputs count as independent, and removed ones are not compensated.
        owner: the channel that each input column belongs to, int64 [K]; -1 for columns that are not pruned.
    """

    weight: NDArray[np.floating]
    moments: Floats
    owner: NDArray[np.int64]

    @property
    def diagonal(self) -> bool:
        """Whether only the diagonal of the moments is known."""
        return self.moments.ndim == 2

    @property
    def energy(self) -> float:
        """Mean square of the outputs, summed over all of them: tr(W M W^T)."""
        if self.diagonal:
            return float((self.squares * self.moments).sum())
        return float(np.einsum("gok,gkl,gol->", self.weight, self.moments, self.weight, optimize=True))


    @property
    def squares(self) -> Floats:
        """Sum of the squared weights of each input [G, K]."""
        return np.asarray(np.einsum("gok,gok->gk", self.weight, self.weight, dtype=np.float64))


def damped(moments: Floats) -> Floats:
    """Return second moments [G, K, K] with DAMPING times the mean of the diagonal added to the diagonal."""
    columns = np.arange(moments.shape[1])
    found = moments.copy()
    mean = found[:, columns, columns].mean(axis=1)
    found[:, columns, columns] += np.maximum(DAMPING * mean, np.finfo(np.float32).tiny)[:, None]
    return found


def removal_order(readers: Iterable[Reader], count: int, most: int, at_once: int) -> tuple[NDArray[np.int64], Floats]:
    """Order channels by the damage that their removal does, least first.

    Args:
        readers: all layers that read the channels. Each is drawn once; those with a diagonal are not kept.
        count: number of channels.
        most: how many channels to remove.
        at_once: how many channels are removed before the costs of the others are computed anew.

    Returns:
        The channels in the order of their removal, int64 [most], and the squared error before the first and after
        each removal, float64 [most + 1]. The error is that of each reader's outputs as a share of their energy, summed
        over the readers, after its other weights have compensated the removed ones.

    Source: Optimal Brain Surgeon (Hassibi and Stork 1993), eq. 5, for all columns of a channel at once.

    Example:
        >>> layer = Reader(np.array([[[3.0, 1.0]]]), np.eye(2)[None], np.array([0, 1]))
        >>> order, errors = removal_order([layer], count=2, most=1, at_once=1)
        >>> order.tolist(), errors.round(1).tolist()
        ([1], [0.0, 0.1])
    """
    states: list[_Cost] = [_DiagonalState(reader, count) if reader.diagonal else _State(reader) for reader in readers]
    alive = np.ones(count, bool)
    order: list[int] = []
    errors = [0.0]
    while len(order) < most:
        costs = np.zeros(count)
        for state in states:
            costs += state.costs(alive)
        costs[~alive] = np.inf
        picked = np.argsort(costs, kind="stable")[: min(at_once, most - len(order))]
        alive[picked] = False
        total = errors[-1] + sum(state.remove(picked) for state in states)
        # Among channels removed at once, the error is divided in proportion to the cost of each alone.
        alone = np.maximum(costs[picked], 0.0)  # of few rows, rounding makes costs of nothing negative
        shares = np.cumsum(alone) / max(float(alone.sum()), np.finfo(float).tiny)
        errors += (errors[-1] + (total - errors[-1]) * shares).tolist()
        order += picked.tolist()
    return np.asarray(order, np.int64), np.maximum.accumulate(np.asarray(errors))


class _Cost(Protocol):
    """What removing channels costs one reader."""

    def costs(self, alive: NDArray[np.bool_]) -> Floats:
        """The error that removing each channel alone would add [count]; 0 for channels that the reader lacks."""

    def remove(self, channels: NDArray[np.int64]) -> float:
        """Remove channels, and return the error that this adds."""


class _DiagonalState:
    """A reader whose inputs count as independent: each channel has a fixed cost."""

    def __init__(self, reader: Reader, count: int) -> None:
        # Damped as second moments are, so that both kinds of reader are on one scale.
        moments = reader.moments + DAMPING * reader.moments.mean(axis=1, keepdims=True)
        squares = reader.squares
        energy = max(float((squares * reader.moments).sum()), np.finfo(float).tiny)
        held = reader.owner >= 0
        columns = (squares * moments).sum(axis=0)[held] / energy
        self._costs = np.bincount(reader.owner[held], columns, minlength=count)

    def costs(self, alive: NDArray[np.bool_]) -> Floats:
        return np.where(alive, self._costs, 0.0)

    def remove(self, channels: NDArray[np.int64]) -> float:
        return float(self._costs[channels].sum())


@dataclass(slots=True)
class _State:
    """The weights of a reader and the inverse of its moments after the removals so far."""

    reader: Reader
    weight: Floats = field(init=False)
    inverse: Floats = field(init=False)
    columns: dict[int, NDArray[np.int64]] = field(init=False)
    energy: float = field(init=False)

    def __post_init__(self) -> None:
        self.weight = self.reader.weight.astype(np.float64)
        self.inverse = np.linalg.inv(damped(self.reader.moments)).astype(np.float64)
        self.energy = max(self.reader.energy, np.finfo(float).tiny)
        owner = self.reader.owner
        order = np.argsort(owner, kind="stable")
        owners, starts = np.unique(owner[order], return_index=True)
        held = np.split(order, starts[1:])
        self.columns = {int(i): at for i, at in zip(owners, held, strict=True) if i >= 0}

    def costs(self, alive: NDArray[np.bool_]) -> Floats:
        """The error that removing each channel alone would add [count]; 0 for channels that the reader lacks."""
        found = np.zeros(len(alive))
        by_width: dict[int, list[int]] = {}
        for channel, at in self.columns.items():
            if alive[channel]:
                by_width.setdefault(len(at), []).append(channel)
        for channels in by_width.values():
            at = np.stack([self.columns[c] for c in channels])  # [n, p]
            blocks = self.inverse[:, at[:, :, None], at[:, None, :]]  # [G, n, p, p]
            w = self.weight[:, :, at].transpose(0, 2, 3, 1)  # [G, n, p, O]
            found[channels] = (w * np.linalg.solve(blocks, w)).sum(axis=(0, 2, 3))
        return found / self.energy

    def remove(self, channels: NDArray[np.int64]) -> float:
        """Remove channels, compensate them by the other weights, and return the error that this adds."""
        held = [self.columns[c] for c in channels.tolist() if c in self.columns]
        if not held:
            return 0.0
        at = np.concatenate(held)
        block = self.inverse[:, at[:, None], at[None, :]]
        spread = np.linalg.solve(block, self.inverse[:, at, :])  # [G, S, K]
        w = self.weight[:, :, at]
        error = float((w * np.linalg.solve(block, w.transpose(0, 2, 1)).transpose(0, 2, 1)).sum())
        self.weight -= w @ spread
        self.inverse -= self.inverse[:, :, at] @ spread
        self.weight[:, :, at] = 0.0
        # Removed columns are decoupled exactly: their rounding errors must not enter later inverses of blocks.
        self.inverse[:, at, :] = 0.0
        self.inverse[:, :, at] = 0.0
        self.inverse[:, at, at] = 1.0
        return error / self.energy


def compensated_weights(reader: Reader, gone: NDArray[np.bool_]) -> NDArray[np.floating]:
    """Return the weight of least output error that does not read the removed channels.

    Args:
        reader: the layer.
        gone: True for removed channels, bool [count].

    Returns:
        float64 [G, O, K], zero in the columns of removed channels: the solution of W' M[kept, kept] = W M[:, kept]
        with the damped moments M. Source: Optimal Brain Surgeon (Hassibi and Stork 1993), section 3. With a diagonal,
        the other weights stay, and the type of the weight too.

    Example:
        >>> layer = Reader(np.ones((1, 1, 2)), np.array([[[1.0, 0.9], [0.9, 1.0]]]), np.array([0, 1]))
        >>> compensated_weights(layer, np.array([False, True])).round(2)
        array([[[1.89, 0.  ]]])
    """
    lost = (reader.owner >= 0) & gone[np.maximum(reader.owner, 0)]
    if reader.diagonal:
        left_over = reader.weight.copy()
        left_over[:, :, lost] = 0.0
        return left_over
    kept = np.flatnonzero(~lost)
    moments = damped(reader.moments)
    found = np.zeros_like(reader.weight)
    # W' M[kept, kept] = W M[:, kept], for all groups at once.
    left = moments[:, kept[:, None], kept[None, :]]
    right = (reader.weight @ moments)[:, :, kept]
    found[:, :, kept] = np.linalg.solve(left, right.transpose(0, 2, 1)).transpose(0, 2, 1)
    return found

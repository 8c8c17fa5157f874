"""Which inputs of some layers to give up first, and what that costs their outputs after the rest has made up for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

DAMPING = 0.01
"""Added to second moments, as a share of their mean: what hardly varies must not get huge weights."""


@dataclass(frozen=True, eq=False)
class Reader:
    """A layer that reads channels, in G groups that read as many each.

    weight [G, O, K]: its weight. moments [G, K, K]: second moments of what it reads, about the mean where it has a bias
    to take that up. owner [K]: which channel each column belongs to; -1: none of those that may go.
    """

    weight: Floats
    moments: Floats
    owner: NDArray[np.int64]

    @property
    def energy(self) -> float:
        """Mean square of its outputs, summed over them."""
        return float(np.einsum("gok,gkl,gol->", self.weight, self.moments, self.weight, optimize=True))


def damped(moments: Floats) -> Floats:
    """Second moments [G, K, K] with DAMPING on the diagonal."""
    columns = np.arange(moments.shape[1])
    found = moments.copy()
    mean = found[:, columns, columns].mean(axis=1)
    found[:, columns, columns] += np.maximum(DAMPING * mean, np.finfo(np.float32).tiny)[:, None]
    return found


def removal_order(readers: Sequence[Reader], count: int, most: int, at_once: int) -> tuple[NDArray[np.int64], Floats]:
    """(channels in the order to remove them [most], squared error after each [most + 1]), least damage first.

    The error is of each reader's outputs, as a share of their energy, summed over the readers, with its other weights
    changed so that it is least: Optimal Brain Surgeon (Hassibi and Stork 1993, eq. 5) for all columns of a channel at
    once. `at_once` channels are removed between two looks at what the others are worth now.
    """
    states = [_State(reader) for reader in readers]
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
        # Within what is removed at once, the error is shared out by what each costs alone.
        shares = np.cumsum(costs[picked]) / max(float(costs[picked].sum()), np.finfo(float).tiny)
        errors += (errors[-1] + (total - errors[-1]) * shares).tolist()
        order += picked.tolist()
    return np.asarray(order, np.int64), np.maximum.accumulate(np.asarray(errors))


@dataclass(slots=True)
class _State:
    """A reader's weights and the inverse of its moments, as they are after what was removed."""

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
        """What removing each channel alone would add to the error."""
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
        """Take channels out, let the others make up for it; what that adds to the error."""
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
        # What is gone is cut off from the rest: later inverses of blocks must not see its rounding errors.
        self.inverse[:, at, :] = 0.0
        self.inverse[:, :, at] = 0.0
        self.inverse[:, at, at] = 1.0
        return error / self.energy


def compensated_weights(reader: Reader, gone: NDArray[np.bool_]) -> Floats:
    """The weight [G, O, K] of least output error that is zero for the channels that are gone [count]."""
    lost = (reader.owner >= 0) & gone[np.maximum(reader.owner, 0)]
    kept = np.flatnonzero(~lost)
    moments = damped(reader.moments)
    found = np.zeros_like(reader.weight)
    # Weights W' of the kept columns: W' M[kept, kept] = W M[:, kept].
    left = moments[:, kept[:, None], kept[None, :]]
    right = (reader.weight @ moments)[:, :, kept]
    found[:, :, kept] = np.linalg.solve(left, right.transpose(0, 2, 1)).transpose(0, 2, 1)
    return found

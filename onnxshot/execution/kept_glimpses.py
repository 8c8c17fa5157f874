"""Keep what a calibration pass saw of some tensors, and derive the statistics of their scaled channels from it.

Scaling the channels of a float model by factors above 0 (see `passes/equalize.py`) scales the extremes and the
subsample of a tensor channel by channel. A second pass over the samples would find the same, up to float rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from onnxshot import memory
from onnxshot.calibration.observers import Glimpse, Observers
from onnxshot.calibration.sampling import strides
from onnxshot.calibration.stats import TensorStats
from onnxshot.graph import Model
from onnxshot.planning.channel_ties import channels_of
from onnxshot.runtimes.spool import Spool

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


def scalable(model: Model) -> dict[str, int]:
    """Name -> rank of the tensors whose channels (axis 1) equalization may scale; nothing of unknown rank."""
    found = channels_of(model)
    tensors = model.tensors()
    ranks: dict[str, int] = {}
    for name, ids in found.of.items():
        shape = model.shape(tensors[name])
        if shape is not None and len(shape) > 1 and not found.fixed.issuperset(ids.tolist()):
            ranks[name] = len(shape)
    return ranks


class KeptGlimpses:
    """The glimpses of some tensors in every sample.

    Values beyond a sixteenth of `memory.held_bytes()` lie in a temporary file.

    Args:
        names: all tensors of the pass, in its order.
        ranks: name -> rank of those to keep, at least 2; names that the pass does not observe are ignored.

    Attributes:
        ranks: name -> rank of the tensors that are kept, in the order of the pass.
    """

    def __init__(self, names: Sequence[str], ranks: Mapping[str, int]) -> None:
        self.ranks = {name: ranks[name] for name in names if name in ranks}
        self._keeps = np.asarray([name in ranks for name in names], bool)
        self._counts: list[tuple[Ints, Ints, Ints]] = []  # elements, values and rows of each tensor
        self._values = Spool(memory.held_bytes() // 16)

    def add(self, seen: Glimpse) -> None:
        """Keep the glimpse of a sample. `seen` is of all tensors of the pass."""
        kept = seen.only(self._keeps)
        self._values.put(len(self._counts), np.concatenate([kept.picks, kept.bottoms, kept.tops]))
        self._counts.append((kept.sizes, kept.picked, kept.rows))

    def close(self) -> None:
        """Let go of all glimpses."""
        self._counts.clear()
        self._values.close()

    def __bool__(self) -> bool:
        """Whether there are glimpses."""
        return bool(self._counts)

    def glimpses(self) -> Iterator[Glimpse]:
        """The glimpse of each sample, of the kept tensors alone, in order."""
        for sample, (sizes, picked, rows) in enumerate(self._counts):
            picks, bottoms, tops = np.split(self._values.get(sample), np.cumsum([picked.sum(), rows.sum()]))
            yield Glimpse(sizes, picked, rows, picks, bottoms, tops)

    def scaled(self, factors: Mapping[str, Floats], before: Mapping[str, TensorStats]) -> dict[str, TensorStats]:
        """Statistics of tensors whose channels were scaled.

        A tensor is left out where what was kept does not tell: a row of a matrix holds values of all channels, so its
        extremes follow only where every value was sampled.

        Args:
            factors: name of the tensor -> factor of each of its channels (axis 1), float32 [C], above 0.
            before: statistics of the same pass.

        Returns:
            Name -> statistics; per channel of the last axis too where `before` has them, but not of rank above 2.
        """
        names = [name for name in self.ranks if name in factors]
        chosen = np.asarray([name in factors for name in self.ranks], bool)
        ranks, by_channel = [self.ranks[name] for name in names], [factors[name] for name in names]
        observers, fits = Observers(len(names)), np.ones(len(names), bool)
        scales: _Scales | None = None
        for seen in self.glimpses():
            part = seen.only(chosen)
            if scales is None or not scales.hold_for(part):
                scales = _Scales(part, ranks, by_channel)
                fits &= scales.fits
            observers.add(scales.applied(part))
        found = {name: stats for name, stats, fit in zip(names, observers.stats(), fits, strict=True) if fit}
        for name, stats in found.items():
            absmax = np.asarray(before[name].channel_absmax, np.float32)
            if absmax.shape == factors[name].shape and self.ranks[name] == 2:
                found[name] = replace(stats, channel_absmax=tuple((absmax * factors[name]).tolist()))
        return found


class _Scales:
    """The factor of every value of a glimpse, for glimpses of tensors of certain sizes.

    Args:
        seen: a glimpse with these sizes.
        ranks: rank of each tensor.
        factors: factor of each channel of each tensor.

    Attributes:
        fits: whether each tensor has the stated rank and number of channels, and shows what scaling makes of it; bool
            [n]. Others are not scaled.
    """

    def __init__(self, seen: Glimpse, ranks: Sequence[int], factors: Sequence[Floats]) -> None:
        self._sizes, self._rows = seen.sizes, seen.rows
        steps = strides(seen.sizes)
        self.fits = np.ones(len(ranks), bool)
        self._matrices: list[tuple[slice, slice]] = []  # picks and rows of each matrix
        by_row: list[Floats] = [np.zeros(0, np.float32)]
        by_pick: list[Floats] = [np.zeros(0, np.float32)]
        pick = row = 0
        counts = np.stack([seen.sizes, seen.picked, seen.rows], axis=1).tolist()
        for i, (size, picked, rows) in enumerate(counts):
            channels = len(factors[i])
            planes = rows if ranks[i] > 2 else size  # each holds values of one channel
            shown = ranks[i] > 2 or picked == size == rows * channels
            self.fits[i] = shown and channels > 0 and planes % channels == 0
            if size and self.fits[i]:
                of_plane = np.tile(factors[i], planes // channels)
                # Plane p holds the values p * n to (p + 1) * n - 1, and every steps[i]-th value was picked.
                ends = -(-np.arange(planes + 1) * (size // planes) // int(steps[i]))
                by_pick.append(np.repeat(of_plane, np.diff(ends)))
                by_row.append(of_plane if ranks[i] > 2 else np.ones(rows, np.float32))
                if ranks[i] == 2:
                    self._matrices.append((slice(pick, pick + picked), slice(row, row + rows)))
            else:
                by_pick.append(np.ones(picked, np.float32))
                by_row.append(np.ones(rows, np.float32))
            pick, row = pick + picked, row + rows
        self._by_pick, self._by_row = np.concatenate(by_pick), np.concatenate(by_row)

    def hold_for(self, seen: Glimpse) -> bool:
        """Whether the tensors have the sizes that these factors are for."""
        return np.array_equal(self._sizes, seen.sizes) and np.array_equal(self._rows, seen.rows)

    def applied(self, seen: Glimpse) -> Glimpse:
        """The glimpse after scaling."""
        picks, bottoms, tops = seen.picks * self._by_pick, seen.bottoms * self._by_row, seen.tops * self._by_row
        for at, rows in self._matrices:
            table = picks[at].reshape(rows.stop - rows.start, -1)
            bottoms[rows], tops[rows] = table.min(axis=1), table.max(axis=1)
        return Glimpse(seen.sizes, seen.picked, seen.rows, picks, bottoms, tops)

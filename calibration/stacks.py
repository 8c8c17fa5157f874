"""Arrays that hold many samples along their first axis, in one file or in memory, cut one sample at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.calibration.arrays import map_npy, map_npz
from onnxshot.calibration.checks import InputSpec, Sample, fits
from onnxshot.calibration.sources import Source, only_input, renamed
from onnxshot.writing.owned import Part
from onnxshot.writing.places import scratch_part


@dataclass(frozen=True, slots=True)
class _Cut:
    """How the samples of one array lie: `step` rows each; or, step 0, one row each without its axis; count of them."""

    count: int
    step: int = 1
    batch_axis: bool = False

    def take(self, x: NDArray[Any], index: int) -> NDArray[Any]:
        if self.step == 0:
            return np.asarray(x[index])  # of a vector, x[i] is no array
        rows = x[index * self.step : (index + 1) * self.step]
        return rows[:, None] if self.batch_axis else rows


class Stack(Source):
    """Arrays with a leading sample axis: sample i is x[i:i+1], or x[i] of an array with one axis more than the input.

    The number of samples is that of most arrays (the larger on a tie). An array of another length, a scalar and an
    array that as a whole is what its input wants are constants, given with every sample.
    """

    def __init__(
        self,
        label: str,
        arrays: dict[str, NDArray[Any]],
        specs: Sequence[InputSpec],
        folder: Part | None = None,
    ) -> None:
        self._label, self._folder = label, folder
        self._arrays = renamed(arrays, specs)
        by_name = {spec.name: spec for spec in specs}
        cuts = {name: _cut(x, by_name.get(name)) for name, x in self._arrays.items()}
        counts = [cut.count for cut in cuts.values() if cut is not None and cut.count != 1]
        self._count = max(counts, key=lambda c: (counts.count(c), c), default=1)
        self._cuts = {name: cut for name, cut in cuts.items() if cut is not None and cut.count == self._count}

    def __len__(self) -> int:
        return self._count

    def load(self, index: int) -> Sample:
        """Cut from the mapped arrays."""
        cuts = self._cuts
        # np.array: the sample must outlive the mapping it was cut from
        feed = {k: np.array(cuts[k].take(x, index) if k in cuts else x) for k, x in self._arrays.items()}
        return Sample(f"{Path(self._label).name}[{index}]", feed)

    def where(self, index: int) -> str:
        """The file and number."""
        return f"{self._label}[{index}]"

    def close(self) -> None:
        """Let go of the arrays; remove the temporary copy of compressed ones."""
        self._arrays = {}
        if self._folder is not None:
            self._folder.close()


def npy_stack(path: Path, specs: Sequence[InputSpec]) -> Stack:
    """One .npy file with a leading sample axis, mapped."""
    return Stack(str(path), {only_input(specs, str(path)): map_npy(path)}, specs)


def npz_stack(path: Path, specs: Sequence[InputSpec]) -> Stack:
    """One .npz file whose arrays have a leading sample axis, mapped (compressed ones from a temporary copy)."""
    folder = scratch_part()
    return Stack(str(path), map_npz(path, folder.path), specs, folder)


def _cut(x: NDArray[Any], spec: InputSpec | None) -> _Cut | None:
    """How to cut x into samples for its input; None: it is one value for all samples."""
    if spec is None or x.ndim == 0:
        return None
    rank = x.ndim if spec.shape is None else len(spec.shape)
    if x.ndim == rank + 1:
        return _Cut(len(x), step=0)
    if x.ndim == rank:
        first = None if spec.shape is None else spec.shape[0]
        step = first if isinstance(first, int) and first > 0 else 1
        return _Cut(len(x) // step, step) if len(x) % step == 0 else None
    if x.ndim == rank - 1 and spec.shape is not None:
        whole_sample = fits(x.shape, spec.shape[1:])
        if not whole_sample and fits((1, 1, *x.shape[1:]), spec.shape):
            return _Cut(len(x), batch_axis=True)
    return None

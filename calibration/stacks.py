"""Arrays that hold many samples along their first axis, in a file or in memory; samples are sliced from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.calibration.arrays import FileArray, Headers, open_npy, open_npz
from onnxshot.calibration.checks import InputSpec, Sample, fits, only_input
from onnxshot.calibration.item_batches import parts_of
from onnxshot.calibration.sources import Checked, Source, renamed
from onnxshot.errors import CalibrationError
from onnxshot.files.atomic_write import scratch_kept
from onnxshot.files.temporary_folders import Part

_NAMELESS = ("", "arr_0")  # what np.savez calls an array without a name


@dataclass(frozen=True, slots=True)
class _Cut:
    """How to slice samples from one array.

    Attributes:
        count: number of samples.
        step: rows per sample; 0 where a sample is one row without the leading axis.
        batch_axis: whether to insert a second axis of size 1.
    """

    count: int
    step: int = 1
    batch_axis: bool = False

    def take(self, x: NDArray[Any] | FileArray, index: int) -> NDArray[Any]:
        if self.step == 0:
            return np.asarray(x[index])  # indexing a vector gives a scalar
        rows = x[index * self.step : (index + 1) * self.step]
        return rows[:, None] if self.batch_axis else rows


class Stack(Source):
    """Samples of arrays with a leading sample axis.

    Sample i is x[i:i+1], or x[i] of an array with one axis more than its input. The number of samples is the one that
    most arrays have, the larger on a tie. An array of another length, a scalar, and an array that fits its input as a
    whole are constants, which are part of every sample.
    """

    def __init__(
        self,
        label: str,
        arrays: Mapping[str, NDArray[Any] | FileArray],
        specs: Sequence[InputSpec],
        folder: Part | None = None,
    ) -> None:
        self._label, self._folder = label, folder
        self._arrays = renamed(arrays, specs)
        self._count, self._cuts = _cuts(self._arrays, specs, label)
        notes = []
        if (rows := self._rows_of_each(specs)) > 1:
            notes.append(f"each of the {self._count} samples of {label} is a batch of {rows}")
        if (given := next(iter(arrays), "")) not in self._arrays and given not in _NAMELESS:
            notes.append(f"{given!r} of {label} is taken as input {specs[0].name!r}")
        self.notes = tuple(notes)

    def _rows_of_each(self, specs: Sequence[InputSpec]) -> int:
        """The length of the batch that each x[i] is; 1 where it is one sample."""
        if not self._count or not any(cut.step == 0 for cut in self._cuts.values()):
            return 1
        first = {k: self._cuts[k].take(x, 0) if k in self._cuts else np.asarray(x) for k, x in self._arrays.items()}
        if not {spec.name for spec in specs} <= set(first):
            return 1
        parts = parts_of(first, specs)
        return 1 if parts is None else parts.count

    def __len__(self) -> int:
        return self._count

    def load(self, index: int) -> Sample:
        """Slice a sample from the arrays."""
        cuts = self._cuts
        try:
            # np.array copies: the sample must stay valid when the arrays are closed
            feed = {k: np.array(cuts[k].take(x, index) if k in cuts else x) for k, x in self._arrays.items()}
        except (OSError, ValueError) as e:
            raise CalibrationError(f"sample {self.where(index)} cannot be read: {e}", "write the file again") from e
        return Sample(f"{Path(self._label).name}[{index}]", feed)

    def where(self, index: int) -> str:
        """The file and number."""
        return f"{self._label}[{index}]"

    def close(self) -> None:
        """Close the files of the arrays, and remove the temporary copies of compressed ones."""
        for x in self._arrays.values():
            if isinstance(x, FileArray):
                x.close()
        self._arrays = {}
        if self._folder is not None:
            self._folder.close()


def npy_stack(path: Path, specs: Sequence[InputSpec], check: Checked) -> Stack:
    """Samples of one .npy file with a leading sample axis; `check` gets its header before its values are read."""
    name = only_input(specs, str(path))
    with scratch_kept() as folder:
        held = open_npy(path, folder.path, lambda stated: _check(stated, specs, str(path), check), name)
        return Stack(str(path), {name: held}, specs, folder)


def npz_stack(path: Path, specs: Sequence[InputSpec], check: Checked) -> Stack:
    """Samples of one .npz file whose arrays have a leading sample axis.

    Compressed arrays are unpacked into a temporary folder; `check` gets the headers before that.
    """
    with scratch_kept() as folder:
        held = open_npz(path, folder.path, lambda stated: _check(stated, specs, str(path), check))
        return Stack(str(path), held, specs, folder)


def _check(stated: Headers, specs: Sequence[InputSpec], label: str, check: Checked) -> None:
    """Check the first sample against the inputs, from headers alone."""
    arrays = renamed(stated, specs)
    _, cuts = _cuts(arrays, specs, label)
    check({k: cuts[k].take(x, 0) if k in cuts and len(x) else x for k, x in arrays.items()}, f"{label}[0]")


def _refuse_unequal(cuts: Mapping[str, _Cut | None], specs: Mapping[str, InputSpec], label: str) -> None:
    """Raise CalibrationError where inputs that share the name of their batch axis hold different numbers of samples."""
    by_axis: dict[str, tuple[str, int]] = {}
    for name, cut in cuts.items():
        shape = specs[name].shape if cut is not None else None
        axis = shape[0] if shape else None
        if cut is None or cut.count == 1 or not isinstance(axis, str):
            continue
        first, count = by_axis.setdefault(axis, (name, cut.count))
        if count != cut.count:
            what = f"{label}: {first!r} holds {count} samples, and {name!r} holds {cut.count}"
            raise CalibrationError(what, "give as many rows of each input")


def _cuts(
    arrays: Mapping[str, NDArray[Any] | FileArray], specs: Sequence[InputSpec], label: str
) -> tuple[int, dict[str, _Cut]]:
    """The number of samples, and how to slice the arrays that hold them."""
    by_name = {spec.name: spec for spec in specs}
    cuts = {name: _cut(x, by_name.get(name)) for name, x in arrays.items()}
    counts = [cut.count for cut in cuts.values() if cut is not None and cut.count != 1]
    count = max(counts, key=lambda c: (counts.count(c), c), default=1)
    _refuse_unequal(cuts, by_name, label)
    return count, {name: cut for name, cut in cuts.items() if cut is not None and cut.count == count}


def _cut(x: NDArray[Any] | FileArray, spec: InputSpec | None) -> _Cut | None:
    """How to slice samples for an input from x; None where x is a constant of all samples."""
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

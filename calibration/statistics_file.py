"""Calibration statistics as a file: identify what they belong to by hashes, and merge those of several machines."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxshot.calibration.arrays import Headers, read_npz
from onnxshot.calibration.stats import NO_STATS, TensorStats, from_arrays, merge, to_arrays
from onnxshot.errors import CalibrationError, UsageError
from onnxshot.files.atomic_write import write_file
from onnxshot.files.regular_files import check_regular, holds_nothing, is_special
from onnxshot.files.urls import refuse_remote

_FORMAT = 4  # raised when what the arrays mean changes
_HEAD = "meta"  # the array that describes the others
_MOST_BYTES = 2 << 30  # most bytes of a file once it is unpacked
_MOST_RATIO, _ANY_RATIO = 100, 64 << 20  # most compression, for files of more than so many unpacked bytes
_SHOWN = 12  # digits of a hash in messages
_AGAIN = "make it again: [[onnxshot.calibrate|onnxshot calibrate]]"


@dataclass(frozen=True, slots=True)
class Statistics:
    """The statistics of a calibration run, and hashes of the model and the data that they belong to.

    Attributes:
        tensors: statistics by tensor name.
        model: SHA-256 (hex) of the normalized float model, including its weights.
        preset: SHA-256 (hex) of all that decides how pictures become inputs; of no bytes where there is no preset.
        samples: SHA-256 (hex) of every sample that was run, sorted, so that equal data is equal on every machine.
        considered: number of samples that could have been run.
        notes: what is unusual about the samples, such as outliers.
    """

    tensors: Mapping[str, TensorStats]
    model: str
    preset: str
    samples: tuple[str, ...]
    considered: int
    notes: tuple[str, ...] = ()

    @property
    def data(self) -> str:
        """SHA-256 (hex) over all samples, whatever their order."""
        return data_hash(self.samples)

    def save(self, path: str | Path, *, lasting: bool = True) -> Path:
        """Write the statistics to an .npz file, atomically.

        Args:
            path: the file.
            lasting: whether to flush it to the disk, so that it survives a power failure.

        Returns:
            The path.

        Raises:
            UsageError: the path has another suffix, or the file cannot be written.
        """
        path = Path(path)
        refuse_suffix(path)
        head = {
            "format": _FORMAT, "model": self.model, "preset": self.preset, "samples": self.samples,
            "considered": self.considered, "notes": self.notes,
        }  # fmt: skip
        meta = np.frombuffer(json.dumps(head).encode(), np.uint8)
        try:
            arrays = to_arrays(self.tensors)
            arrays[_HEAD] = meta
            write_file(path, lambda part: np.savez_compressed(part, allow_pickle=False, **arrays), lasting=lasting)
        except OSError as e:
            what = f"cannot write statistics to {path}: {e.strerror}"
            raise UsageError(what, "choose another file with [[output]]") from e
        return path


def refuse_suffix(path: Path) -> None:
    """Raise UsageError for a path of statistics that does not end in .npz."""
    if path.suffix != ".npz":
        raise UsageError(f"{path}: statistics are written as .npz", "name a .npz file with [[output]]")


def no_statistics(path: Path) -> str:
    """The reason not to replace an existing file by statistics; empty where it holds statistics, or nothing."""
    try:
        if holds_nothing(path):
            return ""
        with zipfile.ZipFile(path) as archive:
            return "" if f"{_HEAD}.npy" in archive.namelist() else "it holds no statistics of onnxshot"
    except (zipfile.BadZipFile, OSError, ValueError):
        return "it holds no statistics of onnxshot"


def load_statistics(path: str | Path) -> Statistics:
    """Load statistics that `Statistics.save` wrote. Raises CalibrationError for any other file."""
    path = Path(path)
    if is_special(path):
        check_regular(path, "the file of statistics", CalibrationError)
    if not path.is_file():
        refuse_remote(path, CalibrationError, "the file of statistics")
        hint = "[[calibrate MODEL calib=DATA output=FILE]] writes them"
        raise CalibrationError(f"statistics {path} are not there", hint)
    arrays = read_npz(path, lambda stated: _refuse_bomb(path, stated))
    try:
        head = json.loads(arrays.pop(_HEAD).tobytes())
        if head["format"] != _FORMAT:
            raise CalibrationError(
                f"{path} holds statistics of format {head['format']}; this onnxshot reads {_FORMAT}",
                _AGAIN,
            )
        return Statistics(
            tensors=from_arrays(arrays),
            model=str(head["model"]),
            preset=str(head["preset"]),
            samples=tuple(map(str, head["samples"])),
            considered=int(head["considered"]),
            notes=tuple(map(str, head["notes"])),
        )
    except (KeyError, ValueError, TypeError, IndexError) as e:
        raise CalibrationError(f"{path} holds no statistics of onnxshot: {e}", _AGAIN) from e


def is_statistics(path: Path) -> bool:
    """Whether a file was written by `Statistics.save`, in any version of the format, and has its header intact."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{_HEAD}.npy") as file:
            head = json.loads(np.lib.format.read_array(file, allow_pickle=False).tobytes())
        return isinstance(head, dict) and {"format", "model", "samples"} <= head.keys()
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, RuntimeError, EOFError, MemoryError):
        return False


def _refuse_bomb(path: Path, stated: Headers) -> None:
    """Raise CalibrationError, before unpacking, for a file that would unpack to more than statistics take."""
    size = sum(x.nbytes for x in stated.values())
    if size > _MOST_BYTES or (size > _ANY_RATIO and size > _MOST_RATIO * path.stat().st_size):
        what = f"{path} holds no statistics of onnxshot: it unpacks to {size >> 20} MiB"
        raise CalibrationError(what, _AGAIN)


def join(parts: Sequence[Statistics], names: Sequence[str]) -> Statistics:
    """Merge the statistics of several runs. The result equals that of one run over all samples, to the bit.

    Args:
        parts: the statistics, at least one.
        names: what messages call the parts.

    Returns:
        The merged statistics.

    Raises:
        CalibrationError: the parts belong to different models or presets, lack a tensor, or share a sample, which would
            count twice.
    """
    first = parts[0]
    seen: dict[str, str] = {}
    tensors = {name: NO_STATS for part in parts for name in part.tensors}
    for part, name in zip(parts, names, strict=True):
        for what in ("model", "preset"):
            refuse_other(what, getattr(first, what), names[0], getattr(part, what), name)
        twice = next((sample for sample in part.samples if sample in seen), None)
        if twice is not None:
            raise CalibrationError(
                f"sample {twice[:_SHOWN]} is in {seen[twice]} and in {name}", "calibrate on parts that do not overlap"
            )
        seen |= dict.fromkeys(part.samples, name)
        missing = next((tensor for tensor in tensors if tensor not in part.tensors), None)
        if missing is not None:
            what = f"{name} has no statistics of tensor {missing!r}"
            raise CalibrationError(what, "calibrate all parts the same way")
        tensors = {tensor: merge(known, part.tensors[tensor]) for tensor, known in tensors.items()}
    notes = tuple(dict.fromkeys(note for part in parts for note in part.notes))
    considered = sum(part.considered for part in parts)
    return Statistics(tensors, first.model, first.preset, tuple(sorted(seen)), considered, notes)


def refuse_other(what: str, one: str, where: str, other: str, elsewhere: str) -> None:
    """Raise CalibrationError where two hashes differ; the message shows both."""
    if one != other:
        raise CalibrationError(
            f"{where} and {elsewhere} are of another {what}: {one[:_SHOWN] or 'none'} and {other[:_SHOWN] or 'none'}",
            "give the model, the data and the preset that it was made with",
        )


def data_hash(samples: Sequence[str]) -> str:
    """SHA-256 (hex) over hashes of samples, whatever their order."""
    return hashlib.sha256("".join(sorted(samples)).encode()).hexdigest()

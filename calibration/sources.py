"""Sources of samples, one class per kind of calibration data. Each reads one sample at a time and keeps none."""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from onnxshot.calibration.arrays import Headers, read_npy, read_npz
from onnxshot.calibration.checks import InputSpec, Sample, is_float, only_input
from onnxshot.calibration.language_inputs import LanguageInputs, language_inputs
from onnxshot.errors import CalibrationError
from onnxshot.files.regular_files import read_regular

_BLOCK = 1 << 20
_MOST_RANDOM = 1 << 28  # elements of one random input
_RANDOM_TOKENS = 16
MOST_BYTES = 512 << 20
"""Most bytes that one sample may have."""

Held = TypeVar("Held")
Checked = Callable[[Headers, str], None]
"""Called with the shapes and dtypes that headers state, and the sample's name; raises CalibrationError where they
cannot be a sample of the model."""


class Digest(Protocol):
    """What hashlib.sha256() returns."""

    def update(self, data: bytes, /) -> None:
        """Add bytes."""


def add_feed(sha: Digest, feed: Mapping[str, NDArray[Any]]) -> None:
    """Update a hash with the arrays of a sample."""
    for name, value in sorted(feed.items()):
        array = np.ascontiguousarray(value)
        sha.update(f"{name}\0{array.dtype}{array.shape}\0".encode())
        sha.update(array.tobytes() if not array.dtype.hasobject else repr(array.tolist()).encode())


class Source(ABC):
    """Samples by number, before preprocessing and before they are checked against the model.

    Attributes:
        random: whether the samples are random numbers.
        notes: remarks for the report.
        made_by: all that decides how files become inputs, as stable bytes for a hash, where the source decides it; None
            where a preset of pictures may.
    """

    random = False
    notes: tuple[str, ...] = ()
    made_by: bytes | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def load(self, index: int) -> Sample:
        """Read a sample."""

    @abstractmethod
    def where(self, index: int) -> str:
        """The name of a sample in messages."""

    def digest(self, index: int, sha: Digest) -> None:
        """Update a hash with the content of a sample."""
        add_feed(sha, self.load(index).feed)

    def close(self) -> None:  # noqa: B027  # most sources have nothing to remove
        """Remove temporary files, if any."""


class Files(Source):
    """One sample per file, or per group of files (the .pb files of a test_data_set folder)."""

    def __init__(
        self, root: Path, groups: Sequence[Sequence[Path]], read: Callable[[Sequence[Path]], dict[str, NDArray[Any]]]
    ) -> None:
        self._root, self._groups, self._read = root, groups, read

    def __len__(self) -> int:
        return len(self._groups)

    def load(self, index: int) -> Sample:
        """Read the file, or the group of files."""
        group = self._groups[index]
        return Sample(self._name(self._path(index)), self._read(group))

    def where(self, index: int) -> str:
        """The path, below the folder that the user named."""
        return str(self._path(index))

    def digest(self, index: int, sha: Digest) -> None:
        """Hash the files' bytes, in blocks."""
        for path in self._groups[index]:
            sha.update(f"{path.stat().st_size}\0".encode())
            with path.open("rb") as file:
                while block := file.read(_BLOCK):
                    sha.update(block)

    def _path(self, index: int) -> Path:
        group = self._groups[index]
        return group[0] if len(group) == 1 else group[0].parent

    def _name(self, path: Path) -> str:
        return path.relative_to(self._root).as_posix() if path != self._root else path.name


def npy_files(root: Path, paths: Sequence[Path], specs: Sequence[InputSpec], check: Checked) -> Files:
    """One sample per .npy file, for a model of one input; `check` gets each header before its values are read."""
    name = only_input(specs, str(root))

    def read(group: Sequence[Path]) -> dict[str, NDArray[Any]]:
        return {name: read_npy(group[0], lambda stated: check(stated, str(group[0])), name)}

    return Files(root, [(p,) for p in paths], read)


def npz_files(root: Path, paths: Sequence[Path], specs: Sequence[InputSpec], check: Checked) -> Files:
    """One sample per .npz file, whose keys are the names of the inputs; a model of one input takes any single key.

    `check` gets the headers of a file before its values are unpacked.
    """

    def read(group: Sequence[Path]) -> dict[str, NDArray[Any]]:
        return renamed(read_npz(group[0], lambda stated: check(renamed(stated, specs), str(group[0]))), specs)

    return Files(root, [(p,) for p in paths], read)


def pb_folders(root: Path, folders: Sequence[Path], specs: Sequence[InputSpec]) -> Files:
    """One sample per folder of input_0.pb, input_1.pb, ..., as in the ONNX model zoo and in onnx's backend tests."""
    groups = [sorted(f.glob("input_*.pb"), key=_number) for f in folders]
    return Files(root, groups, lambda group: _read_pb(group, specs))


def _number(path: Path) -> tuple[int, str]:
    digits = path.stem.rpartition("_")[2]
    return (int(digits) if digits.isdecimal() else 1 << 62), path.name


def numbered(paths: Iterable[Path]) -> list[Path]:
    """Sort paths by the number at the end of their names, so that 10 comes after 9."""
    return sorted(paths, key=_number)


def _read_pb(paths: Sequence[Path], specs: Sequence[InputSpec]) -> dict[str, NDArray[Any]]:
    from onnx import TensorProto, numpy_helper  # the one place where calibration needs onnx: .pb is its format

    feed: dict[str, NDArray[Any]] = {}
    names = {spec.name for spec in specs}
    for path in paths:
        try:
            tensor = TensorProto()
            tensor.ParseFromString(read_regular(path, "the tensor", CalibrationError, MOST_BYTES))
            if tensor.data_location == TensorProto.EXTERNAL:
                raise ValueError("its values are in another file")
            value = numpy_helper.to_array(tensor)
        except CalibrationError:
            raise
        except Exception as error:  # protobuf and onnx raise anything on broken bytes
            reason = " ".join(str(error).split()) or type(error).__name__
            raise CalibrationError(f"{path} is not a readable TensorProto: {reason}", "write it again") from error
        index = _number(path)[0]
        by_position = specs[index].name if index < len(specs) else path.stem
        feed[tensor.name if tensor.name in names else by_position] = value
    return feed


def renamed(arrays: Mapping[str, Held], specs: Sequence[InputSpec]) -> dict[str, Held]:
    """The arrays by input name; a single array for a single input may have any name."""
    if len(specs) == 1 and len(arrays) == 1:
        return {specs[0].name: next(iter(arrays.values()))}
    return dict(arrays)


def _decoder(specs: Sequence[InputSpec]) -> LanguageInputs | None:
    """What each input takes, of a language model with pasts; None for other models."""
    with contextlib.suppress(CalibrationError):
        if (found := language_inputs(specs, ())).pasts:
            return found
    return None


class Noise(Source):
    """Random samples: normal floats, integers 0 or 1, and pixels 0..255 for uint8. They are for trials only.

    A language model with pasts gets tokens 0 and 1, and masks, positions and empty pasts that fit them.
    """

    random = True
    notes = ("random data: ranges and differences say nothing about real inputs",)

    def __init__(self, specs: Sequence[InputSpec], count: int, seed: int) -> None:
        self._specs, self._count, self._seed = specs, count, seed
        self._sizes: dict[str, int] = {}
        for spec in specs:
            if spec.shape is None:
                what = f"input {spec.name!r} has no known rank, so random data cannot be made for it"
                raise CalibrationError(what, "give real samples with [[calib=DATA]]")
            if spec.shape and isinstance(spec.shape[0], str):
                self._sizes[spec.shape[0]] = 1  # the batch axis, also where its name appears on another axis
        self._language = _decoder(specs)

    def __len__(self) -> int:
        return self._count

    def load(self, index: int) -> Sample:
        """Draw a sample; the same number gives the same sample."""
        rng = np.random.default_rng([self._seed, index])
        if self._language is not None:
            return Sample(f"random #{index}", self._tokens(rng, self._language))
        return Sample(f"random #{index}", {spec.name: self._draw(rng, spec) for spec in self._specs})

    def where(self, index: int) -> str:
        """The number."""
        return f"random #{index}"

    def _tokens(self, rng: np.random.Generator, inputs: LanguageInputs) -> dict[str, NDArray[Any]]:
        crosses = {spec.name: self._draw(rng, spec) for spec in (*inputs.crosses, *inputs.sounds)}
        heard = next((x.shape[1] for x in crosses.values() if x.ndim == 3), _RANDOM_TOKENS)
        new, old = (rng.integers(0, 2, count) for count in (inputs.window or _RANDOM_TOKENS, heard))
        return inputs.feed(new.tolist(), source=old.tolist(), crosses=crosses, source_mask=[1] * heard)

    def _draw(self, rng: np.random.Generator, spec: InputSpec) -> NDArray[Any]:
        shape = tuple(self._size(dim, axis, spec) for axis, dim in enumerate(spec.shape or ()))
        if math.prod(shape) > _MOST_RANDOM:
            what = f"input {spec} is too large for random data"
            raise CalibrationError(what, "give real samples with [[calib=DATA]]")
        if is_float(spec.dtype):
            return np.asarray(rng.standard_normal(shape)).astype(spec.dtype)
        top = 256 if spec.dtype == np.uint8 else 2
        return np.asarray(rng.integers(0, top, shape)).astype(spec.dtype)

    def _size(self, dim: int | str | None, axis: int, spec: InputSpec) -> int:
        if isinstance(dim, int):
            return dim
        rank = len(spec.shape or ())
        if axis == 0:
            return 1
        default = {2: 16, 3: 32}.get(rank, 64)
        if rank == 4 and axis == 1 and spec.shape and spec.shape[3] not in (1, 3):
            default = 3
        # a named dimension has one size in all inputs
        return default if dim is None else self._sizes.setdefault(dim, default)

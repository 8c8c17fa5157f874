"""Samples of a bundle, one .npz file each.

The keys are `input/NAME`, `float/NAME` for outputs of the float model, and `output/FILE/NAME` for those of each model.
Arrays in bfloat16 are stored as their bits in uint16, under keys such as `bfloat16/input/NAME`.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from onnxshot.errors import ModelError
from onnxshot.graph.load import first_line

MOST_BYTES = 256 << 20
"""Most bytes of the arrays of one sample. Larger samples are neither written nor read."""
_PLAIN = "biufcU"  # kinds of arrays that .npz holds without pickling

_BITS = "bfloat16/"

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Stored:
    """One sample: inputs, outputs of the float model, and outputs of each model of the bundle by its file."""

    inputs: Arrays
    expected: Arrays
    outputs: Mapping[str, Arrays] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Size of all arrays in bytes."""
        return sum(values.nbytes for values in self._arrays().values())

    def _arrays(self) -> dict[str, NDArray[Any]]:
        found = {f"input/{name}": values for name, values in self.inputs.items()}
        found |= {f"float/{name}": values for name, values in self.expected.items()}
        for file, outputs in self.outputs.items():
            found |= {f"output/{file}/{name}": values for name, values in outputs.items()}
        arrays = dict(_plain(key, np.asarray(values)) for key, values in found.items())
        return {key: values for key, values in arrays.items() if values.dtype.kind in _PLAIN}

    def write(self, path: Path) -> None:
        """Write the .npz file, with the same bytes for the same arrays. Arrays that need pickling are left out."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for key, values in self._arrays().items():
                with archive.open(zipfile.ZipInfo(f"{key}.npy"), "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, values, allow_pickle=False)


def _plain(key: str, values: NDArray[Any]) -> tuple[str, NDArray[Any]]:
    """Encode an array for .npz: bfloat16 becomes its bits."""
    return (_BITS + key, values.view(np.uint16)) if values.dtype.name == "bfloat16" else (key, values)


def _of_plain(key: str, values: NDArray[Any]) -> tuple[str, NDArray[Any]]:
    """Undo `_plain`."""
    if key.startswith(_BITS) and values.dtype == np.uint16:
        return key.removeprefix(_BITS), values.view(ml_dtypes.bfloat16)
    return key, values


def read_sample(path: Path, files: tuple[str, ...]) -> Stored:
    """Read a sample with the outputs of the models in these files. Raises ModelError if it is invalid or too large."""
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(info.file_size for info in archive.infolist())
        if size > MOST_BYTES + (1 << 20):
            raise ModelError(f"{path} unpacks to {size >> 20} MB, over {MOST_BYTES >> 20}")
        with np.load(path, allow_pickle=False) as stored:
            arrays = dict(_of_plain(key, stored[key]) for key in stored.files)
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, KeyError, RuntimeError) as e:
        raise ModelError(f"{path} is no sample: {first_line(e)}") from e
    return Stored(
        _below("input/", arrays), _below("float/", arrays), {name: _below(f"output/{name}/", arrays) for name in files}
    )


def _below(prefix: str, arrays: Arrays) -> Arrays:
    return {key.removeprefix(prefix): values for key, values in arrays.items() if key.startswith(prefix)}

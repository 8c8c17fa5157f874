"""Give ONNX Runtime a lean model: it maps large weights from a file, so that they are not held in memory twice."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from onnx import TensorProto

from onnxshot import memory
from onnxshot.files.atomic_write import room_for, scratch
from onnxshot.graph import weights
from onnxshot.graph.data_file import DataFile
from onnxshot.graph.ir import Constant
from onnxshot.graph.lean_model import LeanModel
from onnxshot.graph.own_file import check_all

_INLINE_SHARE = 4  # of a part's bytes
_DATA = "weights"


@contextlib.contextmanager
def serialized(model: LeanModel) -> Iterator[tuple[bytes, Path | None]]:
    """Yield the serialized model, and the folder of its external data; None if all its weights are in it.

    Weights that lie unchanged in files of one folder are mapped from there. If the others are small, they are in the
    serialized model. Else all are written to a temporary file, one at a time. A session that was created within the
    block keeps its mapping, so the file may be removed afterwards.

    Args:
        model: The model. ONNX Runtime reads external data of a serialized model from version 1.22 on.

    Raises:
        ModelError: A file that weights are mapped from was changed before the block ended.
    """
    most = memory.part_bytes() // _INLINE_SHARE
    stored = {name: folder for name, c in model.weights.items() if (folder := _folder_of(c)) is not None}
    folders = set(stored.values())
    left = sum(weights.size_bytes(c) for name, c in model.weights.items() if name not in stored)
    if model.weight_bytes <= most:
        yield bytes(model.to_proto().SerializeToString()), None
    elif len(folders) == 1 and left <= most:
        with _unchanged(model):
            yield bytes(model.to_proto(weights.to_reference).SerializeToString()), folders.pop()
    else:
        with scratch() as folder:
            with room_for("the weights of a part of the model", folder):
                data = DataFile(folder / _DATA, _DATA)

                def store(constant: Constant) -> TensorProto:
                    return data.add(constant)

                with contextlib.closing(data):
                    proto = model.to_proto(store)
            yield bytes(proto.SerializeToString()), folder


@contextlib.contextmanager
def _unchanged(model: LeanModel) -> Iterator[None]:
    """Check before and after the block that the files of the weights are the same; also if the block fails for it."""
    stored = (c._values for c in model.weights.values())
    files = {v.file for v in stored if isinstance(v, weights.StoredValues) and v.file is not None}
    check_all(files)
    try:
        yield
    except Exception:
        check_all(files)
        raise
    check_all(files)


def _folder_of(constant: Constant) -> Path | None:
    """The folder of the file that holds a weight unchanged; None for weights in memory and computed ones."""
    values = constant._values
    return values.data_folder if isinstance(values, weights.StoredValues) else None

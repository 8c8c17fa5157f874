"""Sparse initializers, which are held as dense weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxshot.errors import ModelError
from onnxshot.graph.weights import MAX_RANK, StoredValues

_DENSE_LIMIT = 1 << 30  # bytes of a sparse initializer once it is dense: a small file must not fill the memory


def dense(sparse: onnx.SparseTensorProto, folder: Path | None) -> NDArray[Any]:
    """Return a sparse initializer as a dense array. Its indices are linear [NNZ] or coordinates [NNZ, rank] (ONNX IR).

    Raises:
        ModelError: its shapes or indices are invalid, or the dense array would exceed 1 GiB.
    """
    where = f"sparse tensor {sparse.values.name!r}"
    dims = tuple(sparse.dims)
    values = StoredValues(sparse.values, folder).load()
    indices = StoredValues(sparse.indices, folder).load()
    if any(d < 0 for d in dims) or len(dims) > MAX_RANK or math.prod(dims) * values.itemsize > _DENSE_LIMIT:
        raise ModelError(f"{where} has dimensions {list(dims)}, too large to hold")
    if values.ndim != 1 or indices.dtype != np.int64 or indices.shape not in ((values.size,), (values.size, len(dims))):
        raise ModelError(f"{where} has {values.shape} values at {indices.dtype} {indices.shape} indices")
    bounds = math.prod(dims) if indices.ndim == 1 else np.array(dims, np.int64)
    if ((indices < 0) | (indices >= bounds)).any():
        raise ModelError(f"{where} has an index outside its dimensions {list(dims)}")
    dense = np.zeros(dims, values.dtype)
    if indices.ndim == 1:
        dense.reshape(-1)[indices] = values
    else:
        dense[tuple(indices.T)] = values
    return dense

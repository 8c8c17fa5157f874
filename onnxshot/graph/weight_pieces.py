"""Read, compute and write weights a block of rows at a time, so that no work holds a whole large weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import TensorProto

from onnxshot.graph.weights import PACKED, PIECE, ComputedValues, StoredValues, elem_type, read, to_proto
from onnxshot.maths.int4_packing import pack_int4

BLOCK = 1 << 22
"""Values of a weight that are worked on at a time, where its rows can be read alone."""

_INT4 = (TensorProto.INT4, TensorProto.UINT4)


def raw_pieces(constant: gs.Constant) -> Iterator[bytes | memoryview]:
    """Yield the values of a constant as raw_data or external data hold them, in pieces; strings have no such form."""
    values = constant._values
    if isinstance(values, StoredValues) and values.mapped:
        yield from values.pieces()
    elif isinstance(values, StoredValues) and values.tensor.HasField("raw_data"):
        yield values.tensor.raw_data
    elif elem_type(constant) in _INT4 and math.prod(constant.shape[1:]) % 2 == 0:
        for _, part in row_blocks(constant):
            yield pack_int4(part)
    elif elem_type(constant) in PACKED:
        yield to_proto(constant).raw_data
    else:
        for _, part in row_blocks(constant):
            flat = np.ascontiguousarray(part).reshape(-1).view(np.uint8)
            for start in range(0, flat.size, PIECE):
                yield flat[start : start + PIECE].data


def rows(constant: gs.Constant, start: int, stop: int) -> NDArray[Any]:
    """Return some rows of a constant along its first axis; no more are read or computed where that is possible."""
    values = constant._values
    lazy = isinstance(values, StoredValues | ComputedValues)
    return values.rows(start, stop) if lazy else np.asarray(values)[start:stop]


def reads_rows(constant: gs.Constant) -> bool:
    """Whether `rows` of this constant takes no more than the rows asked for."""
    values = constant._values
    return values.reads_rows if isinstance(values, StoredValues | ComputedValues) else True


def row_blocks(constant: gs.Constant, multiple: int = 1) -> Iterator[tuple[int, NDArray[Any]]]:
    """Yield (number of the first row, rows) along the first axis, in blocks of about BLOCK values.

    A weight of no more values, or one whose rows cannot be computed alone, is one block.

    Args:
        constant: the weight.
        multiple: what the number of rows of every block but the last is a multiple of.
    """
    shape = tuple(constant.shape)
    if math.prod(shape) <= BLOCK or not reads_rows(constant):
        yield 0, read(constant)
        return
    step = max(BLOCK // math.prod(shape[1:]) // multiple, 1) * multiple
    for start in range(0, shape[0], step):
        yield start, rows(constant, start, min(start + step, shape[0]))


def by_rows(
    shape: tuple[int, ...], dtype: np.dtype[Any], sources: Sequence[gs.Constant], change: Callable[..., NDArray[Any]]
) -> ComputedValues:
    """Return values that are computed from other constants, row by row.

    Args:
        shape: shape of the values; its first axis is that of all sources.
        dtype: their dtype.
        sources: the constants.
        change: turns the same rows of every source into the rows of the values.
    """

    def some(start: int, stop: int) -> NDArray[Any]:
        return np.asarray(change(*(rows(source, start, stop) for source in sources)))

    def whole() -> NDArray[Any]:
        return np.asarray(change(*(np.asarray(read(source)) for source in sources)))

    return ComputedValues(shape, dtype, whole, some if shape and all(map(reads_rows, sources)) else None)

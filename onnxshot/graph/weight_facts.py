"""What a pass over the values of a weight tells: whether they are finite, and how many are zero.

The values of a lazy weight never change, so that it is read once, a block of rows at a time, and the facts are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxshot.graph.weight_pieces import row_blocks
from onnxshot.graph.weights import ComputedValues, StoredValues

_EXPONENTS = {"float16": 0x7C00, "bfloat16": 0x7F80}  # bits of the exponent, all set in infinity and NaN


@dataclass(frozen=True, slots=True)
class WeightFacts:
    """Facts about the values of a weight.

    Attributes:
        finite: whether no value is infinite or NaN.
        zeros: number of zeros.
        size: number of values.
    """

    finite: bool
    zeros: int
    size: int


def facts_of(constant: gs.Constant, also: Callable[[NDArray[Any]], object] | None = None) -> WeightFacts:
    """Return the facts about a constant of numbers; strings have none.

    Args:
        constant: the constant.
        also: called with every block of rows, in order, so that a caller who reads all values reads them once.
    """
    values = constant._values
    if isinstance(values, ComputedValues) and values.widened is not None and also is None:
        return facts_of(values.widened)  # a wider type changes neither
    lazy = isinstance(values, StoredValues | ComputedValues)
    known = getattr(values, "facts", None) if lazy else None
    if known is not None and also is None:
        assert isinstance(known, WeightFacts)
        return known
    finite, zeros = True, 0
    for _, block in row_blocks(constant):
        part = _facts(block)
        finite, zeros = finite and part[0], zeros + part[1]
        if also is not None:
            also(block)
    found = WeightFacts(finite, zeros, math.prod(constant.shape))
    if lazy:
        values.facts = found
    return found


def _facts(values: NDArray[Any]) -> tuple[bool, int]:
    """(whether all values are finite, number of zeros)."""
    exponent = _EXPONENTS.get(values.dtype.name)
    if exponent is not None:  # numpy counts and compares 16-bit floats one by one
        bits = np.ascontiguousarray(values).view(np.uint16)
        return not bool(((bits & exponent) == exponent).any()), bits.size - int(np.count_nonzero(bits & 0x7FFF))
    if values.dtype.kind not in "biufc":
        values = values.astype(np.float32)  # int4, float8 and the like
    zeros = values.size - int(np.count_nonzero(values))
    if values.dtype.kind in "biu" or not values.size:
        return True, zeros
    # min and max propagate NaN and allocate no second array
    return bool(np.isfinite(values.min()) and np.isfinite(values.max())), zeros

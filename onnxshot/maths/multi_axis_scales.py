"""Weights with a scale for each index of several axes: for each expert and column, each direction and row.

`weight_params` and `quantize` know one axis at most; here the values that share a scale are one row each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.maths.affine import PerChannel, QuantParams, QuantScheme, QuantType, quantize, weight_params


@dataclass(frozen=True, slots=True)
class MultiAxisScales:
    """Scales of a weight of this shape; axes: those with a scale for each index, in order; none: one for all."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    params: QuantParams

    @property
    def scale(self) -> NDArray[np.float32]:
        """float32, of the weight's rank: 1 along the other axes."""
        return self.params.scale.reshape([n if axis in self.axes else 1 for axis, n in enumerate(self.shape)])

    def quantize(self, w: NDArray[Any]) -> NDArray[Any]:
        """The weight in integers, in its own shape."""
        order = _order(len(self.shape), self.axes)
        rows = quantize(_rows(w, self.axes), self.params).reshape([self.shape[axis] for axis in order])
        return np.ascontiguousarray(rows.transpose(np.argsort(order)))


def scales_along(
    w: NDArray[Any], axes: tuple[int, ...], dtype: QuantType, *, method: str = "minmax"
) -> MultiAxisScales:
    """Symmetric scales of w. method: as of `weight_params`. Raises NotFinite where w holds NaN or infinity."""
    scheme = QuantScheme(dtype, symmetric=True, granularity=PerChannel(0))
    return MultiAxisScales(tuple(w.shape), axes, weight_params(_rows(w, axes), scheme, method=method))


def _order(rank: int, axes: tuple[int, ...]) -> list[int]:
    """The axes with scales, then the others."""
    return [*axes, *(axis for axis in range(rank) if axis not in axes)]


def _rows(w: NDArray[Any], axes: tuple[int, ...]) -> NDArray[Any]:
    """The values that share a scale as one row each: [scales, values]."""
    return w.transpose(_order(w.ndim, axes)).reshape(math.prod(w.shape[axis] for axis in axes), -1)

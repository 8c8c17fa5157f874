"""Quantize weights that have scales along several axes: per expert and column, or per direction and row.

`affine.weight_params` and `affine.quantize` support one axis. Here, the values that share a scale become one row of a
matrix, and the matrix is quantized per row.
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
    """Scales of a weight along some of its axes.

    Attributes:
        shape: shape of the weight.
        axes: the axes along which each index has a scale of its own; empty for one scale per tensor.
        params: scales and zero points, one per row of the matrix that `quantize` builds.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    params: QuantParams

    @property
    def scale(self) -> NDArray[np.float32]:
        """The scales, float32, of the rank of the weight: size 1 along all other axes."""
        return self.params.scale.reshape([n if axis in self.axes else 1 for axis, n in enumerate(self.shape)])

    def quantize(self, w: NDArray[Any]) -> NDArray[Any]:
        """Quantize the weight; the result has its shape and the storage dtype."""
        order = _order(len(self.shape), self.axes)
        rows = quantize(_rows(w, self.axes), self.params).reshape([self.shape[axis] for axis in order])
        return np.ascontiguousarray(rows.transpose(np.argsort(order)))


def scales_along(
    w: NDArray[Any], axes: tuple[int, ...], dtype: QuantType, *, method: str = "minmax"
) -> MultiAxisScales:
    """Compute symmetric scales of a weight along several axes.

    Args:
        w: float weight of any shape.
        axes: the axes along which each index gets a scale of its own; empty for one scale per tensor.
        dtype: the quantized type.
        method: "minmax" or "mse", see `affine.weight_params`.

    Raises:
        NotFinite: w holds NaN or infinity.

    Example:
        >>> from onnxshot.maths.affine import INT8
        >>> scales_along(np.ones((2, 3, 4), np.float32), (0, 2), INT8).scale.shape
        (2, 1, 4)
    """
    scheme = QuantScheme(dtype, symmetric=True, granularity=PerChannel(0))
    return MultiAxisScales(tuple(w.shape), axes, weight_params(_rows(w, axes), scheme, method=method))


def _order(rank: int, axes: tuple[int, ...]) -> list[int]:
    """The axes with scales, then the others."""
    return [*axes, *(axis for axis in range(rank) if axis not in axes)]


def _rows(w: NDArray[Any], axes: tuple[int, ...]) -> NDArray[Any]:
    """The weight as a matrix [scales, values]: each row holds the values that share a scale."""
    return w.transpose(_order(w.ndim, axes)).reshape(math.prod(w.shape[axis] for axis in axes), -1)

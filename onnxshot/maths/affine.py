"""Affine quantization: real = (q - zero_point) * scale, as in ONNX QuantizeLinear and DequantizeLinear.

Shapes of scales and zero points: () per tensor; [C] per channel, where C = x.shape[axis]; per block the shape of x,
with ceil(n / size) in place of n along ``axis`` (QuantizeLinear-21).

Tensors are processed in chunks of CHUNK elements, so that no function holds a float64 copy of a whole tensor. Arrays
that are not C-contiguous are copied once.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onnxshot.maths.quant_scheme import (
    FLOAT8E4M3FN,
    INT4,
    INT7,
    INT8,
    INT16,
    INT32,
    UINT4,
    UINT8,
    UINT16,
    Granularity,
    NotFinite,
    PerBlock,
    PerChannel,
    PerTensor,
    QuantParams,
    QuantScheme,
    QuantType,
)

CHUNK = 1 << 18  # elements: a float32 chunk is 1 MiB and stays in the cache
MIN_SCALE = float(np.finfo(np.float32).tiny)  # smallest normal float32; its reciprocal is finite too
MAX_SCALE = float(np.finfo(np.float32).max)
ZERO_WEIGHT_SCALE = 2.0**-16  # of an all-zero weight: every scale is exact, and a small one keeps the bias precise
CLIP_RATIOS = tuple(float(r) for r in np.linspace(1.0, 0.5, 21))


__all__ = [
    "FLOAT8E4M3FN",
    "INT4",
    "INT7",
    "INT8",
    "INT16",
    "INT32",
    "UINT4",
    "UINT8",
    "UINT16",
    "Granularity",
    "NotFinite",
    "PerBlock",
    "PerChannel",
    "PerTensor",
    "QuantParams",
    "QuantScheme",
    "QuantType",
    "clipped_range",
    "dequantize",
    "extremes",
    "params_from_range",
    "params_of_weight",
    "quantize",
    "squared_error",
    "weight_params",
]


def params_from_range(low: ArrayLike, high: ArrayLike, scheme: QuantScheme) -> QuantParams:
    """Compute the scale and zero point that cover a range of values.

    The range is widened to include 0, so that 0 is represented exactly. Every scale is a normal float32 whose
    reciprocal is finite: a range of only 0 gets 1.0, and a very small range gets MIN_SCALE. The arithmetic is float64,
    because high - low may overflow float32.

    Args:
        low: smallest value of the range: () per tensor, [C] per channel, or one value per block.
        high: largest value, of the same shape.
        scheme: type, symmetry and granularity of the quantized tensor.

    Returns:
        Scale (float32) and zero point (storage dtype), both of the shape of `low`.

    Raises:
        NotFinite: a bound is NaN or infinite.

    Example:
        >>> params = params_from_range(-1.0, 1.55, QuantScheme(UINT8))
        >>> round(float(params.scale), 4), int(params.zero_point)
        (0.01, 100)
    """
    low64 = np.minimum(np.asarray(low, dtype=np.float64), 0.0)
    high64 = np.maximum(np.asarray(high, dtype=np.float64), 0.0)
    if not (np.isfinite(low64).all() and np.isfinite(high64).all()):
        raise NotFinite("range holds NaN or infinity")
    qmin, qmax = scheme.limits
    if scheme.is_symmetric:
        wanted = np.maximum(-low64, high64) / (qmax - scheme.midpoint)
    else:
        wanted = (high64 - low64) / (qmax - qmin)
    empty = wanted == 0.0
    scale = np.where(empty, 1.0, np.clip(wanted, MIN_SCALE, MAX_SCALE)).astype(np.float32)
    if scheme.is_symmetric:
        zero = np.full(scale.shape, float(scheme.midpoint))
    else:
        # Divide by the float32 scale that is stored, so that zero point and scale agree.
        zero = np.clip(np.rint(qmin - low64 / scale.astype(np.float64)), qmin, qmax)
        zero = np.where(empty, 0.0, zero)
    return QuantParams(scheme, scale, zero.astype(scheme.dtype.storage))


def weight_params(w: NDArray[Any], scheme: QuantScheme, *, method: str = "minmax") -> QuantParams:
    """Compute the scale and zero point of a weight.

    A tensor, channel or block of only zeros gets the smallest scale of the others. Every scale represents zeros
    exactly, and a small one keeps the bias precise, whose scale is x_scale * w_scale.

    Args:
        w: the weight, float, of any shape.
        scheme: type, symmetry and granularity.
        method: "minmax" covers the range of the values. "mse" tries every clip range of CLIP_RATIOS, per scale, and
            keeps the one with the least sum((w - dequantize(quantize(w)))**2). It includes the full range, so it is
            never worse than "minmax", up to float32 rounding.

    Returns:
        Scale (float32) and zero point (storage dtype): () per tensor, [C] per channel, or one value per block.

    Raises:
        NotFinite: w holds NaN or infinity.
        ValueError: the method is another one.

    Example:
        >>> w = np.array([[127.0, -50.0], [0.0, 63.5]], np.float32)
        >>> weight_params(w, QuantScheme(INT8, symmetric=True, granularity=PerChannel(0))).scale.tolist()
        [1.0, 0.5]
    """
    if method not in ("minmax", "mse"):
        raise ValueError(f"method is 'minmax' or 'mse', found {method!r}")
    return params_of_weight(*clipped_range(w, scheme, method), scheme)


def clipped_range(
    w: NDArray[Any], scheme: QuantScheme, method: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the smallest and the largest value per scale that `weight_params` covers. It raises as that does."""
    low, high = extremes(w, scheme.granularity)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise NotFinite("weight holds NaN or infinity")
    if method == "mse" and w.size:
        ratio = _best_clip_ratio(w, low, high, scheme)
        low, high = low * ratio, high * ratio
    return low, high


def params_of_weight(low: NDArray[np.float64], high: NDArray[np.float64], scheme: QuantScheme) -> QuantParams:
    """Return what `weight_params` returns for a weight whose scales cover these ranges."""
    params = params_from_range(low, high, scheme)
    empty = (low == 0) & (high == 0)
    if not empty.any():
        return params
    fill = params.scale[~empty].min() if not empty.all() else np.float32(ZERO_WEIGHT_SCALE)
    scale = np.where(empty, fill, params.scale).astype(np.float32)
    return QuantParams(scheme, scale, params.zero_point)


def quantize(x: NDArray[Any], params: QuantParams) -> NDArray[Any]:
    """Quantize: clip(round_half_to_even(x / scale) + zero_point), as in QuantizeLinear-21.

    Args:
        x: float values, of any shape. Infinities saturate; the result for NaN is undefined.
        params: scale and zero point, whose shapes fit x; values are clipped at `params.scheme.limits`.

    Returns:
        The quantized values in the storage dtype, of the shape of x.

    Raises:
        ValueError: the number of scales is not the size of the axis.

    Example:
        >>> params = params_from_range(-1.0, 1.0, QuantScheme(INT8, symmetric=True))
        >>> quantize(np.array([0.5, -2.0], np.float32), params).tolist()
        [64, -127]
    """
    scheme = params.scheme
    out = np.empty(x.shape, dtype=scheme.dtype.storage)
    x3 = _as_3d(x, scheme.granularity)
    out3 = out.reshape(x3.shape)
    work = np.dtype(np.float64 if scheme.dtype.bits > 16 else np.float32)  # float32 holds integers up to 2**24
    for where, scale, zero in _chunks(x3, params):
        with np.errstate(over="ignore"):  # x / scale may be inf, which saturates as it should
            steps = np.divide(x3[where], scale, dtype=work)
        if not scheme.dtype.floating:
            np.rint(steps, out=steps)
            steps += zero
        np.clip(steps, *scheme.limits, out=steps)
        out3[where] = steps.astype(out.dtype)
    return out


def dequantize(q: NDArray[Any], params: QuantParams) -> NDArray[np.float32]:
    """Dequantize: (q - zero_point) * scale, as in DequantizeLinear-21.

    Types of more than 16 bits (the int32 of a bias) are computed in float64, so that the result is the float32 nearest
    to the exact product.

    Args:
        q: quantized values in the storage dtype, of any shape.
        params: scale and zero point, whose shapes fit q.

    Returns:
        float32, of the shape of q.

    Raises:
        ValueError: the number of scales is not the size of the axis.

    Example:
        >>> params = params_from_range(-1.27, 1.27, QuantScheme(INT8, symmetric=True))
        >>> dequantize(np.array([100], np.int8), params).round(4).tolist()
        [1.0]
    """
    out = np.empty(q.shape, dtype=np.float32)
    q3 = _as_3d(q, params.scheme.granularity)
    out3 = out.reshape(q3.shape)
    work = np.dtype(np.float64 if params.scheme.dtype.bits > 16 else np.float32)
    for where, scale, zero in _chunks(q3, params):
        real = q3[where].astype(work)
        if not params.scheme.dtype.floating:
            real -= zero
        with np.errstate(over="ignore", under="ignore"):
            real *= scale
            out3[where] = np.clip(real, -MAX_SCALE, MAX_SCALE)  # qmax * scale may round just past float32 max
    return out


def _as_3d(x: NDArray[Any], granularity: Granularity) -> NDArray[Any]:
    """View of x as [before, n, after] where n is the axis of the scales (per tensor: [1, size, 1])."""
    if isinstance(granularity, PerTensor):
        return x.reshape(1, x.size, 1)
    axis = range(x.ndim)[granularity.axis]
    return x.reshape(math.prod(x.shape[:axis]), x.shape[axis], math.prod(x.shape[axis + 1 :]))


def _spans(shape: tuple[int, ...], multiple: int = 1) -> Iterator[tuple[slice, slice]]:
    """Slices of the first two axes of [before, n, after] with about CHUNK elements; n is split at multiples only."""
    before, n, after = shape
    if before * n * after == 0:
        return
    rows = max(1, CHUNK // (n * after))
    columns = n if rows > 1 else max(1, CHUNK // (after * multiple)) * multiple
    for i in range(0, before, rows):
        for j in range(0, n, columns):
            yield slice(i, min(i + rows, before)), slice(j, min(j + columns, n))


def _chunks(x3: NDArray[Any], params: QuantParams) -> Iterator[tuple[tuple[slice, slice], NDArray[Any], NDArray[Any]]]:
    """Yield (slices of x3, scale, zero point) chunk by chunk; scale and zero point are floats that broadcast."""
    granularity = params.scheme.granularity
    work = np.float64 if params.scheme.dtype.bits > 16 else np.float32
    scale = params.scale.astype(work)
    zero = params.zero_point.astype(work)
    if isinstance(granularity, PerBlock):
        scale, zero = (a.reshape(x3.shape[0], -1, x3.shape[2]) for a in (scale, zero))
        for rows, columns in _spans(x3.shape, granularity.size):
            index = np.arange(columns.start, columns.stop) // granularity.size
            yield (rows, columns), scale[rows][:, index], zero[rows][:, index]
        return
    scale, zero = (a.reshape(1, -1, 1) for a in (scale, zero))
    if scale.shape[1] not in (1, x3.shape[1]):
        raise ValueError(f"{scale.shape[1]} scales for an axis of {x3.shape[1]}")
    for rows, columns in _spans(x3.shape):
        pick = slice(None) if scale.shape[1] == 1 else columns
        yield (rows, columns), scale[:, pick], zero[:, pick]


def _scale_shape(shape: tuple[int, ...], granularity: Granularity) -> tuple[int, ...]:
    """Shape of the scales of a tensor of this shape."""
    if isinstance(granularity, PerTensor):
        return ()
    axis = range(len(shape))[granularity.axis]
    if isinstance(granularity, PerChannel):
        return (shape[axis],)
    return (*shape[:axis], -(-shape[axis] // granularity.size), *shape[axis + 1 :])


def _reduce(op: np.ufunc, x3: NDArray[Any], granularity: Granularity, dtype: Any = None) -> NDArray[Any]:
    """Reduce [before, n, after] to one value per scale: (), [n] or [before, blocks, after]."""
    if isinstance(granularity, PerTensor):
        return np.asarray(op.reduce(x3, axis=None, dtype=dtype))
    if isinstance(granularity, PerChannel):
        return np.asarray(op.reduce(x3, axis=(0, 2), dtype=dtype))
    return np.asarray(op.reduceat(x3, np.arange(0, x3.shape[1], granularity.size), axis=1, dtype=dtype))


def extremes(w: NDArray[Any], granularity: Granularity) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Smallest and largest value per scale: NaN where one is NaN, 0 for an empty tensor."""
    shape = _scale_shape(w.shape, granularity)
    if w.size == 0:
        return np.zeros(shape), np.zeros(shape)
    w3 = _as_3d(w, granularity)
    low = _reduce(np.minimum, w3, granularity).astype(np.float64).reshape(shape)
    return low, _reduce(np.maximum, w3, granularity).astype(np.float64).reshape(shape)


def _best_clip_ratio(
    w: NDArray[Any], low: NDArray[np.float64], high: NDArray[np.float64], scheme: QuantScheme
) -> NDArray[np.float64]:
    """For each scale, the ratio of CLIP_RATIOS with the least squared error.

    Candidates are tried one after another: with small blocks, the errors of all candidates would take more memory than
    the tensor.
    """
    best_error = np.full(low.shape, np.inf)
    best_ratio = np.ones(low.shape)
    for ratio in CLIP_RATIOS:  # from 1.0 down: of equal errors, the one that clips least is kept
        error = squared_error(w, params_from_range(low * ratio, high * ratio, scheme))
        better = error < best_error
        best_ratio[better] = ratio
        best_error[better] = error[better]
    return best_ratio


def squared_error(w: NDArray[Any], params: QuantParams) -> NDArray[np.float64]:
    """Sum of (w - dequantize(quantize(w)))**2 per scale; elements in float32, sums in float64."""
    granularity = params.scheme.granularity
    w3 = _as_3d(w, granularity)
    block = granularity.size if isinstance(granularity, PerBlock) else 1
    lanes = (w3.shape[0], -1, w3.shape[2]) if isinstance(granularity, PerBlock) else (1, -1, 1)
    total = np.zeros(params.scale.shape).reshape(lanes)
    for (rows, columns), scale, zero in _chunks(w3, params):
        squares = _squared_steps(w3[rows, columns], scale, zero, params.scheme)
        part = _reduce(np.add, squares, granularity, np.float64)
        if isinstance(granularity, PerBlock):
            total[rows, columns.start // block : -(-columns.stop // block)] += part
        elif isinstance(granularity, PerChannel):
            total[0, columns, 0] += part
        else:
            total += part
    return total.reshape(params.scale.shape) * np.square(params.scale, dtype=np.float64)


def _squared_steps(
    x: NDArray[Any], scale: NDArray[np.float32], zero: NDArray[np.float32], scheme: QuantScheme
) -> NDArray[np.float32]:
    """Squared quantization error of each element in units of the scale, which cannot overflow for any x."""
    steps: NDArray[np.float32] = np.divide(x, scale, dtype=np.float32)
    if scheme.dtype.floating:
        steps -= np.clip(steps, *scheme.limits).astype(scheme.dtype.storage).astype(np.float32)
    else:
        qmin, qmax = scheme.limits
        nearest = np.rint(steps)
        np.clip(nearest, qmin - zero, qmax - zero, out=nearest)
        steps -= nearest
    return np.square(steps, out=steps)

"""Affine quantization: real = (q - zero_point) * scale, as in ONNX QuantizeLinear and DequantizeLinear.

Layouts: the scale of a tensor x has shape () per tensor, [C] per channel (C = x.shape[axis]) and the shape of x with
``axis`` cut to ceil(n / size) per block (QuantizeLinear-21). Nothing here holds a float64 copy of a tensor: work goes
in chunks of CHUNK elements, the result is allocated once. Arrays that are not C-contiguous are copied by reshape.
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

CHUNK = 1 << 18  # elements: a float32 chunk is 1 MiB and stays in cache over the passes of one candidate
MIN_SCALE = float(np.finfo(np.float32).tiny)  # smallest normal float32; its reciprocal is finite too
MAX_SCALE = float(np.finfo(np.float32).max)
BIAS_QMAX = 1 << 30  # half of int32: the other half is left to the sum of products in the same accumulator
ZERO_WEIGHT_SCALE = 2.0**-16  # of an all-zero weight: any scale is exact, a fine one keeps its bias precise
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
    "bias_params",
    "bias_safe_scale",
    "dequantize",
    "params_from_range",
    "quantize",
    "quantize_bias",
    "saturates_on_avx2",
    "weight_params",
]


def params_from_range(low: ArrayLike, high: ArrayLike, scheme: QuantScheme) -> QuantParams:
    """Scale and zero point that cover [low, high] and 0. low, high: finite float32, () or [C] or blocks -> same shape.

    Every scale is a normal float32 whose reciprocal is finite: an all-zero range gets 1.0, a range that would need a
    smaller scale gets MIN_SCALE. Zero is exact, as the range is widened to hold it. Computed in float64, since
    high - low overflows float32 for legal inputs. Raises NotFinite.
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
        # The float64 low over the float32 scale that is stored, so that zero point and scale agree.
        zero = np.clip(np.rint(qmin - low64 / scale.astype(np.float64)), qmin, qmax)
        zero = np.where(empty, 0.0, zero)
    return QuantParams(scheme, scale, zero.astype(scheme.dtype.storage))


def weight_params(w: NDArray[Any], scheme: QuantScheme, *, method: str = "minmax") -> QuantParams:
    """Params of a constant tensor w. method "minmax" keeps every value, "mse" clips for the least squared error.

    "mse" tries CLIP_RATIOS of the range per tensor, channel or block and keeps the one with the least
    sum((w - dq(q(w)))**2); 1.0 is among them, so it is never worse than "minmax" up to float32 rounding.
    Groups of zeros get the smallest scale of the others: any scale is exact for them and a small one keeps the bias,
    whose scale is x_scale * w_scale, precise. Raises NotFinite, and ValueError for another method.
    """
    if method not in ("minmax", "mse"):
        raise ValueError(f"method is 'minmax' or 'mse', found {method!r}")
    low, high = _extremes(w, scheme.granularity)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise NotFinite("weight holds NaN or infinity")
    if method == "mse" and w.size:
        ratio = _best_clip_ratio(w, low, high, scheme)
        low, high = low * ratio, high * ratio
    params = params_from_range(low, high, scheme)
    empty = (low == 0) & (high == 0)
    if not empty.any():
        return params
    fill = params.scale[~empty].min() if not empty.all() else np.float32(ZERO_WEIGHT_SCALE)
    scale = np.where(empty, fill, params.scale).astype(np.float32)
    return QuantParams(scheme, scale, params.zero_point)


def quantize(x: NDArray[Any], params: QuantParams) -> NDArray[Any]:
    """Round half to even, add the zero point, saturate: x float [...] -> storage dtype [...]. QuantizeLinear-21.

    Saturates at scheme.limits. x must be finite or infinite (saturates); NaN has no defined code.
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
    """(q - zero_point) * scale: storage dtype [...] -> float32 [...]. DequantizeLinear-21.

    int32 (a bias) goes through float64, so the result is the float32 nearest to the exact product.
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


def bias_params(x_scale: ArrayLike, w_scale: ArrayLike) -> QuantParams:
    """Int32 params of a bias: scale = x_scale * w_scale, zero point 0. x_scale (), w_scale () or [C] -> same shape."""
    product = np.asarray(x_scale, dtype=np.float64) * np.asarray(w_scale, dtype=np.float64)
    scale = np.clip(product, MIN_SCALE, MAX_SCALE).astype(np.float32)
    granularity: Granularity = PerChannel(0) if scale.ndim else PerTensor()
    return QuantParams(QuantScheme(INT32, True, granularity), scale, np.zeros(scale.shape, np.int32))


def quantize_bias(bias: NDArray[Any], x_scale: ArrayLike, w_scale: ArrayLike) -> NDArray[np.int32]:
    """round(bias / (x_scale * w_scale)) as int32. bias (), [1] or [C]; the result has the broadcast shape.

    With w_scale from bias_safe_scale: abs(dequantize(result) - bias) <= x_scale * w_scale.
    """
    params = bias_params(x_scale, w_scale)
    steps = np.asarray(bias, dtype=np.float64) / params.scale.astype(np.float64)
    return np.asarray(np.clip(np.rint(steps), -INT32.qmax, INT32.qmax)).astype(np.int32)


def bias_safe_scale(w_scale: ArrayLike, x_scale: ArrayLike, bias: ArrayLike) -> NDArray[np.float32]:
    """w_scale, raised where needed so that abs(bias) <= BIAS_QMAX * x_scale * w_scale. w_scale () or [C] -> same shape.

    Also raised where x_scale * w_scale would be subnormal. Weights must be quantized with the result. The raise costs
    little: the step of the bias is then finer than the float32 spacing of the bias itself. The guarantee ends where
    no float32 scale exists: abs(bias) > BIAS_QMAX * x_scale * 3.4e38.
    """
    scale = np.asarray(w_scale, dtype=np.float64)
    x = float(np.asarray(x_scale, dtype=np.float64))
    absolute = np.abs(np.asarray(bias, dtype=np.float64))
    if absolute.size == 0:
        return scale.astype(np.float32)
    if absolute.size == 1 or scale.ndim == 0:
        absolute = absolute.max()
    slack = 1.0 + 2.0**-20  # above the float32 rounding of both scales
    needed = np.maximum(absolute / BIAS_QMAX, MIN_SCALE) / x * slack
    raised = np.where(scale < needed, needed, scale)
    return np.minimum(raised, MAX_SCALE).astype(np.float32)


def saturates_on_avx2(q_weights: NDArray[Any], axis: int = 0) -> float:
    """Share of output channels (indices of ``axis``) whose u8 * s8 sums may saturate on CPUs without VNNI, 0..1.

    vpmaddubsw adds two adjacent products into int16: a pair of weights of one sign with 255 * (|a| + |b|) > 32767,
    that is |a| + |b| > 128, may clip. An estimate: "adjacent" is taken in the stored order of the other axes at every
    position, while kernels may pack otherwise. Values in -64..63 (INT7) are safe in any order and give 0.
    """
    if q_weights.size == 0 or q_weights.ndim == 0:
        return 0.0
    rows = np.moveaxis(q_weights, axis, 0)
    channels = rows.shape[0]
    step = max(1, CHUNK // max(1, q_weights.size // channels))
    at_risk = 0
    for start in range(0, channels, step):
        part = rows[start : start + step]
        flat = part.reshape(part.shape[0], -1).astype(np.int16)
        if flat.shape[1] < 2:
            continue
        up, down = np.maximum(flat, 0), np.minimum(flat, 0)
        risky = (up[:, 1:] + up[:, :-1] > 128) | (down[:, 1:] + down[:, :-1] < -128)
        at_risk += int(risky.any(axis=1).sum())
    return float(at_risk / channels)


def _as_3d(x: NDArray[Any], granularity: Granularity) -> NDArray[Any]:
    """View of x as [before, n, after] where n is the axis of the scales (per tensor: [1, size, 1])."""
    if isinstance(granularity, PerTensor):
        return x.reshape(1, x.size, 1)
    axis = range(x.ndim)[granularity.axis]
    return x.reshape(math.prod(x.shape[:axis]), x.shape[axis], math.prod(x.shape[axis + 1 :]))


def _spans(shape: tuple[int, ...], multiple: int = 1) -> Iterator[tuple[slice, slice]]:
    """Slices of the first two axes of [before, n, after], about CHUNK elements each, n cut at multiples."""
    before, n, after = shape
    if before * n * after == 0:
        return
    rows = max(1, CHUNK // (n * after))
    columns = n if rows > 1 else max(1, CHUNK // (after * multiple)) * multiple
    for i in range(0, before, rows):
        for j in range(0, n, columns):
            yield slice(i, min(i + rows, before)), slice(j, min(j + columns, n))


def _chunks(x3: NDArray[Any], params: QuantParams) -> Iterator[tuple[tuple[slice, slice], NDArray[Any], NDArray[Any]]]:
    """(slices of x3, scale, zero point as float) with the last two broadcastable against the chunk."""
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
    """Shape of the scales of a tensor."""
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


def _extremes(w: NDArray[Any], granularity: Granularity) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(low, high) per scale, NaN where the group holds NaN; zeros for an empty tensor."""
    shape = _scale_shape(w.shape, granularity)
    if w.size == 0:
        return np.zeros(shape), np.zeros(shape)
    w3 = _as_3d(w, granularity)
    low = _reduce(np.minimum, w3, granularity).astype(np.float64).reshape(shape)
    return low, _reduce(np.maximum, w3, granularity).astype(np.float64).reshape(shape)


def _best_clip_ratio(
    w: NDArray[Any], low: NDArray[np.float64], high: NDArray[np.float64], scheme: QuantScheme
) -> NDArray[np.float64]:
    """Ratios of CLIP_RATIOS with the least squared error, one per scale, shape of the scales.

    One candidate at a time over the whole tensor: with small blocks the errors of all would outweigh the tensor.
    """
    best_error = np.full(low.shape, np.inf)
    best_ratio = np.ones(low.shape)
    for ratio in CLIP_RATIOS:  # on a tie the first stays: the least clipping
        error = _squared_error(w, params_from_range(low * ratio, high * ratio, scheme))
        better = error < best_error
        best_ratio[better] = ratio
        best_error[better] = error[better]
    return best_ratio


def _squared_error(w: NDArray[Any], params: QuantParams) -> NDArray[np.float64]:
    """Sum of (w - dq(q(w)))**2 per scale, shape of the scales; float32 steps, float64 sums."""
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
    """Squared quantization error in units of the scale: cannot overflow, whatever the magnitude of x."""
    steps: NDArray[np.float32] = np.divide(x, scale, dtype=np.float32)
    if scheme.dtype.floating:
        steps -= np.clip(steps, *scheme.limits).astype(scheme.dtype.storage).astype(np.float32)
    else:
        qmin, qmax = scheme.limits
        nearest = np.rint(steps)
        np.clip(nearest, qmin - zero, qmax - zero, out=nearest)
        steps -= nearest
    return np.square(steps, out=steps)

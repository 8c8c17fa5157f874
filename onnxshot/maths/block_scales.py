"""Scales and zero points of a weight that is quantized in blocks along the axis that a product sums over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from onnxshot.maths.quant_scheme import NotFinite, PerBlock, QuantParams, QuantScheme

Floats = NDArray[np.float32]

_CHUNK = 1 << 16  # values that are searched at a time: a float32 array of them stays in the cache
_CLIPS = tuple(float(r) for r in np.linspace(1.0, 0.6, 9))  # shares of a block's range that are tried
_ROUNDS = 3  # least-squares fits of scale and zero point to the integers, each followed by new integers


def fit_blocks(
    weight: NDArray[Any],
    scheme: QuantScheme,
    importance: NDArray[Any] | None = None,
    scale_type: DTypeLike = np.float32,
    *,
    signed_scales: bool = False,
) -> QuantParams:
    """Choose the scale and the zero point of each block so that rounding to nearest changes the weights least.

    Candidates are the range of the values, clipped ranges, and the best of them after least-squares fits of scale and
    zero point to the integers. A block keeps the one with the least sum(importance * (w - dequantized)**2). A block of
    zeros, and one whose values are too small for the scale's type, is stored as zeros.

    Memory: about 10 arrays of _CHUNK values, and the result.

    Args:
        weight: float weights [N, K] of N outputs and K inputs.
        scheme: integer type and symmetry, with granularity PerBlock(1, size). The last block may be short.
        importance: how much an error counts, per input [K] or per weight [N, K]: the second moments of the inputs, or
            None where all count alike. Negative values count as 0.
        scale_type: float32, float16 or bfloat16. Scales are rounded to it before errors are measured.
        signed_scales: whether scales may be negative where the scheme is symmetric. A negative scale gives the one
            more step below zero to the positive values. Runtimes that multiply by the scale take it; those that
            check or compare scales do not.

    Returns:
        Scales and zero points [N, ceil(K / size)]. Scales are float32 arrays whose values `scale_type` holds exactly.
        They are normal numbers of it: never 0, subnormal, infinite or NaN.

    Raises:
        NotFinite: the weight or the importance holds NaN or infinity.

    Example:
        >>> from onnxshot.maths.quant_scheme import INT4
        >>> scheme = QuantScheme(INT4, symmetric=True, granularity=PerBlock(1, 4))
        >>> fit_blocks(np.array([[-8.0, 3.0, 7.0, 1.0, 0.5, -3.5]], np.float32), scheme).scale.tolist()
        [[1.0, 0.5]]
    """
    outputs, inputs = weight.shape
    size = block_size(scheme)
    columns = -(-inputs // size)
    scale = np.empty((outputs, columns), np.float32)
    zero = np.empty((outputs, columns), np.float32)
    if importance is not None and not np.isfinite(importance).all():
        raise NotFinite("importance holds NaN or infinity")
    limits = ScaleLimits.of(scale_type)
    for rows, blocks in _spans(outputs, inputs, size):
        values = slice(blocks.start * size, min(blocks.stop * size, inputs))
        part = _as_columns(weight[rows, values], size)
        if importance is None:
            counts = None
        else:
            counts = _as_columns(np.broadcast_to(importance, weight.shape)[rows, values], size)
        found = fit_columns(part, scheme, counts, limits, signed=signed_scales)
        shape = (rows.stop - rows.start, blocks.stop - blocks.start)
        scale[rows, blocks], zero[rows, blocks] = found[0].reshape(shape), found[1].reshape(shape)
    return QuantParams(scheme, scale, zero.astype(scheme.dtype.storage))


def block_size(scheme: QuantScheme) -> int:
    """The size of the scheme's blocks along axis 1."""
    granularity = scheme.granularity
    if not isinstance(granularity, PerBlock) or granularity.axis not in (1, -1):
        raise ValueError(f"weights in blocks need PerBlock(1, size), found {granularity}")
    return granularity.size


@dataclass(frozen=True, slots=True)
class ScaleLimits:
    """The type of scales as they are stored, with its smallest normal and its largest number."""

    dtype: np.dtype[Any]
    smallest: float
    largest: float

    @classmethod
    def of(cls, scale_type: DTypeLike) -> ScaleLimits:
        """The limits of float32, float16 or bfloat16."""
        import ml_dtypes

        dtype = np.dtype(scale_type)
        about: Any = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
        return cls(dtype, float(about.smallest_normal), float(about.max))

    def stored(self, scale: NDArray[Any]) -> Floats:
        """The scales that are stored for these, as float32."""
        clipped = np.copysign(np.clip(np.abs(scale), self.smallest, self.largest), scale)
        return np.asarray(clipped.astype(self.dtype), np.float32)


def fit_columns(
    values: Floats, scheme: QuantScheme, importance: Floats | None, limits: ScaleLimits, *, signed: bool = False
) -> tuple[Floats, Floats]:
    """Return scale and zero point, [B] each, of blocks that are the columns of `values` [size, B]."""
    low, high = np.minimum(values.min(axis=0), 0.0), np.maximum(values.max(axis=0), 0.0)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise NotFinite("weight holds NaN or infinity")
    largest = np.maximum(high, -low)
    empty = largest == 0.0
    unit = np.maximum(largest, np.float32(limits.smallest))  # blocks below it keep the smallest scale
    search = _Search(np.divide(values, unit), scheme, _normalized(importance), unit, limits)
    low, high = low / unit, high / unit
    qmin, qmax = scheme.limits
    if scheme.symmetric:
        search.attempt(np.maximum(high, -low) / (qmax - scheme.midpoint), None)  # as `affine.weight_params`
    for ratio in _CLIPS:
        if scheme.symmetric:
            above, below = (qmax - scheme.midpoint) / ratio, (scheme.midpoint - qmin) / ratio
            search.attempt(np.maximum(high / above, -low / below), None)
            if signed:
                search.attempt(-np.maximum(high / below, -low / above), None)
        else:
            wanted = (high - low) * (ratio / (qmax - qmin))
            search.attempt(wanted, qmin - low * ratio / np.where(empty, 1.0, wanted))
    for _ in range(_ROUNDS):
        search.attempt(*search.refitted())
    scale = np.where(empty, limits.stored(np.full(len(unit), 2.0**-10)), search.scale)
    return scale, np.where(empty, np.float32(scheme.midpoint), search.zero)


class _Search:
    """The best scale and zero point so far of each block, and the means to try others.

    Values are in units of the largest magnitude of their block, so that no square overflows or vanishes.
    """

    def __init__(
        self, values: Floats, scheme: QuantScheme, importance: Floats | None, unit: Floats, limits: ScaleLimits
    ) -> None:
        self._values, self._scheme, self._importance = values, scheme, importance
        self._unit, self._limits = unit, limits
        blocks = values.shape[1]
        self.scale = np.ones(blocks, np.float32)  # as it is stored
        self.zero = np.full(blocks, scheme.midpoint, np.float32)
        self._error = np.full(blocks, np.inf, np.float32)
        self._work = np.empty_like(values)

    def attempt(self, scale: NDArray[Any], zero: NDArray[Any] | None) -> None:
        """Try a scale in units of the block, and a zero point that is rounded here; keep them where they are better."""
        stored = self._limits.stored(scale * self._unit)
        near = stored / self._unit  # the scale that will be used, in units of the block
        qmin, qmax = self._scheme.limits
        if zero is None:
            whole = np.full(len(scale), self._scheme.midpoint, np.float32)
        else:
            whole = np.clip(np.rint(zero), qmin, qmax).astype(np.float32)
        left = self._integers(near, whole, self._work)
        left *= near
        left -= self._values
        error = self._weighted(left, left)
        better = error < self._error
        self._error = np.where(better, error, self._error)
        self.scale = np.where(better, stored, self.scale)
        self.zero = np.where(better, whole, self.zero)

    def refitted(self) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """The scale and the zero point, not rounded, that fit the integers of the best candidate by least squares."""
        near = self.scale / self._unit
        steps = self._integers(near, self.zero, self._work)
        across, own = self._weighted(steps, self._values), self._weighted(steps, steps)
        if self._scheme.symmetric:
            return np.where((own > 0) & (across * near > 0), across / np.where(own > 0, own, 1.0), near), None
        total, mean, mean_value = self._sums(steps)
        spread = own - mean * mean * total
        slope = (across - mean * mean_value * total) / np.where(spread > 0, spread, 1.0)
        usable = (spread > 1e-6 * own) & (slope > 0)
        slope = np.where(usable, slope, near)
        offset = (mean - mean_value / np.where(slope > 0, slope, 1.0)) + self.zero
        return slope, np.where(usable, offset, self.zero)

    def _integers(self, near: Floats, zero: Floats, out: Floats) -> Floats:
        """The integers less the zero point."""
        qmin, qmax = self._scheme.limits
        np.divide(self._values, near, out=out)
        np.rint(out, out=out)
        return np.clip(out, qmin - zero, qmax - zero, out=out)

    def _weighted(self, a: Floats, b: Floats) -> Floats:
        if self._importance is None:
            return np.asarray(np.einsum("kb,kb->b", a, b))
        return np.asarray(np.einsum("kb,kb,kb->b", self._importance, a, b))

    def _sums(self, steps: Floats) -> tuple[Floats | float, Floats, Floats]:
        """Total importance, and the mean of the steps and of the values."""
        if self._importance is None:
            return float(len(steps)), steps.mean(axis=0), self._values.mean(axis=0)
        total = self._importance.sum(axis=0)
        safe = np.where(total > 0, total, 1.0)
        values = np.einsum("kb,kb->b", self._importance, self._values)
        return total, np.einsum("kb,kb->b", self._importance, steps) / safe, values / safe


def _normalized(importance: Floats | None) -> Floats | None:
    """Importance with a largest value of 1 in each block; a block without any counts all its values alike."""
    if importance is None:
        return None
    most = importance.max(axis=0)
    return np.where(most > 0, importance / np.where(most > 0, most, 1.0), np.float32(1.0))


def _as_columns(part: NDArray[Any], size: int) -> Floats:
    """Rows of blocks [n, m * size], the last block maybe short, as columns [size, n * m]; what is missing is 0."""
    rows, width = part.shape
    blocks = -(-width // size)
    out = np.zeros((size, rows, blocks), np.float32)
    whole = width // size * size
    out[:, :, : width // size] = part[:, :whole].reshape(rows, -1, size).transpose(2, 0, 1)
    if whole < width:
        out[: width - whole, :, -1] = part[:, whole:].T
    return out.reshape(size, rows * blocks)


def _spans(outputs: int, inputs: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Slices of rows and of blocks with about _CHUNK weights each."""
    columns = -(-inputs // size)
    if outputs * columns == 0:
        return
    some_rows = max(1, _CHUNK // (columns * size))
    some_blocks = columns if some_rows > 1 else max(1, _CHUNK // size)
    for i in range(0, outputs, some_rows):
        for j in range(0, columns, some_blocks):
            yield slice(i, min(i + some_rows, outputs)), slice(j, min(j + some_blocks, columns))

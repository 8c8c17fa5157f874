"""Quantize the bias of a Conv or Gemm to int32, with the scale of the products that it is added to."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onnxshot.maths.affine import MAX_SCALE, MIN_SCALE
from onnxshot.maths.quant_scheme import INT32, Granularity, PerChannel, PerTensor, QuantParams, QuantScheme

BIAS_QMAX = 1 << 30  # half of int32: the accumulator also holds the sum of products


def bias_params(x_scale: ArrayLike, w_scale: ArrayLike) -> QuantParams:
    """Compute the int32 scale of a bias: x_scale * w_scale, with zero point 0.

    The bias is added to the int32 sum of products of a Conv or Gemm, whose scale is that product.

    Args:
        x_scale: scale of the layer's input, shape ().
        w_scale: scale of its weight, () per tensor or [C] per channel.

    Returns:
        Scale (float32) and zero point (int32), both of the shape of w_scale.

    Example:
        >>> float(bias_params(0.5, 0.25).scale)
        0.125
    """
    product = np.asarray(x_scale, dtype=np.float64) * np.asarray(w_scale, dtype=np.float64)
    scale = np.clip(product, MIN_SCALE, MAX_SCALE).astype(np.float32)
    granularity: Granularity = PerChannel(0) if scale.ndim else PerTensor()
    return QuantParams(QuantScheme(INT32, True, granularity), scale, np.zeros(scale.shape, np.int32))


def quantize_bias(bias: NDArray[Any], x_scale: ArrayLike, w_scale: ArrayLike) -> NDArray[np.int32]:
    """Quantize a bias to int32: round_half_to_even(bias / (x_scale * w_scale)).

    Where w_scale comes from `bias_safe_scale`, the error of each value is at most x_scale * w_scale.

    Args:
        bias: float, shape (), [1] or [C].
        x_scale: scale of the layer's input, shape ().
        w_scale: scale of its weight, () per tensor or [C] per channel.

    Returns:
        int32 of the broadcast shape of bias and w_scale.

    Example:
        >>> quantize_bias(np.array([1.0, -0.1], np.float32), 0.5, 0.25).tolist()
        [8, -1]
    """
    params = bias_params(x_scale, w_scale)
    steps = np.asarray(bias, dtype=np.float64) / params.scale.astype(np.float64)
    return np.asarray(np.clip(np.rint(steps), -INT32.qmax, INT32.qmax)).astype(np.int32)


def bias_safe_scale(w_scale: ArrayLike, x_scale: ArrayLike, bias: ArrayLike) -> NDArray[np.float32]:
    """Raise the scale of a weight where the bias would overflow int32.

    The result satisfies abs(bias) <= BIAS_QMAX * x_scale * w_scale, and x_scale * w_scale is a normal float32. The
    weight must be quantized with it. The raised scale costs little accuracy: the bias is still quantized in finer steps
    than float32 has at its magnitude. No float32 scale suffices where abs(bias) > BIAS_QMAX * x_scale * 3.4e38.

    Args:
        w_scale: scale of the weight, () per tensor or [C] per channel.
        x_scale: scale of the layer's input, shape ().
        bias: float, shape (), [1] or [C].

    Returns:
        float32 scales of the shape of w_scale, each at least as large as before.

    Example:
        >>> bool(bias_safe_scale(1e-6, 1e-6, [100.0]) > 1e-6)
        True
    """
    scale = np.asarray(w_scale, dtype=np.float64)
    x = float(np.asarray(x_scale, dtype=np.float64))
    absolute = np.abs(np.asarray(bias, dtype=np.float64))
    if absolute.size == 0:
        return scale.astype(np.float32)
    if absolute.size == 1 or scale.ndim == 0:
        absolute = absolute.max()
    slack = 1.0 + 2.0**-20  # more than the float32 rounding errors of both scales
    needed = np.maximum(absolute / BIAS_QMAX, MIN_SCALE) / x * slack
    raised = np.where(scale < needed, needed, scale)
    return np.minimum(raised, MAX_SCALE).astype(np.float32)

"""Estimate where int8 kernels saturate on x86 CPUs without VNNI."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.maths.affine import CHUNK


def saturates_on_avx2(q_weights: NDArray[Any], axis: int = 0) -> float:
    """Estimate for how many output channels sums of uint8 * int8 products may saturate on x86 CPUs without VNNI.

    The instruction vpmaddubsw adds two adjacent products into int16. Two weights of the same sign may therefore
    saturate where 255 * (|a| + |b|) > 32767, that is |a| + |b| > 128. The result is an estimate, because kernels may
    pack weights in another order than they are stored in. Values in -64..63 (INT7) never saturate.

    Args:
        q_weights: int8 weights, of any shape.
        axis: the axis of the output channels.

    Returns:
        The share of output channels that may saturate, 0 to 1.

    Example:
        >>> saturates_on_avx2(np.array([[100, 100], [100, -100]], np.int8))
        0.5
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

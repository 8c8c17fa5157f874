"""Fold an affine map before or behind a linear operator into its weight and bias: y = scale * (w x + b) + shift."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def scale_axis(w: Array, scale: Array, axis: int, groups: int = 1) -> NDArray[np.float64]:
    """Multiply each channel of a weight by its scale.

    Args:
        w: weight with C / groups channels along `axis`. With groups, axis 0 holds the groups one after another, as for
            the input channels of a Conv and the output channels of a ConvTranspose.
        scale: [C], or [1] for all channels.
        axis: the axis of the channels.
        groups: attribute `group` of the operator.

    Returns:
        A new float64 array of the shape of w.

    Example:
        >>> scale_axis(np.ones((2, 2)), np.array([1.0, 3.0]), axis=1).tolist()
        [[1.0, 3.0], [1.0, 3.0]]
    """
    wide: NDArray[np.float64] = w.astype(np.float64)  # a copy of its own, scaled in place
    scale = scale.astype(np.float64).reshape(-1)
    if scale.size == 1:
        wide *= scale[0]
    elif groups == 1 or axis == 0:
        wide *= scale.reshape([-1 if i == axis else 1 for i in range(w.ndim)])
    else:
        grouped = wide.reshape(groups, -1, *w.shape[1:])
        grouped *= scale.reshape([groups, 1] + [-1 if i == axis else 1 for i in range(1, w.ndim)])
    return wide


def fold_bias(bias: Array | None, scale: Array, shift: Array, channels: int) -> NDArray[np.float64]:
    """Return the bias of scale * (w x + bias) + shift.

    Args:
        bias: [.., C] or (); None for no bias.
        scale: [C] or [1].
        shift: [C] or [1].
        channels: C, the number of output channels.

    Returns:
        scale * bias + shift, float64 [.., C].

    Example:
        >>> fold_bias(None, np.array([2.0]), np.array([1.0]), 3).tolist()
        [1.0, 1.0, 1.0]
    """
    wide = np.zeros(channels) if bias is None else bias.astype(np.float64)
    folded = wide * scale.astype(np.float64).reshape(-1) + shift.astype(np.float64).reshape(-1)
    return np.broadcast_to(folded, (*folded.shape[:-1], channels))


def pass_shift(w: Array, shift: Array, axis: int, out_axis: int, groups: int = 1) -> NDArray[np.float64]:
    """Return what adding a constant to each input channel adds to each output channel.

    It holds only where no kernel position reads padding.

    Args:
        w: weight.
        shift: constant per input channel, [C] or [1].
        axis: axis of the input channels in w.
        out_axis: axis of the output channels in w.
        groups: attribute `group` of the operator.

    Returns:
        float64 [O].

    Example:
        >>> pass_shift(np.array([[1.0, 2.0]]), np.array([10.0, 1.0]), axis=1, out_axis=0).tolist()
        [12.0]
    """
    moved = scale_axis(w, shift, axis, groups)
    return np.asarray(moved.sum(axis=tuple(i for i in range(w.ndim) if i != out_axis)))

"""Put an affine map before or behind a linear op into its weight and bias: y = scale * (w x + b) + shift."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def scale_axis(w: Array, scale: Array, axis: int, groups: int = 1) -> NDArray[np.float64]:
    """W with each channel of `axis` multiplied by its scale; float64. w [.., C/groups at axis, ..], scale [C] or [1].

    With groups (Conv's input, ConvTranspose's output channels) axis 0 holds the groups one after another.
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
    """Bias of scale * (w x + bias) + shift. scale, shift [C] or [1]; bias [.., C], [] or None -> [.., C] float64."""
    wide = np.zeros(channels) if bias is None else bias.astype(np.float64)
    folded = wide * scale.astype(np.float64).reshape(-1) + shift.astype(np.float64).reshape(-1)
    return np.broadcast_to(folded, (*folded.shape[:-1], channels))


def pass_shift(w: Array, shift: Array, axis: int, out_axis: int, groups: int = 1) -> NDArray[np.float64]:
    """What adding `shift` [C] or [1] to the input adds to each output channel: [O], float64.

    `axis` and `out_axis` are the input and output channels' axes of w. Holds where no tap sees padding.
    """
    moved = scale_axis(w, shift, axis, groups)
    return np.asarray(moved.sum(axis=tuple(i for i in range(w.ndim) if i != out_axis)))

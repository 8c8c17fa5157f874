"""Bring tensors of other libraries (torch, tensorflow, jax, cupy) over as numpy arrays; none of them is imported."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_SPOKEN = ("__array__", "__dlpack__", "__array_interface__")
"""Attributes of objects that numpy can read."""
_PIXELS = ("L", "RGB", "F", "I", "I;16")  # modes of pictures of PIL whose values are those of pixels


def is_tensor(value: object) -> bool:
    """Whether a value is an array, or an object that says it can become one: a tensor, a picture of PIL."""
    if isinstance(value, np.generic | type):
        return False
    return isinstance(value, np.ndarray) or any(_has(value, name) for name in _SPOKEN)


def _has(value: object, name: str) -> bool:
    """Whether a value has an attribute, also one that cannot be computed, as of a picture that was closed."""
    try:
        return hasattr(value, name)
    except Exception:  # of any class of the user
        return True


def to_numpy(value: Any) -> NDArray[Any]:
    """A value as a numpy array, copied to the CPU where it lies elsewhere.

    A tensor that records gradients is detached: the values count, not how they came about. A type that numpy does not
    know, such as bfloat16 of torch, becomes float32.

    Raises whatever the value's library raises.
    """
    if callable(detach := getattr(value, "detach", None)) and hasattr(value, "cpu"):  # torch
        return _of_torch(detach().cpu())
    if type(value).__module__.partition(".")[0] == "cupy":  # its __array__ refuses to copy from the device
        return np.asarray(value.get())
    if hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
        try:
            return np.from_dlpack(value)
        except (BufferError, RuntimeError, ValueError):
            return np.from_dlpack(value, device="cpu")  # numpy 2.1: asks the library for a copy
    if type(value).__module__.partition(".")[0] == "PIL" and getattr(value, "mode", "L") not in _PIXELS:
        value = value.convert("RGB")  # else numbers of a palette, an alpha channel, or other colours
    found = np.asarray(value)
    if getattr(value, "mode", "") == "I" and found.size and found.min() >= 0 and found.max() < 1 << 16:
        return found.astype(np.uint8 if found.max() < 1 << 8 else np.uint16)  # as of a file of this mode
    return found


def _of_torch(tensor: Any) -> NDArray[Any]:
    if getattr(tensor, "is_sparse", False):
        tensor = tensor.to_dense()
    for resolve in ("resolve_conj", "resolve_neg"):
        tensor = getattr(tensor, resolve)() if hasattr(tensor, resolve) else tensor
    try:
        return np.asarray(tensor.numpy())
    except TypeError:
        return np.asarray(tensor.float().numpy())

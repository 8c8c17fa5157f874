"""Pack int4 values two to a byte, as ONNX stores INT4 and UINT4 tensors, and unpack values of 2, 4 or 8 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def pack_int4(values: NDArray[Any]) -> bytes:
    """Pack 4-bit integers two to a byte, the first in the low half, as in the `raw_data` of an ONNX tensor.

    Args:
        values: integers of any shape, flattened in C order: 0 to 15 (UINT4) or -8 to 7 (INT4, two's complement).
            ml_dtypes' int4 and uint4, and wider integer types, are accepted.

    Returns:
        ceil(values.size / 2) bytes. The high half of the last byte is 0 where the number of values is odd. ONNX
        (onnx.proto): "each 4-bit element is packed two per byte, the first element in the 4 least significant bits".

    Example:
        >>> pack_int4(np.array([1, -1, 7], np.int8)).hex()
        'f107'
    """
    codes = np.ascontiguousarray(values).reshape(-1).astype(np.int8).view(np.uint8) & 0x0F
    if codes.size % 2:
        codes = np.append(codes, np.uint8(0))
    return (codes[0::2] | (codes[1::2] << 4)).tobytes()


def unpack_bits(stored: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Unpack unsigned integers of 2, 4 or 8 bits from bytes, the lowest bits first.

    Args:
        stored: bytes, shape [..., n].
        bits: bits of one integer: 2, 4 or 8.

    Returns:
        uint8 of shape [..., n * 8 / bits].

    Example:
        >>> unpack_bits(np.array([0xF1, 0x07], np.uint8), 4).tolist()
        [1, 15, 7, 0]
    """
    if bits == 8:
        return stored
    parts = [(stored >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)]
    return np.stack(parts, axis=-1).reshape(*stored.shape[:-1], -1)


def paired(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pack 4-bit values two to a byte along the last axis, the first in the low half.

    Args:
        values: 0 to 15, of shape [.., n]. An odd n is filled up with a 0.

    Returns:
        Bytes of shape [.., ceil(n / 2)], as com.microsoft.MatMulNBits stores integers and zero points.
    """
    if values.shape[-1] % 2:
        values = np.concatenate([values, np.zeros((*values.shape[:-1], 1), np.uint8)], axis=-1)
    low, high = values[..., 0::2], values[..., 1::2]
    return np.bitwise_or(low, np.left_shift(high, np.uint8(4)), dtype=np.uint8)

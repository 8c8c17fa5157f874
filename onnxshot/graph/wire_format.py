"""Tags and lengths of protobuf messages. Source: protobuf, Encoding."""

from __future__ import annotations

_BYTES = 2  # wire type of messages, strings and bytes


def head(number: int, length: int) -> bytes:
    """Return what stands before the content of a field that holds a message or bytes: its tag and its length."""
    return _varint(number << 3 | _BYTES) + _varint(length)


def _varint(value: int) -> bytes:
    """A number below 2 ** 64: 7 bits to a byte, the lowest first."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)

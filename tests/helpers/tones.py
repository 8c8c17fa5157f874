"""Tiny wave files, and straightforward references for what becomes of them."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np


def riff(*chunks: tuple[bytes, bytes], promised: int | None = None) -> bytes:
    """A RIFF file of these chunks; `promised`: the length that the last chunk's header states instead of its own."""
    body = b""
    for number, (name, data) in enumerate(chunks):
        length = len(data) if promised is None or number < len(chunks) - 1 else promised
        body += name + struct.pack("<I", length) + data + b"\0" * (len(data) % 2)
    return b"RIFF" + struct.pack("<I", min(len(body) + 4, 0xFFFFFFFF)) + b"WAVE" + body


def fmt(code: int = 1, channels: int = 1, rate: int = 16000, bits: int = 16, block: int | None = None) -> bytes:
    width = bits // 8 * channels if block is None else block
    return struct.pack("<HHIIHH", code, channels, rate, rate * width, width, bits)


def write_wave(path: Path, x: np.ndarray, rate: int = 16000, bits: int = 16, code: int = 1) -> Path:
    """Write samples [count] or [count, channels] in -1..1 as PCM or floats."""
    shaped = x if x.ndim == 2 else x[:, None]
    if code == 3:
        data = shaped.astype(f"<f{bits // 8}").tobytes()
    elif bits == 8:
        data = (np.rint(shaped * 127) + 128).astype(np.uint8).tobytes()
    elif bits == 24:
        wide = np.rint(shaped * (2**23 - 1)).astype("<i4")
        data = wide.reshape(-1, 1).view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    else:
        data = np.rint(shaped * (2.0 ** (bits - 1) - 1)).astype(f"<i{bits // 8}").tobytes()
    path.write_bytes(riff((b"fmt ", fmt(code, shaped.shape[1], rate, bits)), (b"data", data)))
    return path


def tone(hertz: float, rate: int, count: int, start: int = 0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(start, start + count) / rate + 0.3)

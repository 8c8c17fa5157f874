"""Synthetic sound with the spectrum and the pauses of speech, for models of sound that no samples are given for."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_FORMANTS = ((250.0, 900.0), (800.0, 2400.0), (2000.0, 3500.0), (3000.0, 6000.0))  # Hz; Peterson & Barney 1952
_PITCH = (80.0, 260.0)  # Hz, of voices of men and women
_VOICED = 0.7  # share of syllables


def syllables(rng: np.random.Generator, seconds: float, rate: int) -> NDArray[np.float32]:
    """Pulse trains and noise through random resonances, with pauses, over a floor of noise.

    Args:
        rng: draws everything; the same state gives the same sound.
        seconds: length.
        rate: samples per second.

    Returns:
        Samples in -1..1.
    """
    count = round(seconds * rate)
    out = rng.standard_normal(count) * 10 ** rng.uniform(-4, -3)
    at = 0
    while at < count:
        full = max(1, int(rate * rng.uniform(0.06, 0.35)))
        size = min(full, count - at)
        time = np.arange(size) / rate
        pitch = rng.uniform(*_PITCH) * np.exp(rng.uniform(-0.3, 0.3) * time * rate / full)
        pulses = np.diff(np.floor(np.cumsum(pitch) / rate), prepend=0) > 0
        source = pulses * 8.0 if rng.random() < _VOICED else rng.standard_normal(size) * 0.5
        frequencies = np.fft.rfftfreq(size, 1 / rate)
        gains = np.zeros(len(frequencies))
        for low, high in _FORMANTS:
            centre, width = rng.uniform(low, high), rng.uniform(60, 300)
            gains += 500 / centre / (1 + ((frequencies - centre) / width) ** 2)
        made = np.fft.irfft(np.fft.rfft(source) * gains, size) * np.sqrt(np.hanning(size))
        out[at : at + size] += made * 10 ** rng.uniform(-1.5, -0.5) / max(float(np.abs(made).max()), 1e-9)
        at += full + (int(rate * rng.uniform(0, 0.6)) if rng.random() < 0.3 else 0)
    return np.clip(out, -1.0, 1.0).astype(np.float32)


def write_wave(path: Path, sound: NDArray[np.float32], rate: int) -> None:
    """Write a sound of one channel as PCM of 16 bits."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((sound * 32767).astype("<i2").tobytes())

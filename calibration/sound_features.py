"""What becomes of a waveform: another rate, mean 0 and variance 1, or a log-mel spectrogram."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.calibration.sound_files import Sound
from onnxshot.errors import CalibrationError

_MARGIN = 8192
"""Samples read on both sides of a stretch that is resampled: a filter of unlimited length ends in them."""
_TINY_VARIANCE = 1e-7  # added by transformers' feature extractors of wav2vec2
_TINY_POWER = 1e-10  # the least power that log-mel spectrograms keep
_MOST_FACTOR = 1 << 20  # of two rates in lowest terms


def stretch(sound: Sound, rate: int, start: int, count: int) -> NDArray[np.float32]:
    """Samples of a sound at another rate; zeros before it begins and behind its end.

    The sound is limited to the band of both rates by cutting its spectrum, as an ideal filter does. What is read on
    both sides fades out, so that where it was cut is not heard in between.

    Args:
        sound: the file.
        rate: samples a second of the result.
        start: number of the first sample, at the new rate; it may be negative.
        count: number of samples, at the new rate.

    Returns:
        float32 [count].

    Raises:
        CalibrationError: the file cannot be read, or the stretch is too large.
    """
    if sound.rate == rate:
        return sound.read(start, count)
    common = math.gcd(sound.rate, rate)
    old, new = sound.rate // common, rate // common
    if max(old, new) > _MOST_FACTOR:
        what = f"{sound.path} has {sound.rate} samples a second, which have no common divisor with {rate}"
        raise CalibrationError(what, "store the file at another rate")
    # From here on in periods: `old` samples of the file last as long as `new` samples of the result.
    margin = -(-_MARGIN // old)
    first = start // new - margin
    periods = _smooth(-(-(start + count) // new) + margin - first)
    read = sound.read(first * old, periods * old).astype(np.float64)
    fade = _fade(margin * old)
    read[: len(fade)] *= fade
    read[-len(fade) :] *= fade[::-1]
    made = _at_length(read, periods * new)
    skipped = start - first * new
    return made[skipped : skipped + count].astype(np.float32)


def _at_length(x: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """x, taken as one period of a periodic sound, as `count` samples: its spectrum is cut or filled up with zeros."""
    spectrum = np.fft.rfft(x)[: min(len(x), count) // 2 + 1]
    return np.fft.irfft(spectrum, count) * (count / len(x))


def _smooth(count: int) -> int:
    """The smallest number from `count` on without prime factors above 5: its Fourier transforms are fast."""
    best = 1 << (count - 1).bit_length()
    threes = 1
    while threes < best:
        fives = threes
        while fives < best:
            best = min(best, fives << max(0, (-(-count // fives) - 1).bit_length()))
            fives *= 5
        threes *= 3
    return best


def _fade(count: int) -> NDArray[np.float64]:
    """A rise from 0 to 1 in the first half, then ones."""
    half = count // 2
    rise = 0.5 - 0.5 * np.cos(np.pi * (np.arange(half) + 0.5) / half)
    return np.concatenate([rise, np.ones(count - half)])


def standardized(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """x with mean 0 and variance 1, as preprocessors of wav2vec2 make it."""
    wide = x.astype(np.float64)
    return np.asarray((wide - wide.mean()) / np.sqrt(wide.var() + _TINY_VARIANCE), np.float32)


def log_mel(x: NDArray[Any], rate: int, mels: int, n_fft: int, hop: int, log: str) -> NDArray[np.float32]:
    """The log-mel spectrogram of a waveform.

    Windows of Hann's form, centred, with the waveform mirrored at its ends; powers; triangles of equal area that lie
    evenly on Slaney's mel scale; then the logarithm.

    Args:
        x: waveform [samples], more than n_fft / 2 of them.
        rate: samples a second.
        mels: number of bands from 0 to rate / 2.
        n_fft: samples of a window.
        hop: samples from one window to the next.
        log: "whisper": the decimal logarithm, at most 8 below its largest value, plus 4, over 4; "log10"; or "ln".

    Returns:
        float32 [mels, samples // hop].
    """
    padded = np.pad(np.asarray(x, np.float64), n_fft // 2, mode="reflect")
    count = len(x) // hop
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::hop][:count]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    powers = np.abs(np.fft.rfft(frames * hann)) ** 2
    power = np.maximum(mel_filters(rate, mels, n_fft) @ powers.T, _TINY_POWER)
    if log == "ln":
        return np.asarray(np.log(power), np.float32)
    made = np.log10(power)
    if log == "whisper":
        made = (np.maximum(made, made.max() - 8.0) + 4.0) / 4.0
    return np.asarray(made, np.float32)


@functools.cache
def mel_filters(rate: int, mels: int, n_fft: int) -> NDArray[np.float64]:
    """Weights of the bands [mels, n_fft / 2 + 1]: triangles of area 1 in Hz, evenly on Slaney's mel scale."""
    corners = _to_hertz(np.linspace(0.0, _to_mel(rate / 2), mels + 2))
    frequencies = np.linspace(0.0, rate / 2, n_fft // 2 + 1)
    widths = np.diff(corners)
    away = corners[:, None] - frequencies[None]
    rising, falling = -away[:-2] / widths[:-1, None], away[2:] / widths[1:, None]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    weights: NDArray[np.float64] = triangles * (2.0 / (corners[2:] - corners[:-2]))[:, None]
    weights.setflags(write=False)
    return weights


_LINEAR_TO = 1000.0  # Hz; Slaney's scale is linear up to there and logarithmic above
_MELS_LINEAR = 15.0
_STEP = math.log(6.4) / 27.0


def _to_mel(hertz: float) -> float:
    return hertz * 3.0 / 200.0 if hertz < _LINEAR_TO else _MELS_LINEAR + math.log(hertz / _LINEAR_TO) / _STEP


def _to_hertz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    above = _LINEAR_TO * np.exp((np.maximum(mel, _MELS_LINEAR) - _MELS_LINEAR) * _STEP)
    return np.where(mel < _MELS_LINEAR, mel * 200.0 / 3.0, above)

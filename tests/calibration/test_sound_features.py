"""Resampling and log-mel spectrograms against straightforward references."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tones import tone, write_wave

from onnxshot.calibration.sound_features import _smooth, log_mel, mel_filters, standardized, stretch
from onnxshot.calibration.sound_files import open_sound


@pytest.mark.parametrize(
    ("rate", "hertz"), [(48000, 300), (48000, 7000), (44100, 7000), (8000, 3500), (22050, 100), (11025, 5000)]
)
def test_a_tone_stays_a_tone_at_another_rate(tmp_path: Path, rate: int, hertz: int) -> None:
    count = rate * 3
    sound = open_sound(write_wave(tmp_path / "x.wav", tone(hertz, rate, count), rate, 32, 3))
    for start, length in ((20000, 1000), (17777, 333)):
        np.testing.assert_allclose(stretch(sound, 16000, start, length), tone(hertz, 16000, length, start), atol=2e-5)


@pytest.mark.parametrize("hertz", [9000, 12000, 20000])
def test_what_the_new_rate_cannot_hold_is_gone(tmp_path: Path, hertz: int) -> None:
    sound = open_sound(write_wave(tmp_path / "x.wav", tone(hertz, 44100, 130000), 44100, 32, 3))
    assert np.abs(stretch(sound, 16000, 20000, 2000)).max() < 2e-5


def test_a_sound_is_resampled_as_by_the_sum_of_its_sines(tmp_path: Path) -> None:
    """Against sinc interpolation, written out as a sum over all samples."""
    rng = np.random.default_rng(3)
    x = np.zeros(9000)
    x[4000:5000] = np.convolve(rng.standard_normal(1000), np.hanning(41), "same") * np.hanning(1000) / 20
    sound = open_sound(write_wave(tmp_path / "x.wav", x, 24000, 64, 3))
    times = np.arange(2600, 3400) * 1.5
    cut = 2 / 3  # of the band of 24 kHz that 16 kHz keeps
    expected = [float(np.sum(x * cut * np.sinc(cut * (t - np.arange(9000))))) for t in times]
    np.testing.assert_allclose(stretch(sound, 16000, 2600, 800), expected, atol=1e-6)


def test_neighbouring_windows_join(tmp_path: Path) -> None:
    spectrum = np.fft.rfft(np.random.default_rng(0).standard_normal(60000) * 0.1)
    spectrum[int(7800 / 48000 * 60000) :] = 0
    sound = open_sound(write_wave(tmp_path / "x.wav", np.fft.irfft(spectrum), 48000, 32, 3))
    whole = stretch(sound, 16000, 3000, 8000)
    parts = np.concatenate([stretch(sound, 16000, 3000 + 1000 * i, 1000) for i in range(8)])
    assert np.abs(whole - parts).max() < 1e-5


@given(st.integers(1, 100_000))
def test_fast_lengths_are_the_next_without_large_factors(count: int) -> None:
    found = _smooth(count)
    rest = found
    for prime in (2, 3, 5):
        while rest % prime == 0:
            rest //= prime
    assert rest == 1 and count <= found < 1.5 * count + 1


def _reference_mel(x: np.ndarray, rate: int, mels: int, n_fft: int, hop: int) -> np.ndarray:
    """Powers by the definition of the Fourier transform, and triangles written out band by band."""
    half = n_fft // 2
    padded = np.concatenate([x[1 : half + 1][::-1], x, x[-half - 1 : -1][::-1]])
    n = np.arange(n_fft)
    hann = np.sin(np.pi * n / n_fft) ** 2
    kernel = np.exp(-2j * np.pi * np.outer(np.arange(half + 1), n) / n_fft)
    powers = np.stack(
        [np.abs(kernel @ (padded[s : s + n_fft] * hann)) ** 2 for s in range(0, len(x) - hop + 1, hop)], 1
    )

    def hertz(mel: float) -> float:
        return mel * 200 / 3 if mel < 15 else 1000 * math.exp((mel - 15) * math.log(6.4) / 27)

    top = rate / 2
    most = 3 * top / 200 if top < 1000 else 15 + 27 * math.log(top / 1000) / math.log(6.4)
    corners = [hertz(most * i / (mels + 1)) for i in range(mels + 2)]
    made = np.zeros((mels, powers.shape[1]))
    for band in range(mels):
        low, middle, high = corners[band : band + 3]
        for k in range(half + 1):
            f = k * rate / n_fft
            weight = max(0.0, min((f - low) / (middle - low), (high - f) / (high - middle)))
            made[band] += weight * 2 / (high - low) * powers[k]
    return np.maximum(made, 1e-10)


@pytest.mark.parametrize(
    ("mels", "n_fft", "hop", "rate"), [(80, 400, 160, 16000), (128, 400, 160, 16000), (20, 64, 32, 8000)]
)
def test_log_mel_is_the_reference(mels: int, n_fft: int, hop: int, rate: int) -> None:
    x = np.random.default_rng(1).standard_normal(1600) * 0.1
    power = _reference_mel(x, rate, mels, n_fft, hop)
    logarithm = np.log10(power)
    whisper = (np.maximum(logarithm, logarithm.max() - 8) + 4) / 4
    np.testing.assert_allclose(log_mel(x, rate, mels, n_fft, hop, "whisper"), whisper, atol=1e-5)
    np.testing.assert_allclose(log_mel(x, rate, mels, n_fft, hop, "log10"), logarithm, atol=1e-4)
    np.testing.assert_allclose(log_mel(x, rate, mels, n_fft, hop, "ln"), np.log(power), atol=1e-4)


def test_log_mel_of_thirty_seconds_has_three_thousand_columns_and_limited_depth() -> None:
    x = np.pad(tone(440, 16000, 16000), (0, 480000 - 16000))
    made = log_mel(x, 16000, 80, 400, 160, "whisper")
    assert made.shape == (80, 3000) and made.dtype == np.float32
    assert made.max() - made.min() == pytest.approx(2.0)  # 8 powers of ten, over 4
    assert int(made[:, 50].argmax()) == int(
        (mel_filters(16000, 80, 400)[:, 11]).argmax()
    )  # 440 Hz is the 11th of 40 Hz


@given(st.floats(-3, 3), st.floats(0.01, 5), st.integers(2, 300))
def test_standardized_has_mean_0_and_variance_1(mean: float, deviation: float, count: int) -> None:
    x = (mean + deviation * np.random.default_rng(count).standard_normal(count)).astype(np.float32)
    made = standardized(x)
    assert abs(made.mean()) < 1e-3
    expected = x.astype(float).std() / math.sqrt(x.astype(float).var() + 1e-7)
    assert made.std() == pytest.approx(expected, abs=1e-3)
    assert not standardized(np.full(5, 0.25, np.float32)).any()

import wave
from pathlib import Path

import numpy as np
import pytest

from onnxshot.calibration.synthetic_sound import syllables, write_wave


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_sound_has_syllables_and_pauses(rate: int) -> None:
    sound = syllables(np.random.default_rng(0), 10.0, rate)
    assert sound.shape == (10 * rate,)
    assert np.abs(sound).max() <= 1
    frames = sound[: len(sound) // (rate // 50) * (rate // 50)].reshape(-1, rate // 50)
    energies = 10 * np.log10(np.square(frames, dtype=np.float64).mean(axis=1) + 1e-12)
    assert np.percentile(energies, 95) - np.percentile(energies, 5) > 20, "dB between syllables and pauses"
    powers = np.square(np.abs(np.fft.rfft(sound)))
    frequencies = np.fft.rfftfreq(len(sound), 1 / rate)
    assert powers[frequencies < 1500].sum() > 2 * powers[frequencies >= 1500].sum(), "most of it is below 1.5 kHz"


def test_the_same_state_gives_the_same_sound(tmp_path: Path) -> None:
    first, second = (syllables(np.random.default_rng(3), 1.0, 16000) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    write_wave(tmp_path / "a.wav", first, 16000)
    with wave.open(str(tmp_path / "a.wav"), "rb") as file:
        assert tuple(file.getparams())[:4] == (1, 2, 16000, 16000)
        read = np.frombuffer(file.readframes(16000), "<i2") / 32767
    assert np.abs(read - first).max() < 1e-4

"""Sound files are read as they are, in stretches; broken and hostile ones are named."""

from __future__ import annotations

import builtins
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tones import fmt, riff, tone, write_wave

from onnxshot.calibration.sound_files import open_sound
from onnxshot.errors import CalibrationError


@pytest.mark.parametrize(
    ("bits", "code", "off"),
    [(8, 1, 1 / 120), (16, 1, 1e-4), (24, 1, 1e-6), (32, 1, 1e-7), (32, 3, 1e-7), (64, 3, 1e-7)],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_waves_of_every_kind_are_read(tmp_path: Path, bits: int, code: int, off: float, channels: int) -> None:
    x = np.stack([tone(440 * (c + 1), 22050, 300) for c in range(channels)], 1)
    sound = open_sound(write_wave(tmp_path / "x.wav", x, 22050, bits, code))
    assert (sound.rate, sound.channels, sound.frames) == (22050, channels, 300)
    np.testing.assert_allclose(sound.read(0, 300), x.mean(1), atol=off)


def test_a_wave_of_the_standard_library_is_read(tmp_path: Path) -> None:
    import wave

    with wave.open(str(tmp_path / "x.wav"), "wb") as file:
        file.setparams((2, 2, 8000, 0, "NONE", ""))
        file.writeframes(np.array([[100, 300], [-32768, 32767]], "<i2").tobytes())
    np.testing.assert_allclose(open_sound(tmp_path / "x.wav").read(0, 2), [200 / 32768, -0.5 / 32768])


def test_a_stretch_outside_of_the_sound_is_zero(tmp_path: Path) -> None:
    sound = open_sound(write_wave(tmp_path / "x.wav", tone(440, 16000, 50), bits=32, code=3))
    got = sound.read(-10, 100)
    assert not got[:10].any() and not got[60:].any()
    np.testing.assert_allclose(got[10:60], tone(440, 16000, 50), atol=1e-7)
    assert not sound.read(50, 5).any() and not sound.read(-9, 5).any()


def test_extensible_headers_odd_chunks_and_pipes_are_read(tmp_path: Path) -> None:
    data = np.array([1, 2, 3], "<i2").tobytes()
    extensible = fmt(0xFFFE) + struct.pack("<HHI", 22, 16, 0) + struct.pack("<H", 1) + b"\0" * 14
    (tmp_path / "x.wav").write_bytes(
        riff((b"LIST", b"odd"), (b"fmt ", extensible), (b"fact", b"1234"), (b"data", data))
    )
    assert open_sound(tmp_path / "x.wav").frames == 3
    for stated in (0, 0xFFFFFFFF):
        (tmp_path / "pipe.wav").write_bytes(riff((b"fmt ", fmt()), (b"data", data), promised=stated))
        np.testing.assert_allclose(open_sound(tmp_path / "pipe.wav").read(0, 3) * 32768, [1, 2, 3])


_TWO = b"\0\0\0\0"
HOSTILE = {
    "promises 4294967290 bytes of samples, and the file holds 4": riff(
        (b"fmt ", fmt()), (b"data", _TWO), promised=0xFFFFFFFA
    ),
    "0 channels": riff((b"fmt ", fmt(channels=0)), (b"data", _TWO)),
    "65535 channels": riff((b"fmt ", fmt(channels=65535, bits=8)), (b"data", b"\0" * 65535)),
    "a rate of 0 samples": riff((b"fmt ", fmt(rate=0)), (b"data", _TWO)),
    "12 bits a value": riff((b"fmt ", fmt(bits=12)), (b"data", _TWO)),
    "and 7 bytes for them together": riff((b"fmt ", fmt(block=7)), (b"data", _TWO)),
    "it holds no samples": riff((b"fmt ", fmt()), (b"data", b"")),
    "no chunk is called data": riff((b"fmt ", fmt())),
    "before the header that describes them": riff((b"data", _TWO), (b"fmt ", fmt())),
    "has 8 bytes, not 16 or more": riff((b"fmt ", fmt()[:8]), (b"data", _TWO)),
    "does not begin as a wave file": b"RIFX\0\0\0\0WAVE" + b"\0" * 30,
    "(RIFF, WAVE)": b"",
}  # fmt: skip


@pytest.mark.parametrize("said", HOSTILE)
def test_broken_headers_are_named(tmp_path: Path, said: str) -> None:
    (tmp_path / "bad.wav").write_bytes(HOSTILE[said])
    tracemalloc.start()
    with pytest.raises(CalibrationError) as error:
        open_sound(tmp_path / "bad.wav").read(0, 10)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "bad.wav" in str(error.value) and said in str(error.value)
    assert peak < 1 << 20


@given(cut=st.integers(0, 91), flips=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 255)), max_size=3))
def test_any_bytes_give_samples_or_a_clear_error(
    tmp_path_factory: pytest.TempPathFactory, cut: int, flips: list[tuple[int, int]]
) -> None:
    whole = bytearray(riff((b"fmt ", fmt()), (b"LIST", b"abcd"), (b"data", bytes(range(40)))))
    for at, value in flips:
        whole[at] = value
    path = tmp_path_factory.getbasetemp() / "some.wav"
    path.write_bytes(bytes(whole[:cut]))
    try:
        sound = open_sound(path)
        assert sound.read(0, min(sound.frames, 100)).dtype == np.float32
    except CalibrationError as error:
        assert "some.wav" in str(error)


def test_samples_that_are_nan_are_refused(tmp_path: Path) -> None:
    path = write_wave(tmp_path / "x.wav", np.array([0.1, np.nan]), bits=32, code=3)
    with pytest.raises(CalibrationError, match="NaN or infinite"):
        open_sound(path).read(0, 2)


def test_values_that_no_sound_has_are_refused(tmp_path: Path) -> None:
    path = write_wave(tmp_path / "x.wav", np.array([0.1, -1e30]), bits=32, code=3)
    with pytest.raises(CalibrationError, match=r"x.wav is not .*holds the value 1e\+30; sound lies in -1..1"):
        open_sound(path).read(0, 2)
    assert open_sound(path).read(0, 1) == np.float32(0.1)


def test_floats_far_outside_are_loud_and_integers_are_not(tmp_path: Path) -> None:
    wide = write_wave(tmp_path / "x.wav", np.array([0.5, -32768.0]), bits=32, code=3)
    assert open_sound(wide).loudest() == 32768
    for bits, code in ((16, 1), (32, 3)):
        assert open_sound(write_wave(tmp_path / "y.wav", np.array([0.5, -1.0]), bits=bits, code=code)).loudest() == 0


def test_a_stretch_that_would_not_fit_in_memory_is_refused(tmp_path: Path) -> None:
    sound = open_sound(write_wave(tmp_path / "x.wav", np.zeros(4)))
    with pytest.raises(CalibrationError, match="too large"):
        sound.read(0, 1 << 40)


def test_flac_needs_soundfile_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.flac").write_bytes(b"fLaC")
    real = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name == "soundfile":
            raise ImportError("No module named 'soundfile'")
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(CalibrationError, match="soundfile") as error:
        open_sound(tmp_path / "x.flac")
    assert 'pip install "onnxshot[sound]"' in str(error.value)


def test_flac_is_read_as_the_wave_it_was_made_of(tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    x = (np.stack([tone(440, 16000, 5000), tone(880, 16000, 5000)], 1) * 32767).astype(np.int16)
    soundfile.write(tmp_path / "x.flac", x, 16000, subtype="PCM_16")
    soundfile.write(tmp_path / "x.wav", x, 16000, subtype="PCM_16")
    flac, wave = open_sound(tmp_path / "x.flac"), open_sound(tmp_path / "x.wav")
    assert (flac.rate, flac.channels, flac.frames) == (wave.rate, wave.channels, wave.frames)
    np.testing.assert_allclose(flac.read(700, 1000), wave.read(700, 1000), atol=1e-7)
    (tmp_path / "x.flac").write_bytes((tmp_path / "x.flac").read_bytes()[:200])
    with pytest.raises(CalibrationError, match=r"x\.flac is not a readable sound file"):
        open_sound(tmp_path / "x.flac").read(0, 5000)

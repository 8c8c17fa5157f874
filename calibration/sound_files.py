"""Read sound files: the header first, then any stretch of samples, as mono float32.

Wave files of PCM (8, 16, 24 and 32 bits) and of floats (32 and 64 bits) are read here. For .flac and for compressed
wave files, the optional library soundfile is used.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from onnxshot.calibration.sources import MOST_BYTES
from onnxshot.errors import CalibrationError
from onnxshot.files.regular_files import check_regular

SOUNDS = (".wav", ".flac")
"""Suffixes of sound files."""
_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_UNKNOWN_SIZE = 0xFFFFFFFF  # what writers state that cannot seek back
_MOST_CHANNELS = 64
_RATES = (100, 1_000_000)  # samples a second
_LOUDEST = float(1 << 32)  # more than integers of 32 bits that were stored as floats
_LOUD, _HEARD = 16.0, 1 << 16  # a file of floats is called loud if one of so many first samples is larger
_MOST_CHUNKS = 1000  # of a wave file, before its samples
_KNOWN = {(_PCM, 8), (_PCM, 16), (_PCM, 24), (_PCM, 32), (_FLOAT, 32), (_FLOAT, 64)}
_INSTALL = 'pip install "onnxshot[sound]"'


@dataclass(frozen=True, slots=True)
class Sound:
    """What the header of a sound file states.

    Attributes:
        path: of the file.
        rate: samples a second.
        channels: of each sample.
        frames: number of samples in each channel.
        code: format code of a wave file: 1 for PCM, 3 for floats; None for a file that soundfile reads.
        bits: of a stored value; 0 where soundfile reads the file.
        offset: of the first sample in the file, in bytes; 0 where soundfile reads the file.
    """

    path: Path
    rate: int
    channels: int
    frames: int
    code: int | None
    bits: int
    offset: int

    @property
    def seconds(self) -> float:
        """Duration."""
        return self.frames / self.rate

    def read(self, start: int, count: int) -> NDArray[np.float32]:
        """The mean of all channels, from sample `start` on; zeros before the first sample and behind the last.

        Args:
            start: number of a sample; it may be negative.
            count: number of samples.

        Returns:
            float32 [count]; PCM is scaled to -1..1.

        Raises:
            CalibrationError: the stretch is too large, or the file does not hold what its header states.
        """
        if count * self.channels * 8 > MOST_BYTES:
            what = f"{self.path}: a stretch of {count} samples in {self.channels} channels is too large"
            raise CalibrationError(what, f"use windows of at most {MOST_BYTES // 8 // self.channels} samples")
        mono = np.zeros(count, np.float32)
        first, last = max(start, 0), min(start + count, self.frames)
        if first < last:
            raw = self._stored(first, last - first)
            if not np.isfinite(raw).all():
                raise _broken(self.path, "some of its samples are NaN or infinite")
            if raw.dtype.kind == "f" and np.abs(raw).max() > _LOUDEST:
                raise _broken(self.path, f"it holds the value {np.abs(raw).max():.3g}; sound lies in -1..1")
            mono[first - start : last - start] = raw.mean(axis=1) if self.channels > 1 else raw[:, 0]
        return mono

    def loudest(self) -> float:
        """The largest value at the beginning of a file of floats, where it is far outside of -1..1; else 0."""
        if self.code != _FLOAT:
            return 0.0
        found = float(np.abs(self.read(0, min(self.frames, _HEARD // self.channels))).max())
        return found if found > _LOUD else 0.0

    def _stored(self, first: int, count: int) -> NDArray[Any]:
        """Samples as float32 or float64 [count, channels]."""
        if self.code is None:
            return _by_soundfile(self, first, count)
        width = self.bits // 8 * self.channels
        with self.path.open("rb") as file:
            file.seek(self.offset + first * width)
            raw = file.read(count * width)
        if len(raw) < count * width:
            raise _broken(self.path, "it ends before its last sample: another program may have changed it")
        return _decoded(raw, self.code, self.bits).reshape(count, self.channels)


def open_sound(path: Path) -> Sound:
    """Read the header of a sound file.

    Raises:
        CalibrationError: it is not a regular file, not a sound file, empty, broken or shorter than its header states,
            or soundfile is needed and not installed.
    """
    try:
        size = check_regular(path, "the sound", CalibrationError)
        if path.suffix.lower() == ".wav":
            with path.open("rb") as file:
                sound = _wave_header(path, file, size)
        else:
            sound = None
    except OSError as e:
        raise CalibrationError(f"the sound {path} cannot be read: {e.strerror}", "remove or replace it") from e
    found = sound if sound is not None else _soundfile_header(path)
    if not _RATES[0] <= found.rate <= _RATES[1]:
        raise _broken(path, f"its header states a rate of {found.rate} samples a second")
    if not 1 <= found.channels <= _MOST_CHANNELS:
        raise _broken(path, f"its header states {found.channels} channels")
    if found.frames < 1:
        raise _broken(path, "it holds no samples")
    return found


def _wave_header(path: Path, file: BinaryIO, size: int) -> Sound | None:
    """The header of a wave file; None where its samples are compressed, which soundfile may read."""
    start = file.read(12)
    if len(start) < 12 or start[:4] != b"RIFF" or start[8:] != b"WAVE":
        raise _broken(path, "it does not begin as a wave file (RIFF, WAVE)")
    form: bytes | None = None
    for _ in range(_MOST_CHUNKS):
        head = file.read(8)
        if len(head) < 8:
            break
        name, length = head[:4], int.from_bytes(head[4:], "little")
        if name == b"data":
            if form is None:
                raise _broken(path, "its samples come before the header that describes them (fmt)")
            return _of_format(path, form, file.tell(), length, size)
        if name == b"fmt ":
            form = file.read(min(length, 64))
            file.seek(length + length % 2 - len(form), 1)
        else:
            file.seek(length + length % 2, 1)
    raise _broken(path, "it has no samples: no chunk is called data")


def _of_format(path: Path, form: bytes, offset: int, length: int, size: int) -> Sound | None:
    if len(form) < 16:
        raise _broken(path, f"its header fmt has {len(form)} bytes, not 16 or more")
    code, channels, rate, _, block, bits = struct.unpack("<HHIIHH", form[:16])
    if code == _EXTENSIBLE and len(form) >= 26:
        code = int.from_bytes(form[24:26], "little")
    if (code, bits) not in _KNOWN:
        if code in (_PCM, _FLOAT):
            raise _broken(path, f"its header states {bits} bits a value")
        return None
    width = bits // 8 * channels
    if width == 0 or block != width:
        what = f"its header states {channels} channels of {bits} bits, and {block} bytes for them together"
        raise _broken(path, what)
    held = size - offset
    if length in (0, _UNKNOWN_SIZE) and held > 0:
        length = held - held % width  # written to a pipe: the samples go on to the end of the file
    elif length > held:
        raise _broken(path, f"its header promises {length} bytes of samples, and the file holds {held}")
    return Sound(path, rate, channels, length // width, code, bits, offset)


def _decoded(raw: bytes, code: int, bits: int) -> NDArray[Any]:
    """Values of a wave file as floats; PCM is scaled to -1..1."""
    if code == _FLOAT:
        return np.frombuffer(raw, np.dtype(f"<f{bits // 8}"))
    if bits == 8:  # the only unsigned one
        return (np.frombuffer(raw, np.uint8).astype(np.float32) - 128) / np.float32(128)
    if bits == 16:
        return np.frombuffer(raw, "<i2").astype(np.float32) / np.float32(1 << 15)
    if bits == 24:
        wide = np.zeros((len(raw) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        return (wide.reshape(-1).view("<i4") >> 8).astype(np.float32) / np.float32(1 << 23)
    return np.frombuffer(raw, "<i4").astype(np.float64) / (1 << 31)


def _soundfile(path: Path) -> Any:
    try:
        import soundfile
    except (ImportError, OSError) as e:  # OSError: its shared library is missing
        kind = "a .flac file" if path.suffix.lower() == ".flac" else "a compressed wave file"
        raise CalibrationError(f"{path} is {kind}, and the library soundfile cannot be used: {e}", _INSTALL) from e
    return soundfile


def _soundfile_header(path: Path) -> Sound:
    soundfile = _soundfile(path)
    try:
        found = soundfile.info(str(path))
    except (RuntimeError, OSError, TypeError, ValueError) as e:  # soundfile.LibsndfileError is a RuntimeError
        raise _broken(path, " ".join(str(e).split())) from e
    return Sound(path, int(found.samplerate), int(found.channels), int(found.frames), None, 0, 0)


def _by_soundfile(sound: Sound, first: int, count: int) -> NDArray[Any]:
    soundfile = _soundfile(sound.path)
    try:
        raw = soundfile.read(str(sound.path), frames=count, start=first, dtype="float32", always_2d=True)[0]
    except (RuntimeError, OSError, TypeError, ValueError) as e:
        raise _broken(sound.path, " ".join(str(e).split())) from e
    if raw.shape != (count, sound.channels):
        raise _broken(sound.path, f"it holds fewer samples than its header states ({sound.frames})")
    return np.asarray(raw)


def _broken(path: Path, reason: str) -> CalibrationError:
    return CalibrationError(f"{path} is not a readable sound file: {reason}", "remove or replace it")

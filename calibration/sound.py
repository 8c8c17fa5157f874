"""Samples of sound: windows of sound files, as a model takes them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.calibration.checks import InputSpec, Sample
from onnxshot.calibration.sound_features import log_mel, standardized, stretch
from onnxshot.calibration.sound_files import SOUNDS, Sound, open_sound
from onnxshot.calibration.sound_inputs import SoundForm, beside, fit_sound
from onnxshot.calibration.sound_preset import SoundPreset
from onnxshot.calibration.sources import Digest, Source
from onnxshot.errors import CalibrationError

Step = Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]]
"""Runs the model on a feed: its outputs by name."""
_SHORTEST = 10
"""A rest of a file that is shorter than this share of a window (1 / 10) is left out."""
_MOST_WINDOWS = 1_000_000


@dataclass(frozen=True, slots=True)
class _Window:
    """Samples `start` to `start + count` of a file, at the preset's rate; `held` of them lie before the sound's end."""

    file: int
    start: int
    count: int
    held: int


def sound_paths(source: object, in_folder: Callable[[Path], list[Path]]) -> list[Path]:
    """The files of sound that a path, or a list of paths, names; empty where it names something else.

    Args:
        source: what was given as samples.
        in_folder: lists the sounds of a folder that holds nothing else.
    """
    if isinstance(source, str | Path) and str(source):
        path = Path(source)
        if path.suffix.lower() in SOUNDS and path.is_file():
            return [path]
        return in_folder(path) if path.is_dir() else []
    given: Sequence[object] = ()
    if isinstance(source, list | tuple) and type(source) in (list, tuple):  # a class of the user may have no length
        given = source
    paths = [Path(one) for one in given if isinstance(one, str | Path) and str(one).lower().endswith(SOUNDS)]
    return paths if len(paths) == len(given) else []


def open_sounds(
    label: str, paths: Sequence[Path], inputs: Sequence[InputSpec], preset: object, folder: Path | None,
    step: Step | None,
) -> Sounds:  # fmt: skip
    """Open files of sound as samples of a model.

    Args:
        label: what the user named, as text.
        paths: of the files.
        inputs: of the model.
        preset: a SoundPreset, or None for what a file beside the model says.
        folder: of the model.
        step: as in `Sounds`.

    Raises:
        CalibrationError: the preset is not of sounds, it does not fit the model, or a file cannot be read.
    """
    if preset is not None and not isinstance(preset, SoundPreset):
        what = f"{label} holds sounds; preset {getattr(preset, 'name', preset)} is not of sounds"
        raise CalibrationError(what, "use [[preset=whisper]], waveform-16k or a .yaml file with kind: sound")
    form, notes = fit_sound(inputs, preset, beside(folder) if preset is None else None, label)
    sounds = Sounds(Path(label), paths, form, step)
    sounds.notes = (*notes, *sounds.notes)
    return sounds


class Sounds(Source):
    """One sample per window of each file.

    Attributes:
        form: how a window becomes the model's inputs.
    """

    def __init__(self, root: Path, paths: Sequence[Path], form: SoundForm, step: Step | None = None) -> None:
        """Read the headers of all files.

        Args:
            root: folder that the user named, or the only file.
            paths: of the files.
            form: how a window becomes the model's inputs.
            step: runs a streaming model, whose states are carried from window to window. Default: they stay zeros.

        Raises:
            CalibrationError: a file is no readable sound file, or there are too many windows.
        """
        self._root, self.form, self._step = root, form, step
        self._sounds = [open_sound(path) for path in paths]
        self._windows: list[_Window] = []
        self._left_out = 0
        for file, sound in enumerate(self._sounds):
            self._windows += self._cut(file, sound)
            if len(self._windows) > _MOST_WINDOWS:
                what = f"{root} holds more than {_MOST_WINDOWS} windows of {form.window} samples"
                raise CalibrationError(what, "give fewer files, or a longer window")
        self.made_by = form.preset.fields()
        self._hashes: dict[int, bytes] = {}
        self._states: dict[int, dict[str, NDArray[Any]]] = {}
        self._carried: set[int] = set()
        self._one_at_a_time = Lock()
        self.notes = tuple(self._told())

    def _cut(self, file: int, sound: Sound) -> Iterator[_Window]:
        """The windows of a file. A streaming model's first window begins with as many zeros as windows overlap."""
        form = self.form
        total = max(1, round(sound.frames * form.preset.rate / sound.rate))
        overlap = max(0, form.window - form.stride)
        first = -overlap if form.states else 0
        for start in range(first, total, form.stride):
            held = min(form.window, total - start)
            is_new = start == first or held - overlap >= max(1, (form.window - overlap) // _SHORTEST)
            if not is_new:
                self._left_out += 1
                return
            full = form.filled or bool(form.states)
            yield _Window(file, start, form.window if full else held, held)

    def _told(self) -> Iterator[str]:
        form, preset = self.form, self.form.preset
        seconds = sum(sound.seconds for sound in self._sounds)
        what = f"log-mel of {preset.mels} bands" if preset.mels is not None else "waveforms"
        if preset.normalize == "standard":
            what += " with mean 0 and variance 1"
        length = f"{'' if form.filled else 'up to '}{form.window / preset.rate:.4g} s"
        files, windows = len(self._sounds), len(self._windows)
        line = f"{_count(files, 'file')} of sound, {seconds:.1f} s: {_count(windows, 'window')} of {length}"
        yield f"{line} at {preset.rate} Hz ({what})"
        if filled := sum(w.count > w.held for w in self._windows):
            yield f"{_count(filled, 'window')} of sound filled up with zeros"
        if self._left_out:
            yield f"{_count(self._left_out, 'rest')} of sound shorter than a tenth of a window left out"
        others = sorted({s.rate for s in self._sounds} - {preset.rate})
        if others:
            yield f"sound resampled to {preset.rate} Hz from {', '.join(map(str, others))} Hz"
        loud = [(sound.path.name, most) for sound in self._sounds if (most := sound.loudest())]
        if loud:
            hold = "holds" if len(loud) == 1 else "hold"
            what = f"{_count(len(loud), 'file')} of sound {hold} values far outside of -1..1"
            yield f"{what}, such as {loud[0][1]:.4g} in {loud[0][0]}: the model gets them as they are"
        if form.states:
            named = ", ".join(s.name for s in form.states)
            how = "zeros" if self._step is None else "carried from window to window, zeros at the beginning of a file"
            yield f"states ({named}) are {how}"

    def __len__(self) -> int:
        return len(self._windows)

    def load(self, index: int) -> Sample:
        """The inputs for a window."""
        if self.form.states and self._step is not None:
            self._carry(self._windows[index].file)
        return Sample(self._name(index), self._feed(index))

    def where(self, index: int) -> str:
        """The path of the file, and the second at which the window starts."""
        return f"{self._sounds[self._windows[index].file].path} at {self._second(index)}"

    def digest(self, index: int, sha: Digest) -> None:
        """Hash the file's bytes and where the window lies in it."""
        window = self._windows[index]
        if window.file not in self._hashes:
            with self._sounds[window.file].path.open("rb") as file:
                self._hashes[window.file] = hashlib.file_digest(file, "sha256").digest()
        sha.update(self._hashes[window.file] + f"{window.start} {window.count}".encode())

    def _name(self, index: int) -> str:
        path = self._sounds[self._windows[index].file].path
        inside = path != self._root and path.is_relative_to(self._root)
        return f"{path.relative_to(self._root).as_posix() if inside else path.name} at {self._second(index)}"

    def _second(self, index: int) -> str:
        return f"{max(0, self._windows[index].start) / self.form.preset.rate:.4g} s"

    def _feed(self, index: int) -> dict[str, NDArray[Any]]:
        window, form, preset = self._windows[index], self.form, self.form.preset
        x = stretch(self._sounds[window.file], preset.rate, window.start, window.held)
        if preset.normalize == "standard":
            x = standardized(x)
        x = np.pad(x, (0, window.count - window.held))
        steps, held = window.count, window.held
        if preset.mels is not None:
            x = log_mel(x, preset.rate, preset.mels, preset.n_fft, preset.hop, preset.log)
            steps, held = x.shape[1], min(x.shape[1], -(-window.held // preset.hop))
        feed = {form.spec.name: form.shaped(x).astype(form.spec.dtype), **form.besides(held, steps)}
        for state in form.states:
            if (kept := self._states.get(index, {}).get(state.name)) is not None:
                feed[state.name] = kept
        return feed

    def _carry(self, file: int) -> None:
        """Run the model over all windows of a file, and keep the states that each of them starts with."""
        with self._one_at_a_time:
            if file in self._carried:
                return
            assert self._step is not None
            here = [i for i, window in enumerate(self._windows) if window.file == file]
            for index, following in pairwise(here):
                feed = self._feed(index)
                made = self._step(feed)
                pairs = _pairs(self.form.states, feed, made, self.where(index))
                self._states[following] = {state.name: made[name].copy() for state, name in pairs}
            self._carried.add(file)


def _pairs(
    states: Sequence[InputSpec], feed: Mapping[str, NDArray[Any]], made: Mapping[str, NDArray[Any]], where: str
) -> list[tuple[InputSpec, str]]:
    """Each state with the output that holds its next value: of its type and shape, by name before by order.

    Raises:
        CalibrationError: a state has no such output.
    """
    free = list(made)
    found = []
    for state in states:
        old = feed[state.name]
        fitting = [n for n in free if made[n].shape == old.shape and made[n].dtype == old.dtype]
        named = [n for n in fitting if state.name.lower() in n.lower()]
        if not fitting:
            listed = ", ".join(f"{n!r} {list(x.shape)}" for n, x in made.items())
            what = f"input {state.name!r} {state} is taken for a state; no output has its shape at {where}: {listed}"
            raise CalibrationError(what, "give .npz files that hold every input")
        free.remove((named or fitting)[0])
        found.append((state, (named or fitting)[0]))
    return found


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"

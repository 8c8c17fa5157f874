"""Fit a sound preset to a model: which input takes sound, in what shape, and what its other inputs are given."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.calibration.checks import InputSpec, is_float
from onnxshot.calibration.sound_preset import SoundPreset
from onnxshot.calibration.sources import MOST_BYTES
from onnxshot.errors import CalibrationError, UsageError
from onnxshot.files.regular_files import read_regular

PREPROCESSOR = "preprocessor_config.json"
"""The file in which transformers keeps how sounds become a model's input."""
_SECONDS, _MEL_SECONDS = 10.0, 30.0  # of a window where neither the preset nor the model says it
_USUAL_MELS = (64, 80, 128)
_NAMES = ("audio", "wav", "signal", "speech", "sound", "mel", "feature", "input_values", "input", "pcm", "x")
_MEL_NAMES = ("mel", "feature", "spectrogram", "fbank")
_RATE_NAMES = ("sr", "rate", "sample_rate", "sampling_rate", "samplerate")
_MEL = "log-mel spectrogram"


@dataclass(frozen=True, slots=True)
class SoundForm:
    """How sounds become the inputs of one model.

    Attributes:
        spec: the input that takes sound.
        preset: how; its sizes are those of the model.
        window: samples of a window, at the preset's rate.
        stride: samples from one window to the next.
        filled: whether the last window of a file is filled up with zeros, since the model's size is fixed.
        axis: the axis of time in the input: of samples, or of the spectrogram's columns.
        channels: to which the sound is repeated; 0 where the input has no axis for them.
        states: inputs of a streaming model, which get what the window before left; zeros at the beginning of a file.
        rates: inputs that are told the rate.
        lengths: inputs that are told how long the sound is, without what was filled up.
        masks: inputs that are 1 where there is sound and 0 where it was filled up.
    """

    spec: InputSpec
    preset: SoundPreset
    window: int
    stride: int
    filled: bool
    axis: int
    channels: int
    states: tuple[InputSpec, ...] = ()
    rates: tuple[InputSpec, ...] = ()
    lengths: tuple[InputSpec, ...] = ()
    masks: tuple[InputSpec, ...] = ()

    @property
    def steps(self) -> int:
        """Steps of time in a full window, as the model counts them: samples, or columns of a spectrogram."""
        return self.window // self.preset.hop if self.preset.mels is not None else self.window

    def shaped(self, x: NDArray[Any]) -> NDArray[Any]:
        """A waveform [samples] or a spectrogram [mels, columns] in the shape of the input."""
        if self.preset.mels is not None:
            return (x if self.axis == 2 else x.T)[None]
        if self.spec.shape is not None and len(self.spec.shape) == 1:
            return x
        if not self.channels:
            return x[None]
        repeated = np.repeat(x[None], self.channels, 0)
        return (repeated if self.axis == 2 else repeated.T)[None]

    def besides(self, real: int, total: int) -> dict[str, NDArray[Any]]:
        """The inputs besides the sound, of a window of `total` steps of which `real` hold sound; states are zeros."""
        feed = {s.name: np.zeros([d if isinstance(d, int) else 1 for d in s.shape or ()], s.dtype) for s in self.states}
        for s in self.rates:
            feed[s.name] = np.full([1] * len(s.shape or ()), self.preset.rate).astype(s.dtype)
        for s in self.lengths:
            feed[s.name] = np.full([1] * len(s.shape or ()), real).astype(s.dtype)
        for s in self.masks:
            row = (np.arange(total) < real).astype(s.dtype)
            feed[s.name] = row.reshape([1] * (len(s.shape or (0,)) - 1) + [total])
        return feed


def beside(folder: Path | None) -> SoundPreset | None:
    """The preset that a preprocessor_config.json in this folder, or one above, describes; None where there is none.

    Raises:
        CalibrationError: the file cannot be read, or what it describes is not a sound's way into a model.
    """
    for place in () if folder is None else (folder, folder.resolve().parent):
        path = place / PREPROCESSOR
        if path.is_file():
            return _of_preprocessor(path)
    return None


def _of_preprocessor(path: Path) -> SoundPreset:
    try:
        held = json.loads(read_regular(path, "the file", CalibrationError))
        if not isinstance(held, dict):
            raise ValueError("it holds no keys")
        rate = held.get("sampling_rate", 16000)
        if held.get("hop_length") is None and held.get("n_fft") is None:
            normalize = "standard" if held.get("do_normalize", True) else "none"
            return SoundPreset(rate=rate, normalize=normalize, name=str(path), size_is_default=True)
        kind = str(held.get("feature_extractor_type", ""))
        if not kind.startswith("Whisper"):
            raise ValueError(f"only Whisper's spectrograms are known, not those of {kind or 'an unknown kind'}")
        return SoundPreset(
            rate=rate, window=float(held.get("chunk_length", 30)), mels=held.get("feature_size", 80),
            n_fft=held.get("n_fft", 400), hop=held.get("hop_length", 160), name=str(path), size_is_default=True,
        )  # fmt: skip
    except (OSError, ValueError, TypeError, UsageError, RecursionError) as e:
        said = e.message if isinstance(e, UsageError) else " ".join(str(e).split())
        what = f"{path} does not say how sounds become the model's input: {said}"
        raise CalibrationError(what, "give [[preset=whisper]], waveform-16k or a .yaml file with kind: sound") from e


def fit_sound(
    specs: Sequence[InputSpec], preset: SoundPreset | None, config: SoundPreset | None, where: str
) -> tuple[SoundForm, list[str]]:
    """Fit a preset to a model's inputs.

    Args:
        specs: inputs of the model.
        preset: what the user chose, or None.
        config: what a file beside the model says; used where the user chose nothing.
        where: name of the sounds in messages.

    Returns:
        How sounds become the inputs, and notes on what was assumed.

    Raises:
        CalibrationError: no input takes sound, the preset does not fit it, or another input cannot be made from sound.
    """
    spec = sound_input(specs)
    if spec is None:
        listed = ", ".join(f"{s.name!r} {s}" for s in specs)
        raise CalibrationError(f"{where} holds sounds; no input takes them: {listed}", "give .npz files instead")
    notes = []
    chosen = preset or config
    if chosen is None:
        chosen = SoundPreset(mels=80 if _wants_mels(spec) else None, size_is_default=True)
        notes.append(f"no preset was given: {_told(chosen)} is assumed")
    elif preset is None:
        notes.append(f"sounds are prepared as {chosen.name} says: {_told(chosen)}")
    form = _mel_form(spec, chosen, notes) if chosen.mels is not None else _wave_form(spec, chosen, notes)
    others = _others(form, [s for s in specs if s is not spec], where)
    if others.states and not others.filled and chosen.window is None:
        named = ", ".join(repr(s.name) for s in others.states)
        what = f"the model keeps states ({named}), and its input {spec.name!r} has no fixed length"
        raise CalibrationError(what, "give a preset with a window, such as [[preset=silero-vad]]")
    return others, notes


def sound_input(specs: Sequence[InputSpec]) -> InputSpec | None:
    """The input that takes sound: of floats, of rank 1 to 3; where there are several, by its name; None if none is."""
    fitting = [s for s in specs if is_float(s.dtype) and s.shape is not None and 1 <= len(s.shape) <= 3]
    if len(fitting) < 2:
        return fitting[0] if fitting else None
    for known in _NAMES:
        for spec in fitting:
            if known in spec.name.lower() if len(known) > 2 else spec.name.lower() == known:
                return spec
    return fitting[0]


def _wants_mels(spec: InputSpec) -> bool:
    assert spec.shape is not None
    if len(spec.shape) != 3:
        return False
    return any(d in _USUAL_MELS for d in spec.shape[1:]) or any(n in spec.name.lower() for n in _MEL_NAMES)


def _told(preset: SoundPreset) -> str:
    what = f"a {_MEL} of {preset.mels} bands" if preset.mels is not None else "the waveform"
    normal = ", with mean 0 and variance 1" if preset.normalize == "standard" else ""
    return f"{what} at {preset.rate} Hz{normal}"


def _mel_form(spec: InputSpec, preset: SoundPreset, notes: list[str]) -> SoundForm:
    shape = spec.shape or ()
    if len(shape) != 3:
        what = f"input {spec.name!r} expects {spec}; preset {preset.name} makes a {_MEL} [1, {preset.mels}, columns]"
        raise CalibrationError(what, "use a preset of waveforms, such as waveform-16k")
    assert preset.mels is not None
    axis = 1 if shape[2] == preset.mels and shape[1] != preset.mels else 2
    bands = shape[3 - axis]
    if isinstance(bands, int) and bands != preset.mels:
        if axis == 2 and not isinstance(shape[1], str) and shape[2] in _USUAL_MELS and shape[1] not in _USUAL_MELS:
            axis, bands = 1, shape[2]
        preset = _replaced(preset, "mels", int(bands), spec, notes)
    columns = shape[axis]
    if isinstance(columns, int):
        seconds = columns * preset.hop / preset.rate
        if preset.window is not None and round(preset.window * preset.rate) // preset.hop != columns:
            preset = _replaced(preset, "window", seconds, spec, notes)
        window = columns * preset.hop
    else:
        window = round((preset.window or _MEL_SECONDS) * preset.rate)
    if window <= preset.n_fft // 2 or window < preset.hop:
        what = f"preset {preset.name}: a window of {window} samples is too short for n_fft {preset.n_fft}"
        raise CalibrationError(what, "set a longer window, or a smaller n_fft and hop")
    # A spectrogram is always filled up: its largest value, and its shape, are those of a full window.
    return _sized(SoundForm(spec, preset, window, _stride(preset, window), True, axis, 0))


def _wave_form(spec: InputSpec, preset: SoundPreset, notes: list[str]) -> SoundForm:
    shape = spec.shape or ()
    axis, channels = len(shape) - 1, 0
    if len(shape) == 3:
        last_is_channels = shape[2] in (1, 2) and shape[1] not in (1, 2)
        axis = 1 if last_is_channels else 2
        other = shape[3 - axis]
        channels = other if isinstance(other, int) else 1
        if channels > 2:
            what = f"input {spec.name!r} expects {spec}, which is no waveform of one or two channels"
            raise CalibrationError(what, "a spectrogram? give a preset with mels, such as [[preset=whisper]]")
    fixed = shape[axis]
    if isinstance(fixed, int):
        if preset.window is not None and round(preset.window * preset.rate) != fixed:
            preset = _replaced(preset, "window", fixed / preset.rate, spec, notes)
        window = fixed
    else:
        window = round((preset.window or _SECONDS) * preset.rate)
    return _sized(SoundForm(spec, preset, window, _stride(preset, window), isinstance(fixed, int), axis, channels))


def _stride(preset: SoundPreset, window: int) -> int:
    return max(1, round(preset.stride * preset.rate)) if preset.stride is not None else window


def _sized(form: SoundForm) -> SoundForm:
    """The form itself. Raises CalibrationError where a sample would be too large."""
    size = 4 * max(form.steps * max(form.preset.mels or 1, form.channels or 1), form.window * 8)
    if form.window < 1 or size > MOST_BYTES:
        what = f"input {form.spec.name!r} expects {form.spec}: a window of {form.window} samples does not fit"
        raise CalibrationError(what, f"a sample has at most {MOST_BYTES >> 20} MiB: set window: in a preset file")
    return form


def _replaced(preset: SoundPreset, key: str, value: Any, spec: InputSpec, notes: list[str]) -> SoundPreset:
    """The preset at the model's size. Raises CalibrationError where the user chose another one."""
    found = getattr(preset, key)
    shown = f"{value:g}" if isinstance(value, float) else str(value)
    if not preset.size_is_default:
        what = f"preset {preset.name} has {key}: {found:g}; input {spec.name!r} expects {spec}"
        raise CalibrationError(what, f"set {key}: {shown} in {preset.name}")
    notes.append(f"preset {preset.name}: {key}: {shown}, as the model wants, not {found:g}")
    try:
        return dataclasses.replace(preset, **{key: value})
    except UsageError as e:
        raise CalibrationError(f"input {spec.name!r} expects {spec}: {e.message}", "give .npz files instead") from e


def _others(form: SoundForm, specs: Sequence[InputSpec], where: str) -> SoundForm:
    """The form with what the other inputs are given. Raises CalibrationError where sound says nothing about one."""
    states, rates, lengths, masks = list[InputSpec](), list[InputSpec](), list[InputSpec](), list[InputSpec]()
    for spec in specs:
        name, rank = spec.name.lower(), len(spec.shape) if spec.shape is not None else -1
        single = rank == 0 or (rank == 1 and (spec.shape == (1,) or not isinstance((spec.shape or (0,))[0], int)))
        if single and name in _RATE_NAMES:
            rates.append(spec)
        elif single and "len" in name and not is_float(spec.dtype):
            lengths.append(spec)
        elif "mask" in name and rank in (1, 2) and spec.dtype.kind in "iubf":
            masks.append(spec)
        elif is_float(spec.dtype) and rank >= 1:
            states.append(spec)
        else:
            what = f"{where} gives sound for {form.spec.name!r} alone; the model also needs {spec.name!r} {spec}"
            raise CalibrationError(what, "give .npz files that hold every input")
    return dataclasses.replace(
        form, states=tuple(states), rates=tuple(rates), lengths=tuple(lengths), masks=tuple(masks)
    )

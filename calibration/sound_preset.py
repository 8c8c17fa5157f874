"""How sounds become a model's input: as a value, and as the keys of a YAML file."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onnxshot.arguments import check_fields, named_fields
from onnxshot.errors import UsageError
from onnxshot.files.messages import shown

_NORMALIZE = ("none", "standard")
_LOG = ("whisper", "log10", "ln")
_RATES = (1000, 768_000)
_MOST_SECONDS = 3600.0
_MOST_MELS = 1024
_MOST_FFT = 1 << 16


@named_fields
@dataclass(frozen=True, slots=True)
class SoundPreset:
    """How sounds become the input of a model: a waveform, or a log-mel spectrogram.

    Attributes:
        rate: samples a second; files of other rates are resampled.
        window: seconds of a sample. Default: what the model takes, or 10; 30 for spectrograms.
        stride: seconds from one window to the next. Default: those of `window`.
        normalize: "none", or "standard": each window gets mean 0 and variance 1, before zeros fill it up.
        mels: bands of a log-mel spectrogram. Default: none is made, the model takes the waveform.
        n_fft: samples of one Fourier transform of the spectrogram.
        hop: samples from one Fourier transform to the next.
        log: of the spectrogram: "whisper" (the decimal logarithm, at most 8 below the largest value, plus 4, over 4),
            "log10" or "ln".
        name: of the preset in messages, or the path of its file.
        size_is_default: whether a model's fixed sizes take precedence over `window` and `mels`.

    Raises:
        UsageError: a value has the wrong type or is out of range.

    Example:
        >>> SoundPreset(rate=8000, window=1.0, normalize="standard").mels is None
        True
    """

    rate: int = 16000
    window: float | None = None
    stride: float | None = None
    normalize: str = "none"
    mels: int | None = None
    n_fft: int = 400
    hop: int = 160
    log: str = "whisper"
    name: str = "sound"
    size_is_default: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        for key, choices in (("normalize", _NORMALIZE), ("log", _LOG)):
            if getattr(self, key) not in choices:
                what = f"preset {self.name}: {key} is {shown(getattr(self, key))}"
                raise UsageError(what, f"use {', '.join(choices)}")
        self._check("rate", *_RATES, "samples a second")
        for key in ("window", "stride"):
            seconds = getattr(self, key)
            if seconds is not None and not (math.isfinite(seconds) and 1 <= seconds * self.rate <= self._most):
                what = f"preset {self.name}: {key} is {seconds:g} seconds"
                raise UsageError(what, f"from one sample up to {_MOST_SECONDS:.0f} seconds")
        if self.mels is not None:
            self._check("mels", 1, _MOST_MELS, "bands")
            self._check("n_fft", 2, _MOST_FFT, "samples")
            self._check("hop", 1, _MOST_FFT, "samples")
            if self.normalize != "none":
                what = f"preset {self.name} has both mels and normalize: {self.normalize}"
                raise UsageError(what, "normalize is for waveforms: keep one")

    @property
    def _most(self) -> float:
        return _MOST_SECONDS * self.rate

    def _check(self, key: str, least: int, most: int, unit: str) -> None:
        value = getattr(self, key)
        if not least <= value <= most:
            raise UsageError(f"preset {self.name}: {key} is {shown(value)}", f"from {least} to {most} {unit}")

    @classmethod
    def of_keys(cls, values: Mapping[Any, Any], where: str, base: SoundPreset | None = None) -> SoundPreset:
        """Make a preset of the keys of a YAML file with `kind: sound`.

        Args:
            values: what the file holds.
            where: name or path of the file.
            base: the preset that `extends:` names; its other values are kept.

        Raises:
            UsageError: a key is unknown, or a value has the wrong type or is out of range.
        """
        for key, value in values.items():
            if key not in _KEYS:
                known = f"keys of sounds: kind, extends, {', '.join(k for k in _KEYS if k not in ('kind', 'extends'))}"
                raise UsageError(f"preset {where}: unknown key {shown(key)}", known)
            kinds, said = _KEYS[key]
            if isinstance(value, bool) or not isinstance(value, kinds):
                raise UsageError(f"preset {where}: {key} is {shown(value)}", f"it must be {said}")
        own = {key: value for key, value in values.items() if key not in ("kind", "extends")}
        for key in ("window", "stride"):
            if key in own and own[key] is not None:
                own[key] = _seconds(own[key], key, where)
        inherited = {} if base is None else dataclasses.asdict(base)
        chosen = own.keys() & {"window", "stride", "mels"}
        is_default = base is not None and base.size_is_default and not chosen
        return cls(**{**inherited, **own, "name": where, "size_is_default": is_default})

    def fields(self) -> bytes:
        """All fields that decide the values of an input, as stable bytes for a hash."""
        values = dataclasses.asdict(self)
        del values["name"], values["size_is_default"]
        return json.dumps({"kind": "sound", **values}, sort_keys=True).encode()


def _seconds(value: int | float, key: str, where: str) -> float:
    try:
        return float(value)
    except OverflowError:
        raise UsageError(f"preset {where}: {key} is {shown(value)}", "a number of seconds") from None


_NONE = type(None)
_KEYS: dict[str, tuple[tuple[type, ...], str]] = {
    "kind": ((str,), "sound"), "extends": ((str,), "the name of a preset"),
    "rate": ((int,), "a whole number of samples a second"), "window": ((int, float, _NONE), "a number of seconds"),
    "stride": ((int, float, _NONE), "a number of seconds"), "normalize": ((str,), "a word"),
    "mels": ((int, _NONE), "a whole number of bands"), "n_fft": ((int,), "a whole number of samples"),
    "hop": ((int,), "a whole number of samples"), "log": ((str,), "a word"),
}  # fmt: skip

"""Presets: how a picture becomes a model's input, as a value and as a YAML file.

The presets that ship with onnxshot are the YAML files of calibration/presets/. To add one, add a file there.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from onnxshot.arguments import named_fields
from onnxshot.calibration.sound_preset import SoundPreset
from onnxshot.calibration.text_preset import TextPreset
from onnxshot.errors import UsageError
from onnxshot.files.messages import shown
from onnxshot.files.regular_files import read_regular
from onnxshot.files.urls import refuse_remote
from onnxshot.files.yaml_text import NoYaml, decoded, values_of

_CHOICES = {
    "kind": ("image",),
    "resize": ("stretch", "crop", "letterbox"),
    "channels": ("RGB", "BGR", "GRAY"),
    "layout": ("NCHW", "NHWC"),
}


@named_fields
@dataclass(frozen=True, slots=True)
class Preset:
    """How a picture becomes a model's input: x = (pixel / scale - mean) / std, in float32.

    A preset has a size, or the height of text lines, or neither: then pictures keep their size.

    Attributes:
        name: of the preset, or the path of its file.
        kind: of the samples; only "image".
        size: (height, width) in pixels.
        resize: how a picture gets that size: "stretch"; "crop" (scale until the size is covered, then take the centre);
            or "letterbox" (keep the aspect ratio, centre the picture, and fill the rest with `pad`).
        scale: divisor of the pixels 0..255.
        mean, std: one number, or one per channel in the order of `channels`.
        channels: "RGB", "BGR" or "GRAY".
        layout: "NCHW" or "NHWC".
        height: of text lines, in pixels, instead of `size`. The width keeps the aspect ratio.
        min_width: pixels up to which a text line is filled on the right with `pad`.
        max_width: pixels to which a wider text line is squeezed.
        pad: what the rest is filled with. With letterbox, a pixel value, by default 114; for text lines, a value after
            normalization, by default 0.
        size_is_default: whether a model's fixed size takes precedence over `size`, as for the presets that ship.

    Raises:
        UsageError: a value is unknown or out of range, or two values contradict each other.

    Example:
        >>> Preset(size=(224, 224), resize="crop", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)).raw
        False
    """

    name: str = "preset"
    kind: str = "image"
    size: tuple[int, int] | None = None
    resize: str = "stretch"
    scale: float = 255.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    channels: str = "RGB"
    layout: str = "NCHW"
    height: int | None = None
    min_width: int | None = None
    max_width: int | None = None
    pad: float | None = None
    size_is_default: bool = False

    def __post_init__(self) -> None:
        for key in ("size", "mean", "std"):
            given = getattr(self, key)
            made = (given,) if isinstance(given, int | float) else tuple(given) if isinstance(given, list) else given
            object.__setattr__(self, key, made)
        for key, choices in _CHOICES.items():
            found = getattr(self, key)
            if found not in choices:
                raise UsageError(f"preset {self.name}: {key} is {found!r}", f"use {', '.join(choices)}")
        self._check_numbers()
        if self.size and self.height:
            raise UsageError(f"preset {self.name} has both size and height", "height is for lines of text: keep one")
        if self.height is None and (self.min_width or self.max_width):
            raise UsageError(f"preset {self.name} has min_width or max_width but no height", "set height: 48")
        if self.min_width and self.max_width and self.min_width > self.max_width:
            raise UsageError(f"preset {self.name}: min_width {self.min_width} is above max_width {self.max_width}")
        if self.resize == "letterbox" and self.pad is not None and not 0 <= self.pad <= 255:
            raise UsageError(f"preset {self.name}: pad {self.pad:g} is not a pixel value", "use 0 to 255")

    def _check_numbers(self) -> None:
        if not (math.isfinite(self.scale) and self.scale > 0):
            raise UsageError(f"preset {self.name}: scale is {self.scale:g}", "pixels are divided by it: 255 or 1")
        depth = 1 if self.channels == "GRAY" else 3
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, depth):
                what = f"preset {self.name}: {key} holds {len(values)} numbers; {self.channels} pictures have {depth}"
                raise UsageError(what, f"give {key} one number or {depth}")
        if not all(map(math.isfinite, self.mean)) or not all(math.isfinite(s) and s > 0 for s in self.std):
            raise UsageError(f"preset {self.name}: mean must be finite and std above 0")
        top = 255 / self.scale
        if max(self.mean) > top * 1.001:
            what = f"preset {self.name}: mean {max(self.mean):g} is above the largest pixel, 255 / scale = {top:g}"
            raise UsageError(what, "set scale: 1 when mean and std are in 0..255")

    @property
    def raw(self) -> bool:
        """Whether pixels keep their values 0..255."""
        return self.scale == 1 and not any(self.mean) and all(s == 1 for s in self.std)

    def fields(self) -> bytes:
        """All fields that decide the values of an input, as stable bytes for a hash."""
        values = dataclasses.asdict(self)
        del values["name"], values["size_is_default"]
        return json.dumps(values, sort_keys=True).encode()


def preset_names(kind: str | None = None) -> list[str]:
    """Names of the presets that ship with onnxshot, sorted; `kind`: only those of "image" or of "sound"."""
    files = [f for f in resources.files("onnxshot.calibration.presets").iterdir() if f.name.endswith(".yaml")]
    fitting = [f for f in files if kind is None or _keys(f.read_text("utf-8"), f.name).get("kind", "image") == kind]
    return sorted(f.name.removesuffix(".yaml") for f in fitting)


def about_preset(name: str) -> str:
    """What a preset that ships is for, in a sentence: the first line of its file."""
    text = resources.files("onnxshot.calibration.presets").joinpath(f"{name}.yaml").read_text("utf-8")
    return text.splitlines()[0].removeprefix("# ")


def load_preset(name_or_path: str) -> Preset | SoundPreset | TextPreset | None:
    """Load a preset by name, or from a YAML file: of pictures, of sounds or of texts, as its `kind` says.

    Args:
        name_or_path: one of `preset_names()`, the path of a .yaml file, or "none". A file may say `extends: NAME` to
            start from a preset that ships.

    Returns:
        The preset; None for "none".

    Raises:
        UsageError: there is no such name or file, or the file is not YAML, has an unknown key, or a value of the wrong
            type.
    """
    if name_or_path == "none":
        return None
    refuse_remote(name_or_path, UsageError, "preset")
    if name_or_path.lower().endswith((".yaml", ".yml")):
        return _from_file(name_or_path)
    values = _shipped(name_or_path, f"preset {name_or_path!r}")
    if values.get("kind") == "sound":
        return replace(SoundPreset.of_keys(values, name_or_path), size_is_default=True)
    return Preset(**_parsed(values, name_or_path), name=name_or_path, size_is_default=True)


def _shipped(name: str, asked: str) -> dict[Any, Any]:
    names = preset_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        guess = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"{asked} is not known", f"{guess}presets: {', '.join(names)}, none, or a .yaml file")
    text = resources.files("onnxshot.calibration.presets").joinpath(f"{name}.yaml").read_text("utf-8")
    return _keys(text, name)


def _from_file(path: str) -> Preset | SoundPreset | TextPreset:
    try:
        text = decoded(read_regular(path, "preset file", UsageError))
    except FileNotFoundError:
        raise UsageError(f"preset file {path} is not there", f"or a name: {', '.join(preset_names())}") from None
    except (OSError, NoYaml) as error:
        raise UsageError(f"preset file {path} cannot be read: {error}") from None
    values = _keys(text, path)
    if values.get("kind") == "text":
        return TextPreset.of_keys(values, Path(path))
    base = values.get("extends")
    if base is not None and not isinstance(base, str):
        raise UsageError(f"preset {path}: extends is {shown(base)}", "it must be a word")
    extended = {} if base is None else _shipped(base, f"{path}: extends: {base}")
    kind = values.get("kind", extended.get("kind", "image"))
    if base is not None and (kind == "sound") != (extended.get("kind") == "sound"):
        raise UsageError(f"preset {path} is of kind {shown(kind)} and extends {base}, which is not", "keep one")
    if kind == "sound":
        start = replace(SoundPreset.of_keys(extended, path), size_is_default=True) if extended else None
        return SoundPreset.of_keys(values, path, start)
    inherited, own = _parsed(extended, path), _parsed(values, path)
    own.pop("extends", None)
    if "size" in own:
        inherited = {k: v for k, v in inherited.items() if k not in ("height", "min_width", "max_width", "pad")}
    if "height" in own:
        inherited.pop("size", None)
    # An inherited size stays a default: a fixed size of the model takes precedence.
    is_default = base is not None and not own.keys() & {"size", "height", "min_width", "max_width"}
    return Preset(**{**inherited, **own}, name=path, size_is_default=is_default)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("a number")
    try:
        return float(value)
    except OverflowError:
        raise ValueError("a number") from None


def _numbers(value: object) -> tuple[float, ...]:
    try:
        return tuple(_number(v) for v in (value if isinstance(value, list) and value else [value]))
    except ValueError:
        raise ValueError("a number or a list of numbers") from None


def _pixels(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 65535:
        raise ValueError("a whole number of pixels")
    return value


def _size(value: object) -> tuple[int, int] | None:
    if value is None:
        return None
    try:
        height, width = map(_pixels, value if isinstance(value, list) else ())
    except ValueError:
        raise ValueError("[height, width] in pixels") from None
    return height, width


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("a word")
    return value


_KEYS = {
    "extends": _text, "kind": _text, "size": _size, "resize": _text, "scale": _number, "mean": _numbers,
    "std": _numbers, "channels": _text, "layout": _text, "height": _pixels, "min_width": _pixels,
    "max_width": _pixels, "pad": _number,
}  # fmt: skip


def _keys(text: str, where: str) -> dict[Any, Any]:
    try:
        data = values_of(text)
    except NoYaml as error:
        raise UsageError(f"preset {where} is not YAML, {error}", "for instance `extends: imagenet`") from None
    if not isinstance(data, dict):
        raise UsageError(f"preset {where} holds no keys", "for instance `extends: imagenet`")
    return data


def _parsed(data: dict[Any, Any], where: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in data.items():
        if key not in _KEYS:
            near = difflib.get_close_matches(str(key), _KEYS, 1)
            guess = f"did you mean {near[0]}? " if near else ""
            raise UsageError(f"preset {where}: unknown key {shown(key)}", f"{guess}keys: {', '.join(_KEYS)}")
        try:
            values[key] = _KEYS[key](value)
        except ValueError as error:
            raise UsageError(f"preset {where}: {key} is {shown(value)}", f"it must be {error}") from None
    return values

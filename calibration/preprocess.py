"""From a picture to the array its network was trained on; a preset says how, in a few lines of YAML."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import math
import threading
import warnings
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.errors import CalibrationError, UsageError
from onnxshot.files.messages import shown
from onnxshot.files.regular_files import check_regular, read_regular
from onnxshot.files.urls import refuse_remote
from onnxshot.files.yaml_text import NoYaml, decoded, values_of

if TYPE_CHECKING:
    from PIL import Image

_CHOICES = {
    "kind": ("image",),
    "resize": ("stretch", "crop", "letterbox"),
    "channels": ("RGB", "BGR", "GRAY"),
    "layout": ("NCHW", "NHWC"),
}
_FORMATS = ("JPEG", "PNG", "BMP", "DIB", "WEBP", "PPM", "GIF", "TIFF")  # for others, Pillow runs Ghostscript
MOST_PIXELS = 100_000_000
"""Most pixels of a picture that is read, and of one that is scaled."""
_LARGE = 16_000_000  # pixels: of pictures that are larger, one is read at a time
_ONE_LARGE = threading.Lock()
_MOST_VALUES = 1 << 27  # of a picture that is not scaled: 512 MiB of float32
_LETTERBOX_GREY = 114.0  # what YOLO training pads with


@dataclass(frozen=True, slots=True)
class Preset:
    """How a picture becomes numbers: x = (pixel / scale - mean) / std, float32, mean and std in the order of channels.

    size [H, W]; resize stretch | crop (cover, then the middle) | letterbox (keep the ratio, centre on `pad`, a pixel
    value, 114 unless given). Text lines have height instead of size: the width keeps the ratio up to max_width, and is
    filled on the right up to min_width with `pad`, a value after normalisation, 0 unless given. Neither: pictures stay
    as they are. size_is_default: a fixed size of the model wins over this one, as for the presets that ship.
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
        """Whether pixels come out as they went in, 0..255."""
        return self.scale == 1 and not any(self.mean) and all(s == 1 for s in self.std)

    def fields(self) -> bytes:
        """Everything that changes the numbers, as stable bytes: part of the data's fingerprint."""
        values = dataclasses.asdict(self)
        del values["name"], values["size_is_default"]
        return json.dumps(values, sort_keys=True).encode()


def preset_names() -> list[str]:
    """The names of the presets that ship, sorted."""
    files = resources.files("onnxshot.calibration.presets").iterdir()
    return sorted(f.name.removesuffix(".yaml") for f in files if f.name.endswith(".yaml"))


def load_preset(name_or_path: str) -> Preset | None:
    """The preset of that name, or of a .yaml file (which may say `extends: NAME`); None for "none".

    UsageError: no such name or file, not YAML, an unknown key, a value of the wrong type.
    """
    if name_or_path == "none":
        return None
    refuse_remote(name_or_path, UsageError, "preset")
    if name_or_path.lower().endswith((".yaml", ".yml")):
        return _from_file(name_or_path)
    return Preset(**_shipped(name_or_path, f"preset {name_or_path!r}"), name=name_or_path, size_is_default=True)


def _shipped(name: str, asked: str) -> dict[str, Any]:
    names = preset_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        guess = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"{asked} is not known", f"{guess}presets: {', '.join(names)}, none, or a .yaml file")
    text = resources.files("onnxshot.calibration.presets").joinpath(f"{name}.yaml").read_text("utf-8")
    return _parse(text, name)


def _from_file(path: str) -> Preset:
    try:
        text = decoded(read_regular(path, "preset file", UsageError))
    except FileNotFoundError:
        raise UsageError(f"preset file {path} is not there", f"or a name: {', '.join(preset_names())}") from None
    except (OSError, NoYaml) as error:
        raise UsageError(f"preset file {path} cannot be read: {error}") from None
    own = _parse(text, path)
    base = own.pop("extends", None)
    inherited = {} if base is None else _shipped(base, f"{path}: extends: {base}")
    if "size" in own:
        inherited = {k: v for k, v in inherited.items() if k not in ("height", "min_width", "max_width", "pad")}
    if "height" in own:
        inherited.pop("size", None)
    # A size that was only inherited is still the default that a model of fixed size overrides.
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


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        data = values_of(text)
    except NoYaml as error:
        raise UsageError(f"preset {where} is not YAML, {error}", "for instance `extends: imagenet`") from None
    if not isinstance(data, dict):
        raise UsageError(f"preset {where} holds no keys", "for instance `extends: imagenet`")
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


def image(path: Path | str, preset: Preset) -> NDArray[np.float32]:
    """The picture of a file as the preset wants it: [1, C, H, W] or [1, H, W, C]. CalibrationError: not a picture."""
    from PIL import Image, ImageOps

    try:
        check_regular(path, "the picture", CalibrationError)
        # The bound here is tighter than the one that Pillow warns at, and catch_warnings is not for threads.
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
        with Image.open(path, formats=_FORMATS) as file:
            _refuse_large(*file.size, f"{path} has")
            if preset.size is None and preset.height is None:
                _refuse_values(*file.size, preset, f"{path} would be")
            with _ONE_LARGE if file.width * file.height > _LARGE else contextlib.nullcontext():
                ImageOps.exif_transpose(file, in_place=True)
                return _finish(_to_mode(file, "L" if preset.channels == "GRAY" else "RGB"), preset)
    except CalibrationError:
        raise
    except Exception as error:  # decoders raise anything on a broken file: OSError, struct.error, SyntaxError, ...
        reason = str(error).split("\n")[0] or type(error).__name__
        raise CalibrationError(f"{path} is not a readable picture: {reason}", "remove or replace it") from error


def _refuse_large(width: int, height: int, what: str) -> None:
    """Raise CalibrationError for a picture of too many pixels, by the size that its header states."""
    if width * height > MOST_PIXELS:
        said = f"{what} {width} x {height} pixels; at most {MOST_PIXELS / 1e6:.0f} million are read"
        raise CalibrationError(said, "scale it down, or leave it out")


def _refuse_values(width: int, height: int, preset: Preset, what: str) -> None:
    """Raise CalibrationError for a picture that would be too large as the preset wants it."""
    if width * height * (1 if preset.channels == "GRAY" else 3) > _MOST_VALUES:
        said = f"{what} {width} x {height} pixels as preset {preset.name} has it; at most {_MOST_VALUES / 3e6:.0f}"
        raise CalibrationError(f"{said} million are made", "set size: [HEIGHT, WIDTH] in a preset file")


def from_pixels(pixels_hwc: NDArray[np.uint8], preset: Preset) -> NDArray[np.float32]:
    """A decoded picture, RGB [H, W, 3] or grey [H, W, 1] or [H, W], as the preset wants it. Shape as of `image`."""
    from PIL import Image

    squeezed = pixels_hwc[..., 0] if pixels_hwc.ndim == 3 and pixels_hwc.shape[2] == 1 else pixels_hwc
    _refuse_large(squeezed.shape[1], squeezed.shape[0], "a picture has")
    picture = Image.fromarray(np.ascontiguousarray(squeezed))
    return _finish(_to_mode(picture, "L" if preset.channels == "GRAY" else "RGB"), preset)


def _to_mode(picture: Image.Image, mode: str) -> Image.Image:
    from PIL import Image

    if picture.mode.startswith(("I", "F")):  # Pillow would clip 16 bits at 255 instead of scaling
        deep = np.asarray(picture)
        divisor = 257.0 if picture.mode.startswith("I;16") or deep.max() > 255 else 1.0
        if deep.dtype == np.uint16:
            pixels = _eight_bits(np.arange(1 << 16), divisor)[deep]
        else:  # row by row: the whole picture in float64 would take eight times its memory
            pixels = np.stack([_eight_bits(row, divisor) for row in deep])
        picture = Image.fromarray(pixels)
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")
    return picture if picture.mode == mode else picture.convert(mode)


def _eight_bits(values: NDArray[Any], divisor: float) -> NDArray[np.uint8]:
    with np.errstate(invalid="ignore"):
        return np.clip(np.rint(values.astype(np.float64) / divisor), 0, 255).astype(np.uint8)


def _finish(picture: Image.Image, preset: Preset) -> NDArray[np.float32]:
    if preset.height is not None:
        # PaddleOCR resize_norm_img: ceil keeps the last column of the text
        width = -(-picture.width * preset.height // picture.height)
        picture = _scaled(picture, preset.height, min(width, preset.max_width or width))
    elif preset.size is not None:
        picture = _RESIZE[preset.resize](picture, *preset.size, preset)
    x: NDArray[Any] = np.asarray(picture, dtype=np.float32)
    x = x[:, :, None] if x.ndim == 2 else x
    if preset.channels == "BGR":
        x = x[:, :, ::-1]
    x = x / np.float32(preset.scale)
    x -= np.array(preset.mean, np.float32)
    x /= np.array(preset.std, np.float32)
    missing = (preset.min_width or 0) - x.shape[1]
    if missing > 0:
        x = np.pad(x, ((0, 0), (0, missing), (0, 0)), constant_values=preset.pad or 0.0)
    if preset.layout == "NCHW":
        x = x.transpose(2, 0, 1)
    return np.ascontiguousarray(x[None], dtype=np.float32)


def _scaled(picture: Image.Image, height: int, width: int) -> Image.Image:
    from PIL import Image

    if picture.size == (width, height):
        return picture
    if width * height > MOST_PIXELS:  # a picture one pixel high, say, which is to cover a square
        said = f"a picture of {picture.width} x {picture.height} pixels would have to be scaled to {width} x {height}"
        raise CalibrationError(said, "leave it out: it has the shape of a line")
    return picture.resize((width, height), Image.Resampling.BILINEAR)


def _stretch(picture: Image.Image, height: int, width: int, preset: Preset) -> Image.Image:
    return _scaled(picture, height, width)


def _crop(picture: Image.Image, height: int, width: int, preset: Preset) -> Image.Image:
    ratio = max(height / picture.height, width / picture.width)
    covering = _scaled(picture, max(height, round(picture.height * ratio)), max(width, round(picture.width * ratio)))
    left, top = (covering.width - width) // 2, (covering.height - height) // 2
    return covering.crop((left, top, left + width, top + height))


def _letterbox(picture: Image.Image, height: int, width: int, preset: Preset) -> Image.Image:
    from PIL import Image

    ratio = min(height / picture.height, width / picture.width)
    inner = _scaled(picture, max(1, round(picture.height * ratio)), max(1, round(picture.width * ratio)))
    grey = round(_LETTERBOX_GREY if preset.pad is None else preset.pad)
    box = Image.new(picture.mode, (width, height), grey if picture.mode == "L" else (grey,) * 3)
    box.paste(inner, ((width - inner.width) // 2, (height - inner.height) // 2))
    return box


_RESIZE = {"stretch": _stretch, "crop": _crop, "letterbox": _letterbox}

"""Decode a picture and preprocess it as a preset says."""

from __future__ import annotations

import contextlib
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.calibration.preset import Preset
from onnxshot.errors import CalibrationError
from onnxshot.files.regular_files import check_regular

if TYPE_CHECKING:
    from PIL import Image

_FORMATS = ("JPEG", "PNG", "BMP", "DIB", "WEBP", "PPM", "GIF", "TIFF")  # for others, Pillow runs Ghostscript
MOST_PIXELS = 100_000_000
"""Most pixels of a picture that is decoded, or that another is scaled to."""
_LARGE = 16_000_000  # pixels; larger pictures are decoded one at a time
_ONE_LARGE = threading.Lock()
_MOST_VALUES = 1 << 27  # of a picture that is not scaled: 512 MiB of float32
_LETTERBOX_GREY = 114.0  # what YOLO training pads with


def image(path: Path | str, preset: Preset) -> NDArray[np.float32]:
    """Read a picture from a file and preprocess it.

    Args:
        path: a picture of one of the formats that Pillow decodes itself.
        preset: how to preprocess it.

    Returns:
        float32 [1, C, H, W] or [1, H, W, C], as the preset's layout says.

    Raises:
        CalibrationError: the file is not a readable picture, or too large.
    """
    from PIL import Image, ImageOps

    try:
        check_regular(path, "the picture", CalibrationError)
        # MOST_PIXELS is below the size that Pillow warns at, and warnings.catch_warnings is not thread-safe.
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
    """Raise CalibrationError where a picture's header states too many pixels."""
    if width * height > MOST_PIXELS:
        said = f"{what} {width} x {height} pixels; at most {MOST_PIXELS / 1e6:.0f} million are read"
        raise CalibrationError(said, "scale it down, or leave it out")


def _refuse_values(width: int, height: int, preset: Preset, what: str) -> None:
    """Raise CalibrationError where the preprocessed picture would be too large."""
    if width * height * (1 if preset.channels == "GRAY" else 3) > _MOST_VALUES:
        said = f"{what} {width} x {height} pixels as preset {preset.name} has it; at most {_MOST_VALUES / 3e6:.0f}"
        raise CalibrationError(f"{said} million are made", "set size: [HEIGHT, WIDTH] in a preset file")


def from_pixels(pixels_hwc: NDArray[np.uint8], preset: Preset) -> NDArray[np.float32]:
    """Preprocess a decoded picture.

    Args:
        pixels_hwc: uint8, RGB [H, W, 3] or grey [H, W, 1] or [H, W].
        preset: how to preprocess it.

    Returns:
        float32, of the shape that `image` returns.
    """
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
        picture = Image.fromarray(eight_bits(deep, divisor))
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")
    return picture if picture.mode == mode else picture.convert(mode)


def eight_bits(pixels: NDArray[Any], divisor: float = 257.0) -> NDArray[np.uint8]:
    """Pixels of more bits [H, ...] as pixels of 8, of the same shape: 65535 becomes 255."""
    if pixels.dtype == np.uint16:
        found: NDArray[np.uint8] = _eight_bits(np.arange(1 << 16), divisor)[pixels]
        return found
    # row by row: the whole picture in float64 would take eight times its memory
    return np.stack([_eight_bits(row, divisor) for row in pixels])


def _eight_bits(values: NDArray[Any], divisor: float) -> NDArray[np.uint8]:
    with np.errstate(invalid="ignore"):
        return np.clip(np.rint(values.astype(np.float64) / divisor), 0, 255).astype(np.uint8)


def _finish(picture: Image.Image, preset: Preset) -> NDArray[np.float32]:
    if preset.height is not None:
        # as in PaddleOCR's resize_norm_img: rounding up keeps the last column of the text
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
    if width * height > MOST_PIXELS:  # for example, a picture one pixel high that is to cover a square
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

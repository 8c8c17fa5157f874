"""Where a preset meets a model: which input takes the picture, at which size, in which layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxshot.calibration.checks import InputSpec, is_float, preset_for
from onnxshot.calibration.preprocess import Preset, from_pixels, image, preset_names
from onnxshot.errors import CalibrationError


def image_input(specs: Sequence[InputSpec]) -> InputSpec | None:
    """The input that takes pictures: the first of rank 4 (or of unknown shape) that is float or uint8."""
    for spec in specs:
        if (spec.shape is None or len(spec.shape) == 4) and (is_float(spec.dtype) or spec.dtype == np.uint8):
            return spec
    return None


def picture_input(specs: Sequence[InputSpec], preset: Preset | None, where: str) -> tuple[InputSpec, Preset]:
    """The one input of a model that pictures alone can feed. CalibrationError: no preset, no such input, or more."""
    spec = image_input(specs)
    if spec is None:
        listed = ", ".join(f"{s.name!r} {s}" for s in specs)
        raise CalibrationError(f"{where} holds pictures; no input takes them: {listed}", "give .npz files instead")
    others = [s for s in specs if s is not spec]
    if others:
        what = f"{where} gives pictures for {spec.name!r} alone; the model also needs {others[0].name!r} {others[0]}"
        raise CalibrationError(what, "give .npz files that hold every input")
    if preset is None:
        names = ", ".join(preset_names())
        what = f"{where} holds pictures and no preset says how to preprocess them"
        raise CalibrationError(what, f"try --preset {preset_for(spec)}; presets: {names}, or a .yaml file")
    return spec, preset


def fit_preset(preset: Preset, spec: InputSpec) -> tuple[Preset, tuple[str, ...]]:
    """The preset at the size the model wants, and notes on what that changed.

    A size that is only a default gives way to a fixed one of the model. CalibrationError: a size that the user chose,
    the layout, the channels or the numbers do not fit the input.
    """
    _check_layout(preset, spec)
    if spec.dtype == np.uint8 and not preset.raw:
        what = f"input {spec.name!r} expects raw pixels, {spec}; preset {preset.name} makes floats of them"
        raise CalibrationError(what, "use a preset file with scale: 1, mean: 0, std: 1")
    height, width = _fixed_size(preset, spec)
    fitted = preset
    if preset.height is not None:
        if height:
            fitted = dataclasses.replace(fitted, height=height)
        if width:
            fitted = dataclasses.replace(fitted, min_width=width, max_width=width)
    elif preset.size is not None:
        fitted = dataclasses.replace(preset, size=(height or preset.size[0], width or preset.size[1]))
    elif height and width and preset.size_is_default:
        fitted = dataclasses.replace(preset, size=(height, width))
    if fitted == preset:
        return preset, ()
    if not preset.size_is_default:
        what = f"preset {preset.name} makes pictures {_size_text(preset)}; input {spec.name!r} expects {spec}"
        raise CalibrationError(what, f"set {_size_text(fitted)} in {preset.name}")
    return fitted, (f"preset {preset.name}: {_size_text(fitted)}, as the model wants, not {_size_text(preset)}",)


def read_picture(path: Path, preset: Preset, spec: InputSpec) -> NDArray[Any]:
    """The picture of a file, preprocessed and of the input's dtype: [1, C, H, W] or [1, H, W, C]."""
    return _typed(image(path, preset), spec)


def preprocess_pixels(x: NDArray[Any], preset: Preset, spec: InputSpec) -> NDArray[Any] | None:
    """uint8 pixels of one picture or a batch, HWC or CHW, preprocessed for a float input; None: x is no such thing."""
    if x.dtype != np.uint8 or not is_float(spec.dtype) or x.ndim not in (3, 4):
        return None
    batch = x[None] if x.ndim == 3 else x
    if batch.shape[3] not in (1, 3):
        if batch.shape[1] not in (1, 3):
            return None
        batch = batch.transpose(0, 2, 3, 1)
    pictures = [from_pixels(pixels, preset) for pixels in batch]
    return _typed(np.concatenate(pictures), spec) if pictures else None


def _typed(x: NDArray[np.float32], spec: InputSpec) -> NDArray[Any]:
    return x if x.dtype == spec.dtype else x.astype(spec.dtype)


def _check_layout(preset: Preset, spec: InputSpec) -> None:
    if spec.shape is None:
        return
    depth = 1 if preset.channels == "GRAY" else 3
    axis = {"NCHW": 1, "NHWC": 3}
    other = "NHWC" if preset.layout == "NCHW" else "NCHW"
    here, there = spec.shape[axis[preset.layout]], spec.shape[axis[other]]
    if here == depth or not isinstance(here, int):
        if isinstance(here, int) or there not in (1, 3):
            return
    elif there != depth and here in (1, 3):
        word = "GRAY" if here == 1 else "RGB"
        what = f"input {spec.name!r} expects {spec}; preset {preset.name} makes {depth} channel{'s'[: depth - 1]}"
        raise CalibrationError(what, f"set channels: {word} in a preset file")
    if there in (1, 3):
        what = f"input {spec.name!r} expects {spec}; preset {preset.name} has layout {preset.layout}"
        raise CalibrationError(what, f"set layout: {other} in a preset file (extends: {preset_for(spec)})")


def _fixed_size(preset: Preset, spec: InputSpec) -> tuple[int | None, int | None]:
    if spec.shape is None:
        return None, None
    height, width = spec.shape[2:] if preset.layout == "NCHW" else spec.shape[1:3]
    return (height if isinstance(height, int) else None), (width if isinstance(width, int) else None)


def _size_text(preset: Preset) -> str:
    if preset.height is not None:
        return f"height: {preset.height}, min_width: {preset.min_width}, max_width: {preset.max_width}"
    return f"size: [{preset.size[0]}, {preset.size[1]}]" if preset.size else "the pictures' own size"

"""Fit a preset to a model: which input takes pictures, at which size and in which layout."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onnxshot.calibration.checks import (
    InputSpec,
    as_array,
    check_names,
    fit_feed,
    fit_shape,
    is_float,
    mismatch,
    preset_for,
)
from onnxshot.calibration.preprocess import eight_bits, from_pixels, image
from onnxshot.calibration.preset import Preset, preset_names
from onnxshot.calibration.sources import MOST_BYTES
from onnxshot.errors import CalibrationError


def image_input(specs: Sequence[InputSpec]) -> InputSpec | None:
    """The input that takes pictures: the first of rank 4 or unknown rank that is float or uint8; None if none is."""
    for spec in specs:
        if (spec.shape is None or len(spec.shape) == 4) and (is_float(spec.dtype) or spec.dtype == np.uint8):
            return spec
    return None


def picture_input(specs: Sequence[InputSpec], preset: Preset | None, where: str) -> tuple[InputSpec, Preset]:
    """The input of a model that pictures alone can feed, and the preset.

    Raises:
        CalibrationError: there is no preset, no input takes pictures, or the model needs other inputs too.
    """
    spec = image_input(specs)
    if spec is None:
        listed = ", ".join(f"{s.name!r} {s}" for s in specs)
        raise CalibrationError(f"{where} holds pictures; no input takes them: {listed}", "give .npz files instead")
    others = [s for s in specs if s is not spec]
    if others:
        what = f"{where} gives pictures for {spec.name!r} alone; the model also needs {others[0].name!r} {others[0]}"
        raise CalibrationError(what, "give .npz files that hold every input")
    if preset is None:
        names = ", ".join(preset_names("image"))
        what = f"{where} holds pictures and no preset says how to preprocess them"
        raise CalibrationError(what, f"try [[preset={preset_for(spec)}]]; presets: {names}, or a .yaml file")
    return spec, preset


def fit_preset(preset: Preset, spec: InputSpec) -> tuple[Preset, tuple[str, ...]]:
    """Fit a preset to an input: a fixed size of the input replaces a size that is only a default.

    Returns:
        The fitted preset, and notes on what was changed.

    Raises:
        CalibrationError: the layout, the channels, the numbers, or a size that the user chose do not fit the input.
    """
    grey = _made_grey(preset, spec)
    notes = () if grey is preset else (f"preset {preset.name}: grey, as input {spec.name!r} takes 1 channel",)
    preset = grey
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
        return preset, notes
    if not preset.size_is_default:
        what = f"preset {preset.name} makes pictures {_size_text(preset)}; input {spec.name!r} expects {spec}"
        raise CalibrationError(what, f"set {_size_text(fitted)} in {preset.name}")
    size = f"preset {preset.name}: {_size_text(fitted)}, as the model wants, not {_size_text(preset)}"
    return fitted, (*notes, size)


def read_picture(path: Path, preset: Preset, spec: InputSpec) -> NDArray[Any]:
    """Read and preprocess a picture, in the input's dtype: [1, C, H, W] or [1, H, W, C]."""
    return _typed(image(path, preset), spec)


class Fitter:
    """Makes feeds fit a model: preprocesses pixels, makes safe casts, and checks names, dtypes and shapes.

    Attributes:
        specs: inputs of the model.
        preset: how to preprocess pictures; None where none was given.
        used: the preset at the model's size; None until a picture was preprocessed.
        notes: what was changed in the preset.
        whole: whether batches stay whole where the model takes them.
        extra: arrays of the samples that are no inputs, and are left out.
    """

    def __init__(self, specs: Sequence[InputSpec], preset: Preset | None = None, *, whole: bool = False) -> None:
        self.whole = whole
        self.specs, self.preset = tuple(specs), preset
        self.used: Preset | None = None
        self.notes: tuple[str, ...] = ()
        self.extra: dict[str, None] = {}
        self._spec = image_input(specs)

    def __call__(self, feed: Mapping[str, ArrayLike], where: str) -> dict[str, NDArray[Any]]:
        """The feed as the model takes it. `where` names the sample in errors. Raises as `fit_feed`."""
        spec = self._spec
        self._leave_out(feed)
        if self.preset is not None and spec is not None and spec.name in feed:
            x = as_array(feed[spec.name], spec.name, where)
            if looks_like_pixels(x, spec):
                x = eight_bits(x) if x.dtype == np.uint16 else x
                feed = {**feed, spec.name: preprocess_pixels(x, self._fitted(spec), spec)}
        return fit_feed(feed, self.specs, where)

    def check_stated(self, stated: Mapping[str, NDArray[Any]], where: str) -> None:
        """Check the dtypes and shapes that headers state against the inputs, before values are read.

        Raises CalibrationError where they cannot be a sample, or where a sample would exceed MOST_BYTES.
        """
        check_names(stated, self.specs, where)
        self._leave_out(stated)
        for spec in self.specs:
            x = stated[spec.name]
            if x.nbytes > MOST_BYTES:
                raise mismatch(x, spec, where, f"a sample has at most {MOST_BYTES >> 20} MiB")
            if not (self.preset is not None and spec is self._spec and looks_like_pixels(x, spec)):
                fit_shape(x, spec, where)

    def for_files(self, where: str) -> tuple[InputSpec, Preset]:
        """The input that picture files feed, and the preset at its size. Raises as `picture_input`."""
        spec, _ = picture_input(self.specs, self.preset, where)
        return spec, self._fitted(spec)

    def _leave_out(self, feed: Mapping[str, object]) -> None:
        if len(feed) > len(self.specs):
            self.extra.update(dict.fromkeys(name for name in feed if name not in {spec.name for spec in self.specs}))

    def _fitted(self, spec: InputSpec) -> Preset:
        if self.used is None:
            assert self.preset is not None  # both callers check it
            self.used, self.notes = fit_preset(self.preset, spec)
        return self.used


def looks_like_pixels(x: NDArray[Any], spec: InputSpec) -> bool:
    """Whether x holds uint8 or uint16 pictures, HWC, CHW or grey HW, of 1 or 3 channels, and the input is float."""
    if x.dtype not in (np.uint8, np.uint16) or not is_float(spec.dtype) or x.ndim not in (2, 3, 4) or x.size == 0:
        return False
    return x.ndim == 2 or x.shape[-1] in (1, 3) or x.shape[-3] in (1, 3)


def preprocess_pixels(x: NDArray[np.uint8], preset: Preset, spec: InputSpec) -> NDArray[Any]:
    """Preprocess the pixels of one picture or a batch, HWC, CHW or grey HW: [N, C, H, W] or [N, H, W, C]."""
    x = x[:, :, None] if x.ndim == 2 else x
    batch = x if x.ndim == 4 else x[None]
    if batch.shape[3] not in (1, 3):
        batch = batch.transpose(0, 2, 3, 1)
    return _typed(np.concatenate([from_pixels(pixels, preset) for pixels in batch]), spec)


def _typed(x: NDArray[np.float32], spec: InputSpec) -> NDArray[Any]:
    return x if x.dtype == spec.dtype else x.astype(spec.dtype)


def _made_grey(preset: Preset, spec: InputSpec) -> Preset:
    """A preset that ships, for a model of one channel, if it treats all channels alike; else the preset itself."""
    axis = 1 if preset.layout == "NCHW" else 3
    one = spec.shape is not None and len(spec.shape) == 4 and spec.shape[axis] == 1
    alike = len({*preset.mean}) == len({*preset.std}) == 1
    if not one or not alike or preset.channels == "GRAY" or not preset.size_is_default:
        return preset
    return dataclasses.replace(preset, channels="GRAY", mean=preset.mean[:1], std=preset.std[:1])


def _check_layout(preset: Preset, spec: InputSpec) -> None:
    if spec.shape is None:
        return
    depth = 1 if preset.channels == "GRAY" else 3
    other = "NHWC" if preset.layout == "NCHW" else "NCHW"
    axis = {"NCHW": 1, "NHWC": 3}
    channels, elsewhere = spec.shape[axis[preset.layout]], spec.shape[axis[other]]
    if channels == depth:
        return
    if channels in (1, 3):
        what = f"input {spec.name!r} expects {spec}; preset {preset.name} makes {preset.channels} pictures"
        hint = "set channels: RGB in a preset file"
        if channels == 1:
            hint = "use [[preset=unit]], or a preset file with channels: GRAY and one number for mean and std"
        raise CalibrationError(what, hint)
    if elsewhere in (1, 3):
        what = f"input {spec.name!r} expects {spec}; preset {preset.name} has layout: {preset.layout}"
        raise CalibrationError(what, f"set layout: {other} in a preset file")


def _fixed_size(preset: Preset, spec: InputSpec) -> tuple[int | None, int | None]:
    if spec.shape is None:
        return None, None
    height, width = spec.shape[2:] if preset.layout == "NCHW" else spec.shape[1:3]
    return (height if isinstance(height, int) else None), (width if isinstance(width, int) else None)


def _size_text(preset: Preset) -> str:
    if preset.height is not None:
        return f"height: {preset.height}, min_width: {preset.min_width}, max_width: {preset.max_width}"
    return f"size: [{preset.size[0]}, {preset.size[1]}]" if preset.size else "the pictures' own size"

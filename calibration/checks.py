"""Check samples against a model's inputs: make safe casts, and report anything else with its nearest fix."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onnxshot.calibration.tensors import to_numpy
from onnxshot.calibration.user_functions import users_code
from onnxshot.errors import CalibrationError

_HOW_TO_ARRAY = "give numpy arrays: of a torch tensor x.detach().cpu().numpy()"

Dims = tuple[int | str | None, ...]
"""Dimensions of an input: an int is fixed, a name or None is free."""


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input of a model.

    Attributes:
        name: of the input.
        dtype: of its elements.
        shape: its dimensions; None where even the rank is unknown.
    """

    name: str
    dtype: np.dtype[Any]
    shape: Dims | None

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.dtype} of any shape"
        dims = (str(d) if d is not None else ("?" if axis else "N") for axis, d in enumerate(self.shape))
        return f"{self.dtype} [{','.join(dims)}]"


class NamedFeed(dict[str, NDArray[Any]]):
    """The arrays of one sample by input name.

    Attributes:
        sample: name of the sample, for errors of a model that is run on it.
    """

    def __init__(self, values: Mapping[str, NDArray[Any]], sample: str) -> None:
        super().__init__(values)
        self.sample = sample


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample.

    Attributes:
        name: in messages: the name of a file, 'file.npz[3]', or '#7'.
        feed: its arrays by input name.
    """

    name: str
    feed: dict[str, NDArray[Any]]


def fit_feed(feed: Mapping[str, ArrayLike], specs: Sequence[InputSpec], where: str) -> dict[str, NDArray[Any]]:
    """Fit the arrays of a sample to a model's inputs.

    A missing batch axis of size 1 is added. Floats are cast to other floats, and integers to other integers and to bool
    where their values fit.

    Args:
        feed: arrays by input name.
        specs: inputs of the model.
        where: name of the sample in messages.

    Returns:
        Arrays of the inputs' dtypes and shapes, in the order of `specs`.

    Raises:
        CalibrationError: a name is missing, or a dtype, a rank or a size does not fit.
    """
    check_names(feed, specs, where)
    return {spec.name: fit_array(as_array(feed[spec.name], spec.name, where), spec, where) for spec in specs}


def refuse_not_finite(sample: Sample, outputs: Mapping[str, NDArray[Any]]) -> None:
    """Raise CalibrationError where the float model makes NaN of a sample that itself holds NaN or infinity.

    Such a sample says nothing about a candidate. NaN alone is no error: trees take it for a missing value.

    Args:
        sample: the sample.
        outputs: what the float model makes of it, by name.
    """
    if any(is_float(x.dtype) and np.isnan(x).any() for x in outputs.values()):
        refuse_nan(sample)


def refuse_nan(sample: Sample) -> None:
    """Raise CalibrationError where a sample holds NaN or infinity, but not for -inf, which masks hold."""
    for name, x in sample.feed.items():
        if is_float(x.dtype) and (np.isnan(x).any() or np.isposinf(x).any()):
            what = f"sample {sample.name!r} holds NaN or infinity in input {name!r}"
            raise CalibrationError(what, "look at that sample and its preprocessing, or leave it out")


def check_names(feed: Mapping[str, object], specs: Sequence[InputSpec], where: str) -> None:
    """Raise CalibrationError for an input that is missing; names that are no inputs are left out."""
    missing = [spec for spec in specs if spec.name not in feed]
    if not missing:
        return
    extra = [str(name) for name in feed if name not in {spec.name for spec in specs}]
    spec, near = missing[0], difflib.get_close_matches(missing[0].name, extra, 1, 0.6)
    if len(spec.name) > 2:  # 'input_ids' for 'ids'
        near = near or [name for name in extra if spec.name in name or (len(name) > 2 and name in spec.name)]
    held = ", ".join(map(repr, feed)) or "nothing"
    guess = f"add an array named {spec.name!r} to every sample"
    if extra:
        guess = f"{near[0]!r} may be meant: rename it" if near else f"rename the one that is meant to {spec.name!r}"
    raise CalibrationError(f"input {spec.name!r} expects {spec}; {where} holds only {held}", guess)


def only_input(specs: Sequence[InputSpec], where: str, hint: str = "save .npz files: np.savez(path, **feed)") -> str:
    """The name of the model's only input. Raises CalibrationError where it has several and arrays have no names."""
    if len(specs) != 1:
        listed = ", ".join(repr(s.name) for s in specs)
        what = f"{where} gives arrays without names; the model has {len(specs)} inputs: {listed}"
        raise CalibrationError(what, hint)
    return specs[0].name


def as_array(value: object, name: str, where: str) -> NDArray[Any]:
    """A value as a numpy array. Raises CalibrationError, with input and sample, where numpy cannot make one."""
    if isinstance(value, np.ndarray):
        return value
    with users_code(f"input {name!r} of {where}", _HOW_TO_ARRAY):
        try:
            found = to_numpy(value)
        except (OverflowError, ValueError) as e:  # raised for lists; other objects may raise anything in __array__
            if hasattr(value, "__array__"):
                raise
            reason = "its rows differ in length" if "inhomogeneous" in str(e) else " ".join(str(e).split())
            raise CalibrationError(f"input {name!r} of {where} is not an array: {reason}", "pad the rows") from e
    if found.dtype.hasobject and not _all_text(found):
        kind = type(value).__name__
        raise CalibrationError(f"input {name!r} of {where} is a {kind}, not an array of numbers", _HOW_TO_ARRAY)
    return found


def _all_text(x: NDArray[Any]) -> bool:
    return all(isinstance(one, str | bytes) for one in x.flat)


def fit_array(x: NDArray[Any], spec: InputSpec, where: str) -> NDArray[Any]:
    """x as the input takes it, contiguous. Raises CalibrationError that names the input, both shapes and a fix."""
    x = fit_shape(x, spec, where)
    cast = _cast(x, spec.dtype)
    if cast is None:
        raise mismatch(x, spec, where, _dtype_fix(x, spec))
    return np.ascontiguousarray(cast).reshape(x.shape)  # ascontiguousarray turns a scalar into a vector


def fit_shape(x: NDArray[Any], spec: InputSpec, where: str) -> NDArray[Any]:
    """x with a batch axis added where it is missing; values are not read. Raises as `fit_array`."""
    if lacks_batch(x.shape, spec):
        x = x[None]
    if not fits(x.shape, spec.shape):
        raise mismatch(x, spec, where, _nearest_fix(x, spec))
    return x


def fits(shape: tuple[int, ...], wanted: Dims | None) -> bool:
    """Whether a shape has the wanted rank and fixed dimensions."""
    if wanted is None:
        return True
    return len(shape) == len(wanted) and all(
        not isinstance(want, int) or got == want for got, want in zip(shape, wanted, strict=True)
    )


def lacks_batch(shape: tuple[int, ...], spec: InputSpec) -> bool:
    """Whether a shape fits the input except for a missing batch axis."""
    if not spec.shape or len(shape) != len(spec.shape) - 1:
        return False
    return (not isinstance(spec.shape[0], int) or spec.shape[0] == 1) and fits(shape, spec.shape[1:])


def mismatch(x: NDArray[Any], spec: InputSpec, where: str, hint: str) -> CalibrationError:
    """The error for an array that does not fit its input: names the input, what it expects, and what was found."""
    got = f"{x.dtype} [{','.join(map(str, x.shape))}]"
    return CalibrationError(f"input {spec.name!r} expects {spec}; {where} holds {got}", hint)


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether a dtype is floating point, including bfloat16 and the 8-bit floats of ml_dtypes."""
    return dtype.kind == "f" or "float" in dtype.name


def preset_for(spec: InputSpec) -> str:
    """The shipped preset that most likely fits an image input, judged by its fixed dimensions."""
    dims = {d for d in spec.shape or () if isinstance(d, int)}
    if spec.shape is not None and len(spec.shape) == 4 and 1 in (spec.shape[1], spec.shape[3]):
        return "unit"  # grey
    if 640 in dims:
        return "coco-640"
    # text lines have a small fixed height and a free width
    return "text-line" if dims & {32, 48} and len([d for d in dims if d > 4]) == 1 and _free_width(spec) else "imagenet"


def _free_width(spec: InputSpec) -> bool:
    return spec.shape is not None and len(spec.shape) == 4 and not isinstance(spec.shape[3], int)


def _cast(x: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any] | None:
    if x.dtype == dtype:
        return x
    if is_float(x.dtype) and is_float(dtype):
        with np.errstate(over="ignore"):
            cast = x.astype(dtype)
        lost = np.isinf(cast.astype(np.float32)) & np.isfinite(x) if x.dtype.itemsize >= dtype.itemsize else None
        return None if lost is not None and lost.any() else cast
    if x.dtype.kind in "iub" and dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if x.size and x.dtype.kind != "b" and not (limits.min <= int(x.min()) and int(x.max()) <= limits.max):
            return None
        return x.astype(dtype)
    if x.dtype.kind in "iu" and dtype.kind == "b":
        return x.astype(dtype) if np.isin(x, (0, 1)).all() else None
    if x.dtype.kind in "OUST" and dtype.kind in "OUST":  # strings
        return x.astype(dtype)
    return None


def _dtype_fix(x: NDArray[Any], spec: InputSpec) -> str:
    if x.dtype in (np.uint8, np.uint16) and is_float(spec.dtype) and x.ndim >= 3:
        return f"raw pixels need the preprocessing of training: try [[preset={preset_for(spec)}]]"
    if x.dtype.kind in "iub" and is_float(spec.dtype):
        return f"if no preprocessing is missing, save it with .astype({spec.dtype.name!r})"
    if is_float(x.dtype) and not is_float(spec.dtype):
        return f"save it as {spec.dtype.name}"
    if x.dtype.kind in "iuf" and x.size:
        return f"its values {x.min()} to {x.max()} do not fit {spec.dtype.name}"
    return f"save it as {spec.dtype.name}"


def _nearest_fix(x: NDArray[Any], spec: InputSpec) -> str:
    """The smallest change that would make x fit: preprocess pixels, drop an axis, transpose, or change one size."""
    assert spec.shape is not None  # any shape fits an unknown one
    flat = x.ndim == 2 and len(spec.shape) == 4  # grey
    if x.dtype in (np.uint8, np.uint16) and is_float(spec.dtype) and (x.ndim in (3, 4) or flat):
        return f"try [[preset={preset_for(spec)}]]"
    rank = len(spec.shape)
    if x.ndim == rank + 1 and fits(x.shape[1:], spec.shape):
        return "the first axis is one too many: use x[0]" if len(x) == 1 else "give each x[i] as a sample of its own"
    if 3 <= rank <= 4:
        batched = x if x.ndim == rank else x[None]
        for order in itertools.permutations(range(1, rank)) if batched.ndim == rank else ():
            axes = (0, *order)
            if fits(tuple(batched.shape[a] for a in axes), spec.shape):
                return f"try x{'[None]' if batched is not x else ''}.transpose({', '.join(map(str, axes))})"
    if x.ndim != rank:
        return f"it has {x.ndim} axes, the input {rank}"
    axis = next(a for a, d in enumerate(spec.shape) if isinstance(d, int) and d != x.shape[a])
    if axis == 0:
        return f"the model takes {spec.shape[0]} at a time: give samples of that many"
    return f"axis {axis} must be {spec.shape[axis]}, not {x.shape[axis]}"

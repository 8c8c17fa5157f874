"""Names of the forms of a model, and of their files, as transformers.js expects them.

transformers.js loads onnx/NAME_SUFFIX.onnx for a `dtype`, and takes its defaults from the key transformers.js_config of
config.json (src/utils/dtypes.js and src/models/session.js of @huggingface/transformers 4.3). Optimum loads any name.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from onnx import TensorProto

from onnxshot.bundles.model_folder import VARIANT
from onnxshot.graph import Model, weights
from onnxshot.recipes.recipe import Recipe

JS_CONFIG = "transformers.js_config"
_BITS = {"int4": 4, "uint4": 4}
_SUFFIXES = {"q4": "_q4", "q4f16": "_q4f16", "q8": "_quantized", "fp16": "_fp16", "bf16": "_bf16"}
_DTYPES = ("q4", "q4f16", "q8", "fp16")  # those that transformers.js knows


def form_of(recipe: Recipe, *, half: bool) -> str:
    """The form that a recipe makes: 'q4', 'q4f16', 'q8', 'fp16' or 'bf16'.

    Args:
        recipe: what is made.
        half: whether the model stays in float16 where it is not quantized.
    """
    if not recipe.quantizes:
        return str(recipe.half)
    bits = recipe.bits or _BITS.get(recipe.weight_type or "", 8)
    return "q8" if bits == 8 else "q4f16" if half or recipe.half == "fp16" else "q4"


def form_path(source: PurePosixPath, form: str) -> PurePosixPath:
    """The path of a form of an ONNX file: onnx/model.onnx or onnx/model_fp16.onnx becomes onnx/model_q4.onnx."""
    match = VARIANT.fullmatch(source.stem)
    return source.with_name(f"{match['base'] if match else source.stem}{_SUFFIXES[form]}.onnx")


def is_half(model: Model) -> bool:
    """Whether most bytes of a model's float weights are float16."""
    sizes: dict[int, int] = {TensorProto.FLOAT: 0, TensorProto.FLOAT16: 0}
    for constant in model.constants():
        if (kind := weights.elem_type(constant)) in sizes:
            sizes[kind] += weights.size_bytes(constant)
    return sizes[TensorProto.FLOAT16] > sizes[TensorProto.FLOAT]


def has_half_past(model: Model) -> bool:
    """Whether a model takes the keys and values of earlier tokens in float16."""
    return any(t.name.startswith("past") and t.dtype == "float16" for t in model.graph.inputs)


def js_config(config: Mapping[str, Any], form: str, data: Mapping[str, int], *, half_past: bool) -> dict[str, Any]:
    """A config.json with which transformers.js loads a form by default.

    Args:
        config: the configuration.
        form: the form, as of `form_of`.
        data: number of data files by the name of the .onnx file. Those without data files have 0.
        half_past: as of `has_half_past`. transformers.js 3 must be told; 4 sees it in the model.
    """
    made = copy.deepcopy(dict(config))
    old = made.get(JS_CONFIG)
    own: dict[str, Any] = dict(old) if isinstance(old, Mapping) else {}
    if form in _DTYPES:
        own["dtype"] = form
    own.pop("use_external_data_format", None)
    if any(data.values()):
        own["use_external_data_format"] = {name: count for name, count in data.items() if count}
    kinds = own.pop("kv_cache_dtype", None)
    if half_past:
        own["kv_cache_dtype"] = {**(kinds if isinstance(kinds, Mapping) else {}), form: "float16"}
    return {**made, JS_CONFIG: own}


def joined_js_config(there: Mapping[str, Any], added: Mapping[str, Any]) -> dict[str, Any] | None:
    """The config.json of a folder that gets another form: that of the folder, with what the new form needs.

    Args:
        there: the configuration in the folder.
        added: as `js_config` makes it for the new form.

    Returns:
        The configuration, which keeps the default form of the folder. None where the two are configurations of
        different models.
    """
    old, new = there.get(JS_CONFIG), added.get(JS_CONFIG)
    if {**there, JS_CONFIG: None} != {**added, JS_CONFIG: None}:
        return None
    own: dict[str, Any] = dict(old) if isinstance(old, Mapping) else {}
    for key, value in (new if isinstance(new, Mapping) else {}).items():
        before = own.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            own[key] = {**before, **value}
        else:
            own[key] = before or value
    return {**there, JS_CONFIG: own}


def data_files(model: Path) -> int:
    """Number of data files beside a written .onnx file whose names transformers.js expects."""
    return int(model.with_name(f"{model.name}_data").is_file())

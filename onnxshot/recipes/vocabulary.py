"""The values that keys of recipes may have, as types: modes, efforts, precisions, range methods, types of numbers."""

from typing import Literal, get_args

from onnxshot.calibration import range_methods
from onnxshot.maths import affine

TargetName = Literal["ort", "ort-avx2", "openvino", "tensorrt", "portable"]
"""A key of `onnxshot.targets.TARGETS`."""
FormatName = Literal["onnx", "openvino", "tensorrt"]
"""A format of files: .onnx, or a key of `onnxshot.targets.RUNTIMES`."""
Mode = Literal["static", "dynamic", "weights", "auto"]
ModeOfLayers = Literal["static", "dynamic", "dynamic16", "weights", "stored", "float"]
Effort = Literal["fast", "balanced", "best"]
Format = Literal["qdq", "qoperator"]
Precision = Literal["int8", "fp16", "bf16", "int8+fp16"]
Method = Literal["auto", "minmax", "moving-average", "percentile", "entropy", "mse"]
"""A name in `onnxshot.calibration.range_methods.METHODS`."""
WeightMethod = Literal["minmax", "mse"]
ActivationType = Literal["uint8", "int8", "uint16", "int16", "float8e4m3fn"]
WeightType = Literal["uint8", "int8", "uint16", "int16", "float8e4m3fn", "int4"]
Bits = Literal[4, 8]
Block = int | Literal["channel"]
"""A block size: the number of inputs that share a scale, or all of them."""

MODES_OF_LAYERS: tuple[ModeOfLayers, ...] = get_args(ModeOfLayers)
MODES: tuple[Mode, ...] = get_args(Mode)
EFFORTS: tuple[Effort, ...] = get_args(Effort)
FORMATS: tuple[Format, ...] = get_args(Format)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
METHODS = range_methods.METHODS
WEIGHT_METHODS: tuple[WeightMethod, ...] = get_args(WeightMethod)
BITS: tuple[Bits, ...] = get_args(Bits)
ACTIVATION_TYPES = {t.name: t for t in (affine.UINT8, affine.INT8, affine.UINT16, affine.INT16, affine.FLOAT8E4M3FN)}
WEIGHT_TYPES = {**ACTIVATION_TYPES, affine.INT4.name: affine.INT4}

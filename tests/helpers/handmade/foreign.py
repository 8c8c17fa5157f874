"""Models that other tools have quantized, each in its own style, made from a float case with its own samples."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
from onnx import version_converter

from handmade.core import Case, Feed

# How ModelOpt and TensorRT's own tools have it: float biases, no Q on outputs, float weights behind Q and DQ.
_TENSORRT = {
    "QuantizeBias": False,
    "OpTypesToExcludeOutputQuantization": ["Conv", "MatMul", "Gemm", "Add", "Relu", "Clip"],
    "AddQDQPairToWeight": True,
}
STYLES: dict[str, dict[str, Any]] = {  # style -> types of activations and weights, symmetric or not, and options
    "uint8 by int8": {"kinds": ("QUInt8", "QInt8"), "symmetric": False},
    "int8 by int8": {"kinds": ("QInt8", "QInt8"), "symmetric": True},
    "uint8 by uint8": {"kinds": ("QUInt8", "QUInt8"), "symmetric": False, "per_channel": False},
    "asymmetric int8": {"kinds": ("QInt8", "QInt8"), "symmetric": False},
    "tensorrt": {"kinds": ("QInt8", "QInt8"), "symmetric": True, "extra": _TENSORRT},
    "integer operators": {"kinds": ("QUInt8", "QInt8"), "symmetric": False, "form": "QOperator"},
}


def quantized_elsewhere(case: Case, style: str) -> onnx.ModelProto:
    """The case as onnxruntime.quantization.quantize_static makes it in this style."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
        def __init__(self) -> None:
            self.feeds: Iterator[Feed] = iter(case.feeds)

        def get_next(self) -> Feed | None:
            return next(self.feeds, None)

    how = {"per_channel": True, "extra": {}, "form": "QDQ", **STYLES[style]}
    activation, weight = (getattr(QuantType, kind) for kind in how["kinds"])
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder) / "float.onnx", Path(folder) / "made.onnx"
        opset = max(13, case.model.opset_import[0].version)
        onnx.save(version_converter.convert_version(case.model, opset), str(source))
        quantize_static(
            str(source), str(made), Reader(), quant_format=getattr(QuantFormat, how["form"]),
            activation_type=activation, weight_type=weight, per_channel=how["per_channel"],
            extra_options={"ActivationSymmetric": how["symmetric"], **how["extra"]},
        )  # fmt: skip
        return onnx.load(str(made))

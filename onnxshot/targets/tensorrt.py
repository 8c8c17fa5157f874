"""TensorRT: symmetric int8, float biases, no Q on outputs, and a Q/DQ pair on the residual input of an Add.

The rules are those of its ONNX parser and builder (explicit quantization, TensorRT 10 and 11, TensorRT-RTX 1.7).
"""

from __future__ import annotations

from onnxshot.maths.affine import INT8, PerChannel, QuantScheme
from onnxshot.runtimes.tensorrt_runtime import TensorRt
from onnxshot.targets.base import Target

TENSORRT = Target(
    name="tensorrt",
    activation=QuantScheme(INT8, symmetric=True),
    weight=QuantScheme(INT8, symmetric=True, granularity=PerChannel(0)),
    types=frozenset({("int8", "int8"), ("float8e4m3fn", "float8e4m3fn")}),
    refused={
        "uint8": "TensorRT refuses uint8 and every non-zero zero point",
        "int16": "TensorRT has no 16-bit integers",
        "uint16": "TensorRT has no 16-bit integers",
    },
    static=frozenset({"Conv", "Gemm", "MatMul"}),
    quantizes_outputs=False,
    quantizes_residuals=True,
    gathers_floats=True,
    # It multiplies by 4-bit weights in blocks and by 8-bit weights with a scale per output. 4 bits per output and
    # 8 bits in blocks are turned into floats by a kernel of their own.
    block_bits=frozenset({4}),
    channel_bits=frozenset({8}),
    block_sizes={4: 128, 8: "channel"},
    block_zero_points=False,
    negative_scales=False,
    runs_here=False,
    keeps_half=True,
    runtime=TensorRt(),
    float_reasons={"ConvTranspose": "TensorRT runs a quantized ConvTranspose in float"},
)

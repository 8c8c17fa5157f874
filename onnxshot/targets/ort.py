"""ONNX Runtime on CPUs: uint8 activations, per-channel int8 weights, and a Q on each Conv and Gemm output.

The rules follow ONNX Runtime's QDQ selectors (core/optimizer/qdq_transformer) and measurements. Compared with float,
int8 Softmax runs at 0.16x, uint8 weights at 1.5x, int8 weights at 3.6x, and int16 activations at 0.8x.
"""

from __future__ import annotations

from dataclasses import replace

from onnxshot.maths.affine import INT7, INT8, UINT8, PerChannel, QuantScheme
from onnxshot.targets.base import Target

_NO_KERNEL = "ONNX Runtime has no int8 kernel for it"

ORT = Target(
    name="ort",
    activation=QuantScheme(UINT8),
    weight=QuantScheme(INT8, symmetric=True, granularity=PerChannel(0)),
    types=frozenset({("uint8", "int8"), ("int8", "int8"), ("uint8", "uint8")}),
    refused={
        "uint16": "ONNX Runtime's CPU kernels compute 16-bit activations in float, at 0.8x of the float model",
        "int16": "ONNX Runtime's CPU kernels compute 16-bit activations in float, at 0.8x of the float model",
        "bf16": "ONNX Runtime has no CPU kernels for bfloat16 and refuses the model",
        "float8e4m3fn": "ONNX Runtime runs float8 Conv in float and fails to load float8 MatMul",
    },
    static=frozenset({"Conv", "Gemm", "MatMul"}),
    dynamic=frozenset({"MatMul", "Gemm"}),
    contrib=frozenset({"LSTM"}),
    prefers_dynamic=True,
    stores_biases=True,  # from 1.23 on, sessions convert float biases; 1.18 to 1.22 run such layers at 0.1x to 0.6x
    # They run as MatMulIntegerToFloat and QGemm. A Gemm with a float bias and no Q after it runs in float, as does a
    # MatMul of matrices followed by an Add, which becomes such a Gemm.
    gives_float=frozenset({"MatMul", "Gemm"}),
    input_grids=True,
    stores_weights=True,
    block_bits=frozenset({4, 8}),
    channel_bits=frozenset({4, 8}),
    block_operator=True,
    block_sizes={4: 32, 8: 128},
    ragged_blocks=True,
    splits_experts=True,  # MatMulNBits takes one matrix
    shares_blocks=False,  # since 1.32, no product is fused whose constants another DequantizeLinear reads
    isolates_softmax=True,
    followers=frozenset(
        {
            "Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid", "Relu", "MaxPool",
            "Resize", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Gather", "Split",
            "DepthToSpace", "SpaceToDepth", "Pad",
        }
    ),
    slow_thin=True,  # depthwise at 0.2x to 0.9x of float in its blocked layout; groups of 4 channels at 0.1x to 0.5x
    slow_pools=True,  # float is 1.2x to 5x as fast, including its DQ, Q and layout changes
    reducers=frozenset({"GlobalAveragePool"}),
    float_reasons={
        "Softmax": "int8 Softmax runs at 0.16x of float",
        "ConvTranspose": "ONNX Runtime runs a quantized ConvTranspose in float, at 0.85x",
        "GRU": "ONNX Runtime has no int8 GRU",
        "RNN": "ONNX Runtime has no int8 RNN",
        "LSTM": "int8 LSTM exists only as com.microsoft.DynamicQuantizeLSTM",
        "LayerNormalization": _NO_KERNEL,
        "InstanceNormalization": _NO_KERNEL,
        "GroupNormalization": _NO_KERNEL,
        "BatchNormalization": _NO_KERNEL,
        "Erf": "quantizing inside Gelu breaks its fusion",
        "Gelu": _NO_KERNEL,
        "HardSwish": _NO_KERNEL,
        "HardSigmoid": _NO_KERNEL,
        "Tanh": _NO_KERNEL,
    },
    half_note="fp16 makes the file smaller, not faster: ONNX Runtime computes it in float32 on CPUs, between Casts",
    note="int8 x uint8 products are exact only on CPUs with VNNI (AVX512-VNNI, AVX-VNNI, AMX or ARM dot product); "
    "with AVX2 or AVX512 alone, sums may saturate: use [[target=ort-avx2]] there",
)

ORT_AVX2 = replace(
    ORT,
    name="ort-avx2",
    weight=QuantScheme(INT7, symmetric=True, granularity=PerChannel(0)),
    types=frozenset({("uint8", "int7"), ("int8", "int7")}),
    note="7-bit weights: no sum of two products exceeds int16, so the result is the same on all CPUs",
)

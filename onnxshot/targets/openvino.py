"""OpenVINO on CPUs: uint8 activations, or int8 with zero point 0; symmetric int8 weights; Q/DQ on inputs of int8 nodes.

The rules were measured with OpenVINO 2026.4, from the precisions that its compiled graph reports.
"""

from __future__ import annotations

from dataclasses import replace

from onnxshot.runtimes.openvino_runtime import OpenVino
from onnxshot.targets.ort import ORT

_WIDE = "OpenVINO computes 16-bit activations in float, with the error of 8 bits or fewer"
_NO_KERNEL = "OpenVINO has no int8 kernel for it"

OPENVINO = replace(
    ORT,
    name="openvino",
    types=frozenset({("uint8", "int8"), ("int8", "int8")}),
    symmetric=frozenset({"int8"}),  # on CPUs with AMX, a Conv whose int8 input has another zero point runs in float
    refused={
        "uint16": _WIDE,
        "int16": _WIDE,
        "uint8 weights": "OpenVINO runs uint8 weights in float",
        "float8e4m3fn": "OpenVINO runs float8 in float on CPUs",
    },
    dynamic=frozenset(),  # DynamicQuantizeLinear becomes a dozen float ops, and the product after it runs in float
    contrib=frozenset(),
    prefers_dynamic=False,
    # Without a Q on outputs, compared with a Q there: CNNs are as fast, a text recognizer is 1.4x as fast and has 3 dB
    # more SQNR, a text encoder is 1.2x as fast and has 9 dB more. Between two int8 nodes there is a pair in any case.
    slow_thin=False,
    slow_pools=False,
    quantizes_outputs=False,
    stores_biases=False,
    block_operator=False,
    least_block=32,  # with blocks of 16, it turns activations into integers no more, and is 2.6x slower
    ragged_blocks=False,  # error: "Conversion is failed for: DequantizeLinear-21"
    shares_blocks=True,  # a table's zero points become floats if another DequantizeLinear reads them
    splits_experts=True,  # a stack of matrices becomes floats when the model is compiled
    reads_constants=frozenset({"LSTM", "GRU"}),  # error "expects Constant for port 3"; RNN accepts computed weights
    gives_float=frozenset(),
    isolates_softmax=False,
    # A float Mul, Sigmoid or LeakyRelu is fused with the Conv before it, or with the Q after it.
    followers=ORT.followers - {"Mul", "Sigmoid", "LeakyRelu"},
    float_reasons={op: _NO_KERNEL for op in ORT.float_reasons}
    | {
        "Mul": "OpenVINO computes it in float, fused with the op next to it",
        "Sigmoid": "OpenVINO computes it in float, fused with the op next to it",
        "LeakyRelu": "OpenVINO computes it in float, fused with the op next to it",
        "ConvTranspose": "OpenVINO runs it in int8 only if its input has zero point 0",
        "LSTM": "OpenVINO does not compile it with its input and its weights quantized",
        "GRU": "OpenVINO does not compile it with its input and its weights quantized",
    },
    runtime=OpenVino(),
    emits=OpenVino.format,
    runs_here=False,
    half_note="fp16 makes the file smaller, not faster: OpenVINO computes it in float32 on CPUs",
    note="on CPUs with bfloat16, OpenVINO computes float nodes in it unless INFERENCE_PRECISION_HINT is f32",
)

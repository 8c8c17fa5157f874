"""OpenVINO on CPUs: uint8, or int8 activations with zero point 0, symmetric int8 weights, Q on what int8 ops read only.

Rules as OpenVINO 2026.4 was measured to follow them, in the precisions its compiled graph names.
"""

from __future__ import annotations

from dataclasses import replace

from onnxshot.runtimes.openvino_runtime import OpenVino
from onnxshot.targets.ort import ORT

_WIDE = "OpenVINO computes 16-bit activations in float, and with errors of 8 bits and less"
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
        "int4 weights": "int4 blocks are placed for TensorRT only",
        "float8e4m3fn": "OpenVINO runs float8 in float on CPUs",
    },
    dynamic=frozenset(),  # a DynamicQuantizeLinear becomes a dozen float ops, and the product behind it runs in float
    contrib=frozenset(),
    prefers_dynamic=False,
    # Measured without a Q on outputs, against with: CNNs as fast, a text recognizer 1.4x as fast with 3 dB more, a text
    # encoder 1.2x as fast with 9 dB more. Where both ops are int8, the pair stands there anyway.
    slow_thin=False,
    slow_pools=False,
    quantizes_outputs=False,
    stores_biases=False,
    reads_constants=frozenset({"LSTM", "GRU"}),  # "expects Constant for port 3"; an RNN takes what is computed
    gives_float=frozenset(),
    isolates_softmax=False,
    # A float Mul, Sigmoid or LeakyRelu is computed inside the Conv before it, or in one kernel with the Q behind it.
    followers=ORT.followers - {"Mul", "Sigmoid", "LeakyRelu"},
    float_reasons={op: _NO_KERNEL for op in ORT.float_reasons}
    | {
        "Mul": "OpenVINO computes it in float inside the op next to it",
        "Sigmoid": "OpenVINO computes it in float inside the op next to it",
        "LeakyRelu": "OpenVINO computes it in float inside the op next to it",
        "ConvTranspose": "OpenVINO runs it in int8 only where its input has zero point 0",
        "LSTM": "OpenVINO does not compile it with its input and its weights quantized",
        "GRU": "OpenVINO does not compile it with its input and its weights quantized",
    },
    runtime=OpenVino(),
    emits=OpenVino.format,
    runs_here=False,
    half_note="fp16 makes the file smaller, not faster: OpenVINO was seen to compute it in float32",
    note="OpenVINO computes what is float in bfloat16 on CPUs that have it, unless INFERENCE_PRECISION_HINT is f32",
)

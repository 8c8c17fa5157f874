"""One file for ONNX Runtime, OpenVINO and TensorRT: symmetric int8, with Q/DQ pairs placed so that all three use them.

TensorRT supports symmetric int8 only. OpenVINO and TensorRT run all products in int8 with pairs on their inputs alone.
ONNX Runtime needs a pair after each product too, before its Relu. It still leaves most products in float whose input
other nodes read too, as it converts int8 to uint8 in straight chains only.
"""

from __future__ import annotations

from dataclasses import replace

from onnxshot.targets.tensorrt import TENSORRT

PORTABLE = replace(
    TENSORRT,
    name="portable",
    types=frozenset({("int8", "int8")}),
    refused={
        "uint8": "TensorRT refuses uint8 and every non-zero zero point",
        "int16": "no runtime here computes 16-bit activations in integers",
        "uint16": "no runtime here computes 16-bit activations in integers",
        "float8e4m3fn": "ONNX Runtime and OpenVINO run float8 in float",
    },
    # Pairs around Add cost 1 dB on resnet20 and made ONNX Runtime no faster.
    quantizes_outputs=True,
    least_block=32,  # see openvino.py
    shares_blocks=False,  # see ort.py
    gives_float=frozenset({"MatMul", "Gemm"}),
    everywhere=True,
    runs_here=True,
    keeps_half=False,
    runtime=None,
    float_reasons={"ConvTranspose": "no runtime here runs every quantized ConvTranspose in int8"},
    note="a file for [[target=ort]] is faster in ONNX Runtime: the report compares both",
)

"""Small models that show what a runtime does on this machine: saturating sums, int8 and float16 against float32."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, numpy_helper, parser

from onnxshot.runtimes.ort_runtime import Runner

_CONVS = """<ir_version: 8, opset_import: ["": 17]>
convs (float[1, 32, 28, 28] x) => (float[1, 64] y) {
    a = Conv<pads = [1, 1, 1, 1]>(x, w1)  b = Relu(a)  c = Conv<pads = [1, 1, 1, 1]>(b, w2)  d = Relu(c)
    e = GlobalAveragePool(d)  y = Flatten(e)
}"""
_SHAPES = {"w1": (64, 32, 3, 3), "w2": (64, 64, 3, 3)}
_SUM = """<ir_version: 8, opset_import: ["": 17]>
sum (uint8[1, 64] x) => (int32[1, 16] y) { y = MatMulInteger(x, w) }"""


@dataclass(frozen=True, slots=True)
class Trial:
    """The result of running a network of two Convs in a precision, for a target.

    Attributes:
        refused: why it could not be run; the following fields are None then.
        share: share of its multiply-accumulates that ran in int8, 0 to 1.
        speedup: latency of the float model divided by its own, in the same runtime.
        sqnr_db: SQNR of its outputs against the float model, in dB.
    """

    target: str
    precision: str
    refused: str = ""
    share: float | None = None
    speedup: float | None = None
    sqnr_db: float | None = None


def sums_saturate() -> bool:
    """True if uint8 x int8 sums of ONNX Runtime saturate on this CPU, so that 64 x 255 x 127 comes out too small.

    They do on CPUs with AVX2 or AVX512 but without VNNI, where vpmaddubsw adds pairs of products in 16 bits.
    """
    model = parser.parse_model(_SUM)
    model.graph.initializer.append(numpy_helper.from_array(np.full((64, 16), 127, np.int8), "w"))
    found = Runner(model.SerializeToString()).run({"x": np.full((1, 64), 255, np.uint8)})
    return bool((found["y"] != 64 * 255 * 127).any())


def convs() -> ModelProto:
    """Build a model of two Convs with 14 and 29 million multiply-accumulates and fixed random weights."""
    model: ModelProto = parser.parse_model(_CONVS)
    rng = np.random.default_rng(0)
    for name, shape in _SHAPES.items():
        values = rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    return model

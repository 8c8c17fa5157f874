"""Small models that are run to see what a runtime does here: sums that may saturate, int8 and fp16 against float."""

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
    """What a small network of two Convs did in a precision, for a target.

    Attributes:
        refused: why it could not be run; the rest is empty then.
        share: share 0..1 of its work that ran in int8.
        speedup: time of the float model over its own, in the same runtime.
        sqnr_db: of its answers, against the float model.
    """

    target: str
    precision: str
    refused: str = ""
    share: float | None = None
    speedup: float | None = None
    sqnr_db: float | None = None


def sums_saturate() -> bool:
    """Whether ONNX Runtime's uint8 x int8 products overflow 16 bits here: 64 x 255 x 127 comes out smaller.

    They do on CPUs with AVX2 or AVX512 alone (vpmaddubsw adds pairs of products in 16 bits, with saturation).
    """
    model = parser.parse_model(_SUM)
    model.graph.initializer.append(numpy_helper.from_array(np.full((64, 16), 127, np.int8), "w"))
    found = Runner(model.SerializeToString()).run({"x": np.full((1, 64), 255, np.uint8)})
    return bool((found["y"] != 64 * 255 * 127).any())


def convs() -> ModelProto:
    """Two Convs with 14 and 29 million multiply-accumulates; the same weights every time."""
    model: ModelProto = parser.parse_model(_CONVS)
    rng = np.random.default_rng(0)
    for name, shape in _SHAPES.items():
        values = rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    return model

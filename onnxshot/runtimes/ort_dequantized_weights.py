"""Find stored weights that ONNX Runtime dequantizes in every run: they save neither time nor memory."""

from __future__ import annotations

import math

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto

from onnxshot.errors import ModelError
from onnxshot.files.atomic_write import scratch
from onnxshot.runtimes.ort_runtime import session

_LEAST_VALUES = 64  # a smaller weight is dequantized in no time


def dequantized_weights(model: ModelProto) -> set[str]:
    """Names of weights that a DequantizeLinear reads in ONNX Runtime's optimized graph.

    Only constants of two dimensions or more count. Empty if the model does not load; the proof reports that.
    """
    with scratch() as folder:
        at = folder / "optimized.onnx"
        try:
            session(model.SerializeToString(), threads=1, save_optimized=at)
            optimized = onnx.load(str(at), load_external_data=False)
        except (ModelError, OSError, DecodeError, ValueError):
            return set()
    stored = {t.name: t.dims for t in optimized.graph.initializer}
    read = (node.input[0] for node in optimized.graph.node if node.op_type == "DequantizeLinear")
    return {n for n in read if len(stored.get(n, ())) > 1 and math.prod(stored[n]) >= _LEAST_VALUES}

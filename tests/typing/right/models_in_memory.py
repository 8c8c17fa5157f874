"""A ModelProto goes in, a ModelProto and a session come out."""

import io
from pathlib import Path

import numpy as np
import onnx

import onnxshot

model = onnx.load("model.onnx")
result = onnxshot.quantize(model, "random", mode="dynamic")
onnx.checker.check_model(result.model_proto)
session = result.session(providers=["CPUExecutionProvider"])
outputs = session.run(None, {"x": np.zeros((1, 4), np.float32)})
with Path("model.onnx").open("rb") as file:
    first, second = onnxshot.bench([file, io.BytesIO(model.SerializeToString())])


class Program:
    @property
    def model_proto(self) -> onnx.ModelProto:
        return model


onnxshot.quantize(Program(), "random", mode="dynamic")
again = onnxshot.inspect(model.SerializeToString()).to_text().upper()

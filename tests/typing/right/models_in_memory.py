"""A ModelProto goes in, a ModelProto and a session come out."""

import numpy as np
import onnx

import onnxshot

model = onnx.load("model.onnx")
result = onnxshot.quantize(model, "random", mode="dynamic")
onnx.checker.check_model(result.model_proto)
session = result.session(providers=["CPUExecutionProvider"])
outputs = session.run(None, {"x": np.zeros((1, 4), np.float32)})
again = onnxshot.inspect(model.SerializeToString()).to_text().upper()

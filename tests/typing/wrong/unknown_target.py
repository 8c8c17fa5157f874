import onnxshot

onnxshot.quantize("model.onnx", "samples/", target="tensor-rt")  # wrong: arg-type
onnxshot.emit("model.onnx", to="engine", output="model.engine")  # wrong: arg-type

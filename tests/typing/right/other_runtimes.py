"""Files of other runtimes, and a bundle that is checked where it arrives."""

import onnxshot

options = onnxshot.EmitOptions(hardware=("sm89",), minutes=5)
onnxshot.emit("model.int8.onnx", to="tensorrt", output="model.engine", options=options, reference="model.onnx")
result = onnxshot.quantize("model.onnx", "samples/", output="model.int8.onnx")
bundle = onnxshot.bundle(result, "bundle/", "samples/")
assert not onnxshot.verify(bundle).deviations

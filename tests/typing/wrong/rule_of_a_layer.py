import onnxshot

onnxshot.quantize("model.onnx", "samples/", layers={"head*": {"mode": "flaot"}})  # wrong: typeddict-item
onnxshot.quantize("model.onnx", "samples/", layers={"head*": {"modes": "float"}})  # wrong: typeddict-unknown-key

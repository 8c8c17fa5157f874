import onnxshot

onnxshot.quantize("model.onnx", 5)  # wrong: arg-type
onnxshot.quantize(5, "samples/")  # wrong: arg-type
onnxshot.bench([object()])  # wrong: list-item

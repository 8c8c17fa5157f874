import onnxshot

onnxshot.quantize("model.onnx", "samples/", effort="bst")  # wrong: arg-type

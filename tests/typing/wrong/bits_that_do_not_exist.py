import onnxshot

onnxshot.Recipe(mode="weights", bits=3)  # wrong: arg-type
onnxshot.quantize("model.onnx", block="row")  # wrong: arg-type

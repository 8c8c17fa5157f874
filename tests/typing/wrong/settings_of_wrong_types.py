import onnxshot

onnxshot.Settings(threads="two")  # wrong: arg-type
onnxshot.Settings(samples="most")  # wrong: arg-type
onnxshot.quantize("model.onnx", settings={"threads": 2})  # wrong: arg-type

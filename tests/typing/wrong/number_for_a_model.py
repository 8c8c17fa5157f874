import onnxshot

onnxshot.quantize(5, "samples/")  # wrong: arg-type
onnxshot.bench([object()])  # wrong: list-item
